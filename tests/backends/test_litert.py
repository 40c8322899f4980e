"""Compiling for LiteRT: the float file computes what torch does, the shipped one carries the integers."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_runner.inputs import Inputs
from edgevlm_runner.runtimes.litert import LiteRt
from tiny_litert import CACHES, PREFILLS, SPEC, Files, source, table

from edgevlm_deploy.errors import ExportError, QuantizationError
from edgevlm_deploy.export import tflite, tflite_calibration, tflite_integers, tflite_readback, verify_litert
from edgevlm_deploy.export.litert import StaticLengths
from edgevlm_deploy.quantize import fakequant
from edgevlm_deploy.quantize.quantized_model import QuantizedModel
from edgevlm_deploy.quantize.table import QuantizedTable, StaticActivation

MODEL = SPEC.graphs["model"]


@pytest.fixture(scope="module")
def truth() -> QuantizedTable:
    made: QuantizedTable = table()
    return made


@pytest.fixture
def reference(truth: QuantizedTable) -> Any:
    return fakequant.apply(source(), QuantizedModel(truth))


def test_float_graphs_agree_with_torch(reference: Any, litert_files: Files, samples: list[Inputs]) -> None:
    found = verify_litert.verify(reference, SPEC, litert_files.exact, litert_files.shipped, samples)
    assert (found.samples, found.tokens) == (3, 3 * 32)
    for difference in (found.vision_difference, found.embedding_difference, found.logits_difference):
        assert 0 <= difference <= 1e-4
    assert found.hidden_difference is not None and found.hidden_difference <= 1e-4
    assert 1e-4 < found.shipped_logits_difference < 0.1
    assert 0 <= found.shipped_tokens_equal <= 1


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("model.vision_model.post_layernorm.bias", "image features differ"),
        ("model.text_model.embed_tokens.weight", "embeddings differ"),
        ("model.text_model.layers.1.mlp.down_proj.weight", "logits differ"),
    ],
)
def test_a_parameter_that_differs_is_noticed(
    reference: Any, litert_files: Files, samples: list[Inputs], parameter: str, message: str
) -> None:
    import torch

    with torch.no_grad():
        reference.get_parameter(parameter).mul_(1.01)
    with pytest.raises(ExportError, match=message):
        verify_litert.verify(reference, SPEC, litert_files.exact, litert_files.shipped, samples[1:2])


def test_every_integer_is_read_back(litert_files: Files, truth: QuantizedTable) -> None:
    counted = tflite_readback.check(litert_files.exact / MODEL, litert_files.shipped / MODEL, truth)
    assert counted.exact_modules == len(truth)
    assert counted.exact_integers == sum(linear.q.size for linear in truth.values())
    decoders = len(StaticLengths(CACHES, PREFILLS).signatures())
    assert counted.operators > decoders * SPEC.layers * 4


def test_weights_are_stored_as_asked(litert_files: Files, truth: QuantizedTable) -> None:
    file = tflite.load(litert_files.shipped / MODEL)
    stored = {weight.buffer: weight for name in file.signatures for weight in file.weights(name)}
    kinds = [(weight.tensor_type, weight.block) for weight in stored.values()]
    assert {("INT8", None), ("INT4", None), ("INT4", 32), ("INT4", 64)} <= set(kinds)
    halves = [weight.shape for weight in stored.values() if weight.tensor_type == "FLOAT16"]
    assert halves.count((32, 64)) == SPEC.layers, "value projections of the decoder"
    assert not any(kind == "FLOAT32" for kind, _ in kinds)


def test_signatures_share_their_weights(litert_files: Files) -> None:
    file = tflite.load(litert_files.shipped / MODEL)
    long, short = (file.weights(name) for name in ("decode", "decode_cache_32"))
    assert [one.buffer for one in long] == [one.buffer for one in short]
    assert (litert_files.shipped / MODEL).stat().st_size < 0.6 * (litert_files.exact / MODEL).stat().st_size


@pytest.mark.parametrize("what", ["integers", "scales"])
@pytest.mark.parametrize("end", ["lm_head", "layers.0.self_attn.q_proj", "mlp.gate_proj", "mlp.fc2"])
def test_a_changed_number_is_noticed(
    litert_files: Files, truth: QuantizedTable, tmp_path: Path, what: str, end: str
) -> None:
    """One integer or scale of one module, changed in the file itself."""
    name = next(one for one in truth if one.endswith(end))
    linear = truth[name]
    data = bytearray((litert_files.shipped / MODEL).read_bytes())
    if what == "integers":
        q = linear.q.reshape(-1)
        packed = q if linear.bits > 4 else (q[0::2] & 0xF) | (q[1::2] << 4)
        written = packed.astype(np.int8).tobytes()
    else:
        grouped = linear.block != linear.q.shape[1]
        written = linear.scale.astype(np.float16 if grouped else np.float32).tobytes()
    at = data.find(written)
    if at < 0 and what == "scales":  # blocks may also be scaled in bf16
        written = (linear.scale.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        at = data.find(written)
    assert at >= 0
    while at >= 0:  # the scales of a channel stand in every signature
        data[at + 1] ^= 0x10
        at = data.find(written, at + 1)
    changed = tmp_path / "changed.tflite"
    changed.write_bytes(data)
    with pytest.raises(ExportError, match=rf"{end} differs from the quantised table in its {what}"):
        tflite_readback.check(litert_files.exact / MODEL, changed, truth)


def test_a_float_that_changed_is_noticed(litert_files: Files, truth: QuantizedTable, tmp_path: Path) -> None:
    value = source().model.text_model.layers[0].self_attn.v_proj.weight.detach().numpy()
    data = (litert_files.shipped / MODEL).read_bytes()
    half = value.astype(np.float16).tobytes()
    assert half in data
    changed = tmp_path / "changed.tflite"
    changed.write_bytes(data.replace(half, half[2:4] + half[2:]))
    with pytest.raises(ExportError, match=r"a weight \[32, 64\] outside the quantised table was changed"):
        tflite_readback.check(litert_files.exact / MODEL, changed, truth)


def test_a_module_without_a_product_is_an_error(litert_files: Files, truth: QuantizedTable) -> None:
    other = dataclasses.replace(truth["lm_head"], q=-truth["lm_head"].q)
    more = QuantizedTable({**truth, "model.text_model.layers.9.mlp.up_proj": other})
    with pytest.raises(ExportError, match=r"No matrix product .*layers\.9\.mlp\.up_proj"):
        tflite_readback.check(litert_files.exact / MODEL, litert_files.shipped / MODEL, more)


def test_a_truncated_file_is_an_error(litert_files: Files, truth: QuantizedTable, tmp_path: Path) -> None:
    shutil.copy(litert_files.shipped / MODEL, tmp_path / "cut.tflite")
    whole = (tmp_path / "cut.tflite").read_bytes()
    (tmp_path / "cut.tflite").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match=r"cut\.tflite"):
        tflite_readback.check(litert_files.exact / MODEL, tmp_path / "cut.tflite", truth)


def test_equal_weights_need_equal_integers(truth: QuantizedTable) -> None:
    """A tied embedding and head of one scheme are one weight; of two schemes they differ, or are refused."""
    head = truth["lm_head"]
    tied = QuantizedTable({"embed": head, "lm_head": head})
    assert list(tflite_integers.by_weight(tied).values()) == [["embed", "lm_head"]]
    nothing = dataclasses.replace(head, q=np.zeros_like(head.q))
    in_groups = dataclasses.replace(
        nothing, bits=4, block=32, scale=np.repeat(head.scale, head.q.shape[1] // 32, axis=1)
    )
    with pytest.raises(ExportError, match="embed and lm_head have equal weights but other integers"):
        tflite_integers.by_weight(QuantizedTable({"embed": nothing, "lm_head": in_groups}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zero_point": np.zeros((320, 1), np.uint8)}, "symmetric weights"),
        ({"activation": StaticActivation(0.1, 0)}, "no input range from the table"),
        ({"block": 32}, "8 bits in groups of 32 on 64 columns"),
        ({"bits": 4, "block": 16}, "4 bits in groups of 16 on 64 columns"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(
    litert_files: Files, truth: QuantizedTable, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    wrong = QuantizedTable({"lm_head": dataclasses.replace(truth["lm_head"], **change)})
    with pytest.raises(QuantizationError, match=message):
        tflite_integers.write(litert_files.exact / MODEL, wrong, tmp_path / "out.tflite")


@pytest.mark.parametrize("bits", [8, 16])
def test_an_npu_gets_calibrated_integers_on_both_sides_of_a_product(
    litert_files: Files, truth: QuantizedTable, samples: list[Inputs], tmp_path: Path, bits: int
) -> None:
    eight = QuantizedTable({name: linear for name, linear in truth.items() if linear.bits == 8})
    products = {name: bits for name in eight if not name.endswith("embed_tokens")}
    names = ["encode_image", *StaticLengths(CACHES, PREFILLS).signatures()]
    calls = {one: tflite_calibration.calls(litert_files.exact, SPEC, one, samples) for one in names}
    (tmp_path / MODEL).parent.mkdir()
    exact, made = litert_files.exact / MODEL, tmp_path / MODEL
    tflite_integers.write(exact, eight, made, tflite_integers.Calibrated(products, calls))
    assert tflite_readback.check(exact, made, eight, products).exact_modules == len(eight)
    with pytest.raises(ExportError, match=rf"takes and gives \('INT{bits}', 'INT{bits}'\), expected"):
        tflite_readback.check(exact, made, eight)
    pixels = samples[0].pixel_values
    assert pixels is not None
    features = []
    for root in (litert_files.exact, tmp_path):
        with LiteRt(root, SPEC) as runtime:
            features.append(runtime.encode_image(pixels).reshape(-1))
    cosine = features[0] @ features[1] / np.linalg.norm(features[0]) / np.linalg.norm(features[1])
    assert cosine > (0.98 if bits == 8 else 0.9999)
