"""The LiteRT runtime on a real file: static lengths, a cache in place, and what it refuses."""

from __future__ import annotations

import builtins
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_runner.errors import ExecutionError, PromptError, RuntimeUnavailable
from edgevlm_runner.generate import generate
from edgevlm_runner.runtimes import load
from edgevlm_runner.runtimes.litert import LiteRt, pieces
from tiny_litert import IMAGE_TOKEN, SPEC, Files

MODEL = SPEC.graphs["model"]


@pytest.fixture(scope="module")
def root(litert_files: Files) -> Path:
    return litert_files.shipped


@pytest.fixture(scope="module")
def opened(root: Path) -> Iterator[LiteRt]:
    with LiteRt(root, SPEC) as runtime:
        runtime.start(SPEC.max_context)
        yield runtime


@pytest.fixture
def runtime(opened: LiteRt) -> LiteRt:
    opened.reset()
    return opened


def embeds(tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, tokens, SPEC.hidden_size)).astype(np.float32)


def damaged(root: Path, tmp_path: Path, change: Any) -> Path:
    """A copy whose file is `change(bytes)`."""
    copy = tmp_path / "damaged"
    shutil.copytree(root, copy)
    (copy / MODEL).write_bytes(change((copy / MODEL).read_bytes()))
    return copy


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (3, [(0, 3, 8)]),
        (8, [(0, 8, 8)]),
        (9, [(0, 9, 32)]),
        (40, [(0, 32, 32), (32, 8, 8)]),
        (64, [(0, 32, 32), (32, 32, 32)]),
        (0, []),
    ],
)
def test_a_prompt_is_cut_into_the_graphs_lengths(count: int, expected: list[tuple[int, int, int]]) -> None:
    assert pieces(0, count, [1, 8, 32], 64) == expected


def test_padding_never_reaches_beyond_the_cache() -> None:
    for first in range(30):
        for count in range(1, 31 - first):
            cut = pieces(first, count, [1, 8], 30)
            assert sum(taken for _, taken, _ in cut) == count
            assert all(at + size <= 30 for at, _, size in cut)


def test_pieces_equal_one_token_at_a_time(runtime: LiteRt) -> None:
    """29 tokens: three prefills of 8, one of 4 with padding, one decoded."""
    x = embeds(29)
    whole = runtime.step(x)
    runtime.reset()
    runtime.step(x[:, :5])
    runtime.step(x[:, 5:6])
    np.testing.assert_allclose(runtime.step(x[:, 6:]), whole, rtol=1e-5, atol=1e-6)
    runtime.reset()
    for i in range(29):
        one_by_one = runtime.step(x[:, i : i + 1])
        assert runtime._length == 32 or i > 0
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-5, atol=1e-6)


def test_the_shortest_cache_that_holds_prompt_and_answer_is_taken(runtime: LiteRt) -> None:
    for tokens, length in ((24, 32), (25, 64), (3, 32)):
        runtime.reset()
        runtime.step(embeds(tokens))
        assert runtime._length == length


def test_caches_of_all_lengths_agree(root: Path, runtime: LiteRt) -> None:
    x = embeds(12)
    short = runtime.step(x)
    with LiteRt(root, dataclasses.replace(SPEC, max_new_tokens=50)) as longest:
        longest.start(SPEC.max_context)
        np.testing.assert_allclose(longest.step(x), short, rtol=1e-5, atol=1e-6)
        assert longest._length == 64


def test_the_cache_is_written_in_place(runtime: LiteRt) -> None:
    cache = runtime._cache(32)
    buffers = dict(cache)
    runtime.step(embeds(4))
    assert all(cache[name] is buffer for name, buffer in buffers.items())
    shape = (SPEC.kv_heads, 32, SPEC.head_dim)
    keys = cache["kv_cache_k_0"].read(int(np.prod(shape)), np.float32).reshape(shape)
    assert np.abs(keys[:, :4]).max(axis=-1).all()


def test_the_interpreter_copies_and_says_the_same(root: Path, runtime: LiteRt) -> None:
    with LiteRt(root, SPEC, in_place=False) as copying:
        copying.start(SPEC.max_context)
        assert copying.versions()["executor"] == "Interpreter"
        for tokens in (13, 1, 1):
            np.testing.assert_array_equal(copying.step(embeds(tokens)), runtime.step(embeds(tokens)))
            np.testing.assert_array_equal(copying.hidden(), runtime.hidden())
        ids = np.arange(3, 20)[None]
        np.testing.assert_array_equal(copying.embed(ids), runtime.embed(ids))


def test_reset_forgets(runtime: LiteRt) -> None:
    first = runtime.step(embeds(4)).copy()
    runtime.step(embeds(7, seed=1))
    runtime.reset()
    np.testing.assert_array_equal(runtime.step(embeds(4)), first)


def test_logits_are_the_callers_own(runtime: LiteRt) -> None:
    first = runtime.step(embeds(4))
    hidden, kept = runtime.hidden(), first.copy()
    kept_hidden = hidden.copy()
    runtime.step(embeds(1, seed=1))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(hidden, kept_hidden)
    assert np.abs(runtime.hidden() - hidden).max() > 0


def test_tiles_are_encoded_in_order(runtime: LiteRt) -> None:
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    both = runtime.encode_image(pixels)
    assert both.shape == (2, 4, SPEC.hidden_size)
    np.testing.assert_array_equal(both[1:], runtime.encode_image(pixels[1:]))


