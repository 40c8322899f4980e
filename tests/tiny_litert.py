"""A tiny VLM as float and as integer .tflite, made once for all test processes of a run."""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.util
import sys
from pathlib import Path
from typing import Any

from edgevlm_runner.contract import ImageSpec, ModelSpec, PromptSpec

IMAGE_TOKEN = 300
SPEC = ModelSpec(
    family="smolvlm",
    runtime="litert",
    graphs={"model": "graphs/model.tflite"},
    image=ImageSpec(32, 32, False, None, 1, 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    prompt=PromptSpec("{image}{question}", "{question}", "<image>", "<fake>", "<global>", 4),
    image_token_id=IMAGE_TOKEN,
    eos_token_ids=(2,),
    max_new_tokens=8,
    max_context=64,
    layers=2,
    kv_heads=2,
    head_dim=16,
    hidden_size=64,
    vocab_size=320,
    hidden=True,
)
CACHES, PREFILLS = (32, 64), (8,)


@dataclasses.dataclass(frozen=True)
class Files:
    """Folders with `graphs/model.tflite`; `reference` holds the quantised table that they were made from."""

    exact: Path
    shipped: Path
    reference: Path


def tiny_vlm() -> Any:
    """The module with the random model of tests/export: test folders cannot import each other."""
    if "tiny_vlm" not in sys.modules:
        file = Path(__file__).parent / "export" / "conftest.py"
        spec = importlib.util.spec_from_file_location("tiny_vlm", file)
        assert spec is not None and spec.loader is not None
        sys.modules["tiny_vlm"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["tiny_vlm"])
    return sys.modules["tiny_vlm"]


def source() -> Any:
    from edgevlm_deploy.backends.half import half_precision

    return half_precision(tiny_vlm().random_smolvlm())


def table() -> Any:
    """Every form that a .tflite file can hold; value projections stay fp16."""
    from edgevlm_deploy.quantize.table import QuantizedTable

    forms = {  # ending of the name → bits, columns per scale
        "text_model.layers.0.self_attn.q_proj": (4, 32),
        "mlp.gate_proj": (3, None),
        "mlp.down_proj": (4, None),
        "mlp.fc2": (4, 64),
        "mlp.up_proj": (8, None),
    }
    modules = {}
    for name, module in source().named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim != 2 or "position_embedding" in name or name.endswith("v_proj"):
            continue
        bits, block = next((form for end, form in forms.items() if name.endswith(end)), (8, None))
        modules[name] = tiny_vlm().round_to_nearest(weight.detach().numpy(), bits, block)
    return QuantizedTable(modules)


def make(folder: Path) -> Files:
    """Export and quantise below `folder`, once: other processes wait for the first."""
    from edgevlm_deploy.export import litert, tflite_integers
    from edgevlm_deploy.quantize import fakequant
    from edgevlm_deploy.quantize.quantized_model import QuantizedModel

    files = Files(folder / "exact", folder / "shipped", folder / "reference")
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if files.reference.is_dir():
            return files
        model = SPEC.graphs["model"]
        for root in (files.exact, files.shipped):
            (root / model).parent.mkdir(parents=True, exist_ok=True)
        quantized = QuantizedModel(table())
        reference = fakequant.apply(source(), quantized)
        litert.export(
            reference, litert.StaticLengths(CACHES, PREFILLS), files.exact / model, SPEC.image, SPEC.hidden
        )
        tflite_integers.write(files.exact / model, quantized.table, files.shipped / model)
        quantized.save(files.reference)
    return files
