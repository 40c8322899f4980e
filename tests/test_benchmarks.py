"""The benchmarks' own arithmetic and files; nothing is timed here."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import calibration_composition, compilation, conditions, page, runtimes, shape, summary
from benchmarks.__main__ import arguments, engines
from benchmarks.contenders import gguf_file
from benchmarks.rounds import Engine, Heat, Result, compete
from benchmarks.workload import ANSWER_TOKENS, OUTPUTS, PROMPT_TOKENS, Round, picture, play, text_prompt, tile
from edgevlm_deploy import resources
from edgevlm_deploy.export import tflite

COMPILED = {
    "quantize_seconds": 1.0,
    "export_seconds": 2.0,
    "peak_rss_bytes": 3e9,
    "graph_bytes": 4e6,
    "verification": {"logits_difference": 1e-6},
}


SMALL_SHAPE = {
    **shape.SMOLVLM_256M,
    "image_token_id": 190,
    "text_config": {
        **shape.SMOLVLM_256M["text_config"],
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    "vision_config": {
        **shape.SMOLVLM_256M["vision_config"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
    },
}


def turns(*speeds: float, vision_ms: float | None = 100.0) -> tuple[Round, ...]:
    """One round per speed in tokens per second."""
    return tuple(
        Round(vision_ms, 1e4 / speed, (1e3 / speed,) * ANSWER_TOKENS, cpu_share=1.0) for speed in speeds
    )


@pytest.fixture
def heat() -> Heat:
    default, int8, q4, q8, float32, bfloat16 = engines("python-of-the-peers")
    return Heat(
        threads=1,
        results=(
            Result(default, 1, turns(100, 90, 110), weight_bytes=90_000_000),
            Result(int8, 1, turns(50, 45, 55), weight_bytes=143_000_000),
            Result(q4, 1, turns(200, 90, 100, vision_ms=None), weight_bytes=90_000_000),
            Result(q8, 1, skipped="ModuleNotFoundError: No module named 'llama_cpp'"),
            Result(float32, 1, turns(20, 18, 22), weight_bytes=500_000_000),
            Result(bfloat16, 1, turns(10, 9, 11), weight_bytes=250_000_000),
        ),
        gb_per_second=(30.0, 20.0, 30.0),
        repetitions=3,
    )


@pytest.fixture
def run(heat: Heat) -> page.Run:
    return page.Run(
        command="python -m benchmarks",
        machine={**conditions.machine(), "cores": 2, "cores_allowed": [1]},
        versions={"numpy": "2"},
        compiled={"default": COMPILED},
        reused=False,
        heats=(heat,),
        other_cores=1.2,
        minutes=3.0,
    )


def test_the_built_in_shape_is_the_published_one(real_data: Path) -> None:
    published = shape.configuration(real_data / "configs" / "SmolVLM-256M-Instruct")

    def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
        found = []
        for key, value in ours.items():
            if isinstance(value, dict):
                found += differences(value, theirs[key])
            elif key in theirs and theirs[key] != value:
                found.append(key)
        return found

    assert differences(shape.SMOLVLM_256M, published) == []


def test_every_contender_gets_the_same_inputs() -> None:
    assert len(text_prompt(49280)) == PROMPT_TOKENS and max(text_prompt(49280)) < 49280
    assert text_prompt(49280) == text_prompt(49280)
    assert tile(32).shape == (1, 3, 32, 32) and np.array_equal(tile(32), tile(32))
    assert tile(32)[0, 1, 5, 7] == picture(32)[5, 7, 1] / np.float32(127.5) - 1


def test_a_turn_reads_once_and_feeds_back_the_likeliest_token() -> None:
    class Counter:
        """Says each token's successor."""

        def __init__(self) -> None:
            self.written: list[int] = []

        def look(self) -> None:
            return None

        def read(self, ids: list[int]) -> Any:
            return np.eye(64, dtype=np.float32)[len(ids)]

        def write(self, token: int) -> Any:
            self.written.append(token)
            return np.eye(64, dtype=np.float32)[(token + 1) % 64]

        def weight_bytes(self) -> int:
            return 0

        def versions(self) -> dict[str, str]:
            return {}

    counter = Counter()
    played = play(counter, [1, 2, 3], threads=1)
    assert counter.written == [(3 + step) % 64 for step in range(ANSWER_TOKENS)]
    assert len(played.decode_ms) == ANSWER_TOKENS
    assert played.vision_ms is None and played.time_to_first_token_ms is None