def test_answers_a_question_about_a_picture(root: Path) -> None:
    ids = np.array([[5, *[IMAGE_TOKEN] * 4, 7, 8]])
    pixels = np.zeros((1, 3, 32, 32), np.float32)
    with load(root, SPEC, threads=2) as runtime:
        made = generate(runtime, SPEC, pixels, ids)
        assert made.token_ids == generate(runtime, SPEC, pixels, ids).token_ids
    assert made.timings.vision_seconds > 0


def test_a_prompt_beyond_the_context_is_refused_before_decoding(runtime: LiteRt) -> None:
    with pytest.raises(PromptError, match=r"57 tokens .* exceeds the context of 64"):
        generate(runtime, SPEC, None, np.full((1, 57), 5))
    assert runtime._tokens == 0


def test_a_prompt_longer_than_every_prefill_is_cut(root: Path) -> None:
    """48 tokens, the graphs take 8 at once: the answer is that of smaller pieces."""
    ids = np.arange(3, 51)[None]
    with load(root, SPEC, threads=1) as runtime:
        made = generate(runtime, SPEC, None, ids)
        runtime.reset()
        runtime.step(runtime.embed(ids[:, :30]))  # more than the short cache holds
        for at in range(30, 48):
            logits = runtime.step(runtime.embed(ids[:, at : at + 1]))
    assert made.prompt_tokens == 48 and made.token_ids[0] == int(np.argmax(logits))


def test_more_tokens_than_the_cache_holds_is_an_error(runtime: LiteRt) -> None:
    runtime.step(embeds(24))
    with pytest.raises(ExecutionError, match="33 tokens do not fit the cache of 32"):
        runtime.step(embeds(9))


def test_a_longer_context_than_the_graphs_have_is_an_error(runtime: LiteRt) -> None:
    with pytest.raises(ExecutionError, match="made for a context of 64 tokens, 65 were"):
        runtime.start(65)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_a_truncated_file_is_an_error(root: Path, tmp_path: Path, share: float) -> None:
    cut = damaged(root, tmp_path, lambda data: data[: int(share * len(data))])
    with pytest.raises(ExecutionError, match=r"model\.tflite: LiteRT refuses this graph"):
        LiteRt(cut, SPEC)


@pytest.mark.parametrize("name", ["decode", "decode_cache_32", "encode_image", "embed_1"])
def test_a_missing_signature_is_an_error(root: Path, tmp_path: Path, name: str) -> None:
    key = b"\0" + name.encode() + b"\0"
    renamed = damaged(root, tmp_path, lambda data: data.replace(key, b"\0" + b"x" * len(name) + b"\0"))
    with pytest.raises(ExecutionError, match=rf"model\.tflite: has no signature {name}, only "):
        LiteRt(renamed, SPEC)


def test_a_missing_file_is_an_error(root: Path) -> None:
    with pytest.raises(ExecutionError, match=r"graph of the model \(elsewhere.tflite\) is missing"):
        LiteRt(root, dataclasses.replace(SPEC, graphs={"model": "elsewhere.tflite"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 4}, "input kv_cache_k_0 of decode"),
        ({"layers": 3}, "input kv_cache_k_2 of decode is None"),
        ({"layers": 1}, r"input kv_cache_k_1 of decode .* manifest says None"),
        ({"hidden_size": 8}, "output image_features of encode_image"),
        ({"vocab_size": 321}, "output logits of decode"),
        ({"max_context": 128}, "input kv_cache_k_0 of decode"),
    ],
)
def test_graphs_of_another_model_are_an_error(root: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ExecutionError, match=message):
        LiteRt(root, dataclasses.replace(SPEC, **change))


def test_input_of_another_shape_is_an_error(runtime: LiteRt) -> None:
    with pytest.raises(ExecutionError, match=r"encode_image on pixel_values \[1, 3, 5, 5\]"):
        runtime.encode_image(np.zeros((1, 3, 5, 5), np.float32))


def test_packed_weights_are_kept_and_found_again(root: Path, runtime: LiteRt, tmp_path: Path) -> None:
    wanted = runtime.step(embeds(9))
    for damage in (False, False, True):
        if damage:
            (kept,) = (tmp_path / "packed").iterdir()
            kept.write_bytes(kept.read_bytes()[:1000])
        with LiteRt(root, SPEC, packed_weights=tmp_path / "packed") as packed:
            packed.start(SPEC.max_context)
            np.testing.assert_array_equal(packed.step(embeds(9)), wanted)
    (kept,) = (tmp_path / "packed").iterdir()
    assert kept.suffix == ".bin" and kept.stat().st_size > 100_000


def test_a_folder_that_cannot_be_written_goes_without_packed_weights(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with LiteRt(root, SPEC, packed_weights=tmp_path / "file" / "packed") as runtime:
        assert runtime.versions()["executor"] == "CompiledModel"


def test_nothing_is_printed(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with LiteRt(root, SPEC) as runtime:
        runtime.start(SPEC.max_context)
        runtime.step(embeds(9))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("absent", "executor"),
    [
        (("ai_edge_litert.compiled_model",), "Interpreter"),
        (("ai_edge_litert.interpreter", "tflite_runtime.interpreter"), None),
    ],
)
def test_without_a_package(
    root: Path, monkeypatch: pytest.MonkeyPatch, absent: tuple[str, ...], executor: str | None
) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in absent:
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    if executor is None:
        with pytest.raises(RuntimeUnavailable, match="pip install 'ai-edge-litert"):
            LiteRt(root, SPEC)
    else:
        with LiteRt(root, SPEC) as runtime:
            assert runtime.versions()["executor"] == executor
