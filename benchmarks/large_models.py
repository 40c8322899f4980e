"""Models larger than the memory: peak memory of compiling, and its time as a multiple of reading the weights.

    python -m benchmarks.large_models --shape 7b --memory 8 --algorithm rtn --work DIRECTORY

writes a checkpoint of that shape with random bf16 weights (once, one shard at a time), reads it once for the
yardstick, and runs `edgevlm compile` in a control group that may use so many GB. Making control groups takes
root. The layout is SmolVLM's with the demo's processor; random weights say nothing of answers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.process import say

GIGA = 10**9
GROUPS = Path("/sys/fs/cgroup")
RECIPE = """\
name: {algorithm}
description: Int4 decoder by {algorithm}, int8 embedding and head; few questions, because weights are random.
components:
  vision_encoder: {{scheme: w8a16}}
  projector: {{scheme: w8a16}}
  embedding: {{scheme: w8a16}}
  decoder: {{scheme: w4a16_g64, algorithm: {algorithm}}}
  head: {{scheme: w8a16}}
calibration: {{samples: {samples}}}
generation: {{max_new_tokens: 2}}
evaluation: {{clean_items: 4, corruptions: []}}
gates:
  - {{metric: divergence_rate, max: 1.0, reason: Only memory and time are of interest here.}}
"""


@dataclass(frozen=True)
class Shape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    vision: int
    vision_layers: int


SHAPES = {
    "500m": Shape(960, 2560, 32, 15, 5, 49280, 768, 12),  # SmolVLM-500M
    "2b": Shape(2048, 8192, 24, 32, 32, 49280, 1152, 27),  # SmolVLM-2.2B
    "7b": Shape(3584, 18944, 28, 28, 4, 152064, 1280, 32),  # Qwen2.5-VL-7B's decoder
    "llava-7b": Shape(4096, 11008, 32, 32, 32, 32064, 1024, 24),  # LLaVA-1.5-7B's
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=int, help="fewer decoder layers, for what takes hours")
    parser.add_argument("--memory", type=float, required=True, help="GB that the compilation may use")
    parser.add_argument("--algorithm", default="rtn")
    parser.add_argument("--samples", type=int, default=8, help="calibration samples")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoint and bundle")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    shape = SHAPES[asked.shape]
    if asked.layers:
        shape = Shape(**{**asdict(shape), "layers": asked.layers})
    checkpoint = asked.work / f"{asked.shape}-{shape.layers}"
    if not (checkpoint / "model.safetensors.index.json").exists():
        write_checkpoint(checkpoint, shape)
    row = measure(checkpoint, asked.work, asked.algorithm, asked.samples, asked.memory)
    row = {"shape": asked.shape, "layers": shape.layers, **row}
    say(json.dumps(row, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(row, indent=1) + "\n")


def write_checkpoint(out: Path, shape: Shape) -> None:
    """One shard per layer, so that no more than that is in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, SmolVLMForConditionalGeneration

    from edgevlm_deploy.resources import DEMO_CHECKPOINT

    out.mkdir(parents=True, exist_ok=True)
    for file in DEMO_CHECKPOINT.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, out)
    config = json.loads((out / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "vocab_size": shape.vocabulary,
    }
    config["vision_config"] |= {
        "hidden_size": shape.vision,
        "intermediate_size": 4 * shape.vision,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision // 64,
    }
    (out / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        state = SmolVLMForConditionalGeneration(AutoConfig.from_pretrained(out)).state_dict()
    generator = torch.Generator().manual_seed(0)
    index, total = {}, 0
    for number, names in enumerate(_shards(state)):
        file = f"model-{number:05d}.safetensors"
        made = {name: _random(name, state[name].shape, generator) for name in names}
        save_file(made, out / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
        total += sum(tensor.nbytes for tensor in made.values())
    weight_map = {"metadata": {"total_size": total}, "weight_map": index}
    (out / "model.safetensors.index.json").write_text(json.dumps(weight_map))


def _shards(names: Any) -> Iterator[list[str]]:
    """Each layer, and each of what stands beside the layers."""
    shards: dict[str, list[str]] = {}
    for name in names:
        layer = re.match(r".*\.layers\.\d+", name)
        shards.setdefault(layer[0] if layer else name, []).append(name)
    yield from shards.values()


def _random(name: str, shape: Any, generator: Any) -> Any:
    import torch

    if len(shape) == 1:
        return torch.full(shape, float("norm" in name and name.endswith("weight")), dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


def measure(checkpoint: Path, work: Path, algorithm: str, samples: int, memory: float) -> dict[str, Any]:
    weights = sorted(checkpoint.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in weights)
    drop_caches()
    began = time.perf_counter()
    for file in weights:
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass
    reading = time.perf_counter() - began
    drop_caches()
    recipe = work / f"{algorithm}.yaml"
    recipe.write_text(RECIPE.format(algorithm=algorithm, samples=samples))
    out = work / f"{checkpoint.name}-{algorithm}"
    shutil.rmtree(out, ignore_errors=True)
    edgevlm = Path(sys.executable).with_name("edgevlm")
    arguments = [edgevlm, "compile", checkpoint, "--target", "host-cpu", "--recipe", recipe, "--out", out]
    seconds, peak, code, printed = limited(arguments, int(memory * GIGA))
    say(printed)
    return {
        "algorithm": algorithm,
        "checkpoint_bytes": size,
        "limit_bytes": int(memory * GIGA),
        "peak_bytes": peak,
        "exit_code": code,
        "seconds": round(seconds, 1),
        "reading_seconds": round(reading, 1),
        "multiple_of_reading": round(seconds / reading, 1),
    }


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def limited(arguments: list[Any], limit: int) -> tuple[float, int, int, str]:
    """(seconds, peak bytes with pages of files, exit code, output) of a command in its own control group."""
    second = (GROUPS / "cgroup.controllers").exists()
    group = (GROUPS if second else GROUPS / "memory") / "edgevlm-benchmark"
    group.mkdir(exist_ok=True)
    (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(limit))
    began = time.perf_counter()
    done = subprocess.run(
        list(map(str, arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
    )
    seconds = time.perf_counter() - began
    peak = int((group / ("memory.peak" if second else "memory.max_usage_in_bytes")).read_text())
    group.rmdir()
    return seconds, peak, done.returncode, done.stdout


if __name__ == "__main__":
    main()
