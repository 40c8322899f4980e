"""Signatures cut out of a .tflite file: the same numbers, in a smaller file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgevlm_runner.runtimes.litert_executors import open_executor
from tiny_litert import SPEC, Files

from edgevlm_deploy.errors import ExportError
from edgevlm_deploy.export import tflite, tflite_excerpt

MODEL = SPEC.graphs["model"]


def test_one_signature_keeps_its_weights_and_answers(litert_files: Files, tmp_path: Path) -> None:
    whole, part = litert_files.shipped / MODEL, tmp_path / "embedder.tflite"
    tflite_excerpt.write(whole, {"embed_1": "embedder"}, part)
    assert list(tflite.load(part).signatures) == ["embedder"]
    assert part.stat().st_size < whole.stat().st_size / 3
    token = {"token_ids": np.array([[7]], np.int32)}
    cut, original = (open_executor(path, 1, "cpu", None, True) for path in (part, whole))
    found, wanted = (one.run(name, token, None) for one, name in ((cut, "embedder"), (original, "embed_1")))
    assert np.array_equal(found["embeddings"], wanted["embeddings"])


def test_signatures_share_their_weights(litert_files: Files, tmp_path: Path) -> None:
    whole, part = litert_files.shipped / MODEL, tmp_path / "decoder.tflite"
    tflite_excerpt.write(whole, {name: name for name in ("prefill_8", "decode")}, part)
    file = tflite.load(part)
    assert set(file.signatures) == {"prefill_8", "decode"}
    prefill = {one.buffer for one in file.weights("prefill_8")}
    assert prefill <= {one.buffer for one in file.weights("decode")}
    alone = tmp_path / "decode.tflite"
    tflite_excerpt.write(whole, {"decode": "decode"}, alone)
    assert part.stat().st_size < 1.5 * alone.stat().st_size


def test_an_image_encoder_takes_rows_of_pixels(litert_files: Files, tmp_path: Path) -> None:
    whole, part = litert_files.shipped / MODEL, tmp_path / "vision.tflite"
    tflite_excerpt.write(whole, {"encode_image": "vision_32"}, part, SPEC.image)
    pixels = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    normalised = (pixels - np.float32(0.5)) / np.float32(0.5)
    channels = np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))
    cut, original = (open_executor(path, 1, "cpu", None, True) for path in (part, whole))
    assert cut.signatures["vision_32"].inputs == {"images": (1, 32, 32, 3)}
    features = cut.run("vision_32", {"images": pixels}, None)
    wanted = original.run("encode_image", {"pixel_values": channels}, None)
    np.testing.assert_allclose(features["image_features"], wanted["image_features"], atol=1e-5)


def test_an_output_can_be_left_out(litert_files: Files, tmp_path: Path) -> None:
    """LiteRT-LM gets no hidden states; the logits are what they were."""
    whole, part = litert_files.shipped / MODEL, tmp_path / "decode.tflite"
    tflite_excerpt.write(whole, {"decode": "decode"}, part, without=("hidden",))
    cut, original = (open_executor(path, 1, "cpu", None, True) for path in (part, whole))
    assert set(original.signatures["decode"].outputs) - set(cut.signatures["decode"].outputs) == {"hidden"}
    inputs = {
        "embeddings": np.ones((1, 1, SPEC.hidden_size), np.float32),
        "input_pos": np.zeros(1, np.int32),
        "mask": np.where(np.arange(SPEC.max_context) > 0, np.float32(-1e4), np.float32(0))[None, None, None],
    }
    found, wanted = (one.run("decode", inputs, one.allocate("decode")) for one in (cut, original))
    assert set(found) == {"logits"}
    np.testing.assert_array_equal(found["logits"], wanted["logits"])


def test_a_missing_signature_is_named(litert_files: Files, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has no signature embed_9, only decode"):
        tflite_excerpt.write(litert_files.shipped / MODEL, {"embed_9": "embedder"}, tmp_path / "out.tflite")
    assert not list(tmp_path.iterdir())


def test_a_truncated_file_is_an_error(litert_files: Files, tmp_path: Path) -> None:
    data = (litert_files.shipped / MODEL).read_bytes()
    (tmp_path / "cut.tflite").write_bytes(data[: len(data) // 2])
    with pytest.raises(ExportError):
        tflite_excerpt.write(tmp_path / "cut.tflite", {"decode": "decode"}, tmp_path / "out.tflite")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.tflite"]


def test_a_weight_that_changed_is_noticed(litert_files: Files, tmp_path: Path) -> None:
    whole, part = litert_files.shipped / MODEL, tmp_path / "embedder.tflite"
    tflite_excerpt.write(whole, {"embed_1": "embedder"}, part)
    data = bytearray(part.read_bytes())
    (weight,) = tflite.load(part).weights("embedder")
    at = data.find(tflite.load(part).values(weight).tobytes())
    data[at + 5] ^= 1
    part.write_bytes(data)
    with pytest.raises(ExportError, match="a weight of embedder differs from embed_1"):
        tflite_excerpt._check_same(tflite.load(whole), tflite.load(part), {"embed_1": "embedder"})