def test_ratios_are_taken_within_rounds(heat: Heat) -> None:
    found = {(one.engine.key, one.peer.key): one for one in summary.ratios(heat)}
    assert set(found) == {
        ("edgevlm-default", "llama_cpp-Q4_0"),
        ("edgevlm-default", "pytorch-float32"),
        ("edgevlm-default", "pytorch-bfloat16"),
        ("edgevlm-int8", "pytorch-float32"),
        ("edgevlm-int8", "pytorch-bfloat16"),
    }
    llama = found["edgevlm-default", "llama_cpp-Q4_0"]
    assert (llama.decode.median, llama.decode.low, llama.decode.high) == pytest.approx((1.0, 0.5, 1.1))
    assert llama.time_to_first_token is None
    assert found["edgevlm-default", "pytorch-float32"].decode.median == pytest.approx(5.0)


def test_the_roof_is_the_median_bandwidth(heat: Heat, tmp_path: Path) -> None:
    first = next(summary.rows(heat, tmp_path))
    assert first.roof_share == pytest.approx(90e6 * 100 / 30e9)
    assert first.logits_cosine is None


def test_outputs_are_compared_with_pytorch_float32(heat: Heat, tmp_path: Path) -> None:
    (tmp_path / OUTPUTS).mkdir()
    for kind in ("logits", "features"):
        np.save(tmp_path / OUTPUTS / f"pytorch-float32.{kind}.npy", np.array([[1.0, 0.0]], np.float32))
        np.save(tmp_path / OUTPUTS / f"edgevlm-default.{kind}.npy", np.array([1.0, 1.0], np.float32))
    found = {row.engine.key: row for row in summary.rows(heat, tmp_path)}
    assert found["edgevlm-default"].logits_cosine == pytest.approx(0.5**0.5)
    assert found["edgevlm-default"].features_cosine == pytest.approx(0.5**0.5)
    assert found["llama_cpp-Q4_0"].logits_cosine is None


def test_the_page_says_what_was_skipped_and_that_others_were_running(run: page.Run, tmp_path: Path) -> None:
    text = page.markdown(run, tmp_path)
    assert "No module named 'llama_cpp'" in text
    assert "Not a quiet machine" in text and "1.20 of 2 cores" in text
    assert "pinned to core 1" in text
    assert "110.0" in text and "not run" in text
    for table in page.tables(run, tmp_path):
        assert {len(row) for row in table.rows} == {len(table.columns)}, table.title
    assert "llama.cpp" in page.terminal(run, tmp_path)


def test_times_of_an_earlier_compilation_are_called_so(run: page.Run, tmp_path: Path) -> None:
    assert "earlier" not in page.markdown(run, tmp_path)
    assert "## Compilation, by an earlier run" in page.markdown(
        dataclasses.replace(run, reused=True), tmp_path
    )


def test_other_processes_are_what_is_busy_but_not_ours() -> None:
    before = conditions.Clock(wall=0.0, busy=100.0, own=10.0)
    after = conditions.Clock(wall=10.0, busy=117.0, own=22.0)
    assert conditions.other_cores(before, after) == pytest.approx(0.5)
    assert conditions.other_cores(before, conditions.Clock(10.0, 0.0, 22.0)) is None


