"""The checkpoint through edgevlm's own stages: plan, quantise, export, verify; timed.

`python -m benchmarks.compilation DIRECTORY RECIPE THREADS [BACKEND]` writes `DIRECTORY/RECIPE/`, and for
LiteRT `DIRECTORY/RECIPE-litert/`. A Jetson target's name in place of BACKEND compiles for that board.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.shape import CHECKPOINT
from benchmarks.workload import IMAGE_TOKENS, MAX_CONTEXT, TEXT_TOKENS, text_prompt, tile

CALIBRATION_SAMPLES = 2
"""Ranges of random weights need no data; a real calibration set costs one forward pass per sample."""


TARGETS = {"onnxruntime": "host-cpu", "litert": "snapdragon-8-gen3"}
"""Backend → the target that is compiled for; TensorRT has one per board."""


def folder(recipe_name: str, backend: str) -> str:
    return recipe_name if backend == "onnxruntime" else f"{recipe_name}-{backend}"


def compile_recipe(directory: Path, recipe_name: str, backend: str = "onnxruntime") -> dict[str, Any]:
    """Graphs below `directory / folder(…)`, and `compiled.json` with seconds, bytes and differences.

    The recipe's algorithm for the decoder is replaced by rounding to nearest: GPTQ finds other integers,
    which take the same time to run. LiteRT gets one cache length, `MAX_CONTEXT`. The recipe `fp32` stores
    all weights in fp16 and computes in fp32.
    """
    from edgevlm_runner.contract import to_json
    from edgevlm_runner.inputs import Inputs
    from edgevlm_runner.measure import peak_rss_bytes

    from edgevlm_deploy import backends, plan, quantize, resources, source
    from edgevlm_deploy.recipe import Algorithm

    target = resources.target(TARGETS.get(backend, backend))
    recipe = resources.recipe("int8" if recipe_name == "fp32" else recipe_name)
    rounded = {
        component: precision.model_copy(update={"algorithm": Algorithm.RTN})
        for component, precision in recipe.components.items()
        if recipe_name != "fp32"
    }
    one_cache = recipe.generation.model_copy(update={"cache_lengths": (MAX_CONTEXT,)})
    recipe = recipe.model_copy(update={"components": rounded, "generation": one_cache})
    out = directory / folder(recipe_name, backend)
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    model = source.inspect(directory / CHECKPOINT)
    planned = plan.resolve(recipe, target, model.modules)
    spec = _spec(model, target.backend.value, backends.graph_names(target.backend))
    spec = backends.with_profiles(spec, recipe, target)
    quantized = None
    if planned.request:
        quantized = quantize.quantize(
            lambda: source.load(model), planned.request, _batches(spec), recipe.quantizer
        )
    quantised = time.perf_counter()
    sample = Inputs(tile(spec.image.tile_size), picture_prompt(spec.vocab_size, spec.image_token_id))
    compile_graphs = backends.compiler(planned, list)
    compiled = compile_graphs(lambda: source.load(model), quantized, spec, [sample], out)
    ended = time.perf_counter()
    (out / "spec.json").write_text(json.dumps(to_json(spec)))
    result = {
        "quantize_seconds": quantised - began,
        "export_seconds": ended - quantised,
        "peak_rss_bytes": peak_rss_bytes(),
        "graph_bytes": sum(compiled.files.values()),
        "weight_bytes_per_token": (
            tflite_weight_bytes(out / spec.graphs["model"])
            if backend == "litert"
            else weight_bytes(out / spec.graphs["decoder"])
        ),
        "verification": dict(compiled.verification),
    }
    (out / "compiled.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def picture_prompt(vocab_size: int, image_token_id: int) -> Any:
    """int64 [1, T]: the tile's tokens, then text."""
    import numpy as np

    text = text_prompt(vocab_size)[:TEXT_TOKENS]
    return np.array([[image_token_id] * IMAGE_TOKENS + text], np.int64)


def weight_bytes(decoder: Path) -> int:
    """What one decoded token reads: every initializer of the decoder as stored, but the rotary tables."""
    from edgevlm_deploy.export import graph

    initializers = graph.load(decoder).graph.initializers.values()
    tables = ("rotary.", "cosine_sine")
    return sum(one.const_value.nbytes for one in initializers if not one.name.startswith(tables))


def tflite_weight_bytes(path: Path) -> int:
    """The same of a .tflite file: constant operands of `decode`'s products, and their scales."""
    from edgevlm_deploy.export import tflite

    bits = {"INT4": 4, "INT8": 8, "FLOAT16": 16, "FLOAT32": 32}
    total = 0
    for weight in tflite.load(path).weights("decode"):
        total += math.prod(weight.shape) * bits[weight.tensor_type] // 8
        if weight.scale is not None:
            total += weight.scale.size * (4 if weight.block is None else 2)
    return total


def _spec(model: Any, backend: str, graphs: dict[str, str]) -> Any:
    """Prompts come as token ids here, so the checkpoint needs no tokenizer and no chat template."""
    from edgevlm_runner.contract import ImageSpec, ModelSpec, PromptSpec

    shape = model.architecture
    half = (0.5, 0.5, 0.5)
    return ModelSpec(
        family=model.family,
        runtime=backend,
        graphs=graphs,
        image=ImageSpec(shape.image_size, 4 * shape.image_size, True, None, 1, 1 / 255, half, half),
        prompt=PromptSpec("{image}{question}", "{question}", "<image>", "", "", shape.tokens_per_tile),
        image_token_id=shape.image_token_id,
        eos_token_ids=(),
        max_new_tokens=32,
        max_context=MAX_CONTEXT,
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden_size=shape.hidden_size,
        vocab_size=shape.vocab_size,
    )


def _batches(spec: Any) -> list[dict[str, Any]]:
    import torch

    ids = torch.from_numpy(picture_prompt(spec.vocab_size, spec.image_token_id))
    side = spec.image.tile_size
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.from_numpy(tile(side))[None],
        "pixel_attention_mask": torch.ones((1, 1, side, side), dtype=torch.bool),
    }
    return [batch] * CALIBRATION_SAMPLES


def main() -> None:
    import torch

    torch.set_num_threads(int(sys.argv[3]))
    compile_recipe(Path(sys.argv[1]), sys.argv[2], *sys.argv[4:])


if __name__ == "__main__":
    main()