def test_rotary_rows_become_neighbours() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]  # two heads of four rows: halves a b → neighbours
    assert gguf_file.interleaved(rows, heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_every_weight_lands_in_one_of_the_two_gguf_files(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    checkpoint = shape.write_checkpoint(SMALL_SHAPE, tmp_path) / "model.safetensors"
    numbers = json.loads((tmp_path / "shape.json").read_text())
    text, vision = tmp_path / "text.gguf", tmp_path / "vision.gguf"
    gguf_file.write_text(checkpoint, numbers, "Q4_0", text)
    gguf_file.write_vision(checkpoint, numbers, "Q8_0", vision)
    found = {one.name: one for path in (text, vision) for one in gguf.GGUFReader(path).tensors}
    weights = dict(gguf_file.tensors(checkpoint))
    assert len(found) == len(weights)
    assert sum(int(one.n_elements) for one in found.values()) == sum(one.size for one in weights.values())
    kinds = {name: one.tensor_type.name for name, one in found.items()}
    assert kinds["blk.0.ffn_up.weight"] == "Q4_0" and kinds["output.weight"] == "Q8_0"
    assert kinds["v.blk.0.attn_q.weight"] == "Q8_0" and kinds["v.position_embd.weight"] == "F32"
    norm = found["v.post_ln.bias"].data
    assert np.array_equal(norm, weights["model.vision_model.post_layernorm.bias"])
    head = gguf.dequantize(found["output.weight"].data, gguf.GGMLQuantizationType.Q8_0)
    assert np.abs(head - weights["lm_head.weight"]).max() < 1e-3


def test_safetensors_are_read_without_the_library(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    stored = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.ones(4, np.float16)}
    safetensors.save_file(stored, tmp_path / "model.safetensors")
    found = dict(gguf_file.tensors(tmp_path / "model.safetensors"))
    assert found.keys() == stored.keys()
    for name, values in stored.items():
        assert np.array_equal(found[name], values)


def test_peers_need_nothing_of_edgevlm(repository: Path) -> None:
    """They run in an interpreter that has neither edgevlm nor torch nor transformers."""
    program = (
        "import json, sys, benchmarks.contenders.llama_cpp\n"
        "heavy = {'torch', 'transformers', 'edgevlm_deploy', 'edgevlm_runner', 'onnxruntime', 'pydantic'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_an_engine_that_cannot_start_is_skipped_with_its_reason(tmp_path: Path) -> None:
    absent = Engine("llama_cpp", "Q4_0", "llama.cpp", "Q4_0", str(tmp_path / "no-python"))
    empty = Engine("llama_cpp", "Q8_0", "llama.cpp", "Q8_0", sys.executable)
    found = compete([absent, empty], tmp_path, threads=1, repetitions=1, say=lambda line: None)
    assert "No such file" in found.results[0].skipped
    assert "Error" in found.results[1].skipped
    assert found.gb_per_second[0] > 0


def test_one_command_measures_one_and_two_threads() -> None:
    given = arguments([])
    assert given.threads == [1, 2] and not given.reuse
    assert arguments(["--peer-python", "peers/bin/python"]).peer_python == Path.cwd() / "peers/bin/python"


def test_a_token_reads_the_stored_bits_of_a_tflite_file(litert_files: Any) -> None:
    """Floats of the exact file have four bytes; in the shipped one most weights have one or half of one."""
    files = [root / "graphs" / "model.tflite" for root in (litert_files.exact, litert_files.shipped)]
    exact, shipped = map(compilation.tflite_weight_bytes, files)
    products = tflite.load(files[0]).weights("decode")
    assert exact == sum(4 * int(np.prod(one.shape)) for one in products)
    assert exact / 8 < shipped < exact / 3


def test_one_row_per_runtime_and_recipe() -> None:
    rates = {f"{part}{name}": {"value": 0.5} for part in ("", "corrupted_") for name in runtimes.RATES}
    latency = {"time_to_first_token_ms": [8.0, 9.0, 30.0], "per_token_ms": [2.0, 1.0, 2.0]}
    evidence = {"latency": latency, "peak_rss_bytes": 2e8}
    found = [
        runtimes.Answered("int8", "LiteRT", 4_000_000, {"estimates": rates}, evidence),
        runtimes.Answered("int8", "PyTorch", None, {"estimates": rates}, evidence),
    ]
    table = runtimes.demo_table(found, reused=True)
    assert "earlier run" in table.title and {len(row) for row in table.rows} == {len(table.columns)}
    assert table.rows[0] == ("int8", "LiteRT", *["50.00"] * 6, "4.00", "9.0", "500", "200")
    assert table.rows[1][8] == ""


def test_the_recipe_of_floats_keeps_the_items(tmp_path: Path) -> None:
    made = [resources.recipe(str(runtimes._recipe(name, tmp_path))) for name in runtimes.RECIPES]
    assert not made[0].components and made[1].components
    assert made[0].evaluation == made[1].evaluation
    targets = [resources.target(str(runtimes._target(one, 1, tmp_path))) for one in runtimes.BACKENDS]
    assert [one.threads for one in targets] == [1, 1]


def test_compositions_of_calibration(tmp_path: Path) -> None:
    """Every kind has its own settings; flips of one precision are counted on real answers."""
    settings = calibration_composition.compositions(4)
    assert len({one.model_dump_json() for one in settings.values()}) == len(settings) == 8
    bench = calibration_composition.Bench(tmp_path, pictures=1, per_condition=1)
    assert len(bench.expected) == len(bench.items) == 4 + 2 * 10
    (name, few) = "vision W8A8, min-max", ("dark", "text only")
    found = calibration_composition.table(bench, name, {one: settings[one] for one in few})
    assert [row[0] for row in found.rows] == list(few)
    assert found.rows[0][1].endswith("%]") is False and "% [" in found.rows[0][2]
    assert found.rows[1][1:] == ("impossible", "impossible")
    assert calibration_composition.share([True, False, False, False]).startswith("25.00% [4.56, 69.94]")
