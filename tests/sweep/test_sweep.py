"""Whole sweeps: cells in processes of their own and on a real Ray cluster; what fails fails alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgevlm_deploy.sweep import engines, grid, rows

pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `cluster`)")

GRID = """
name: small
target: host-cpu
models: [demo]
recipes:
  - {recipe: int8, calibration: {samples: 4}}
  - {recipe: int8, name: gptq-3, calibration: {samples: 4},
     components: {vision_encoder: {scheme: w3a16_channel, algorithm: smoothquant}}}
evaluation:
  clean_items: 8
  corruptions: [fog]
  severities: [2]
  items_per_condition: 4
  temperature_items: 0
  bootstrap_resamples: 100
"""
"""The second recipe asks for what no quantiser does."""


def edgevlm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgevlm_deploy.cli", "sweep", *arguments]
    given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=given)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """(folder, the first run)."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "grid.yaml").write_text(GRID)
    return folder, edgevlm(str(folder / "grid.yaml"), "--out", str(folder / "build"))


def stages(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "build" / "stages").glob("*-*")}


@pytest.mark.slow
def test_a_cell_that_fails_is_named_and_the_others_go_on(swept: Any) -> None:
    folder, done = swept
    assert done.returncode == 27, done.stderr
    assert "1 of the cells failed: demo × gptq-3. The same command tries them again." in done.stderr
    assert "Traceback" not in done.stderr
    assert (
        "FP16 reference" in done.stdout
        and "failed: Recipe gptq-3 does not fit target host-cpu" in done.stdout
    )
    assert (folder / "build" / "small.parquet").is_file() and (folder / "build" / "small.html").is_file()


@pytest.mark.slow
def test_a_finished_cell_is_not_run_again(swept: Any) -> None:
    folder, _ = swept
    before = stages(folder)
    assert any(name.startswith("cell-") for name in before)
    again = edgevlm(str(folder / "grid.yaml"), "--out", str(folder / "build"), "--json")
    assert again.returncode == 27 and stages(folder) == before
    told = json.loads(again.stdout)
    assert [one["recipe"] for one in told["cells"]] == ["FP16 reference", "int8"]
    assert told["cells"][1]["alone"] is True and told["cells"][1]["latency_ms_p95"] > 0
    # One more severity is another table of items, so another cell.
    more = GRID.replace("severities: [2]", "severities: [2, 4]")
    assert len(grid.Sweep.model_validate(_yaml(more)).items.severities) == 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a Ray cluster on this machine."""
    ray = pytest.importorskip("ray", reason="ray is not installed (extra `cluster`)")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield str(ray.get_runtime_context().gcs_address)
    ray.shutdown()


# JAX, which LiteRT's converter leaves loaded in this process, warns of Ray's forks; they execute at once.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.slow
def test_the_same_sweep_on_a_ray_cluster(swept: Any, cluster: str) -> None:
    folder, _ = swept
    before = stages(folder)
    done = edgevlm(
        str(folder / "grid.yaml"),
        "--out",
        str(folder / "build"),
        "--engine",
        "ray",
        "--json",
        RAY_ADDRESS=cluster,
    )
    assert done.returncode == 27, done.stderr
    told = json.loads(done.stdout)
    assert [one["recipe"] for one in told["cells"]] == ["FP16 reference", "int8"]
    assert list(told["failed"]) == ["demo × gptq-3"]
    assert "does not fit target host-cpu" in told["failed"]["demo × gptq-3"]
    assert stages(folder) == before


CLASSIFIERS = """
name: classifiers
target: host-cpu
models: [demo-clip]
recipes: [{recipe: zero-shot-classifier, calibration: {samples: 4}}]
evaluation:
  clean_items: 24
  corruptions: [fog]
  severities: [2]
  items_per_condition: 4
  temperature_items: 0
  bootstrap_resamples: 100
"""


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.slow
def test_a_dual_encoder_on_a_ray_cluster_and_then_in_processes(tmp_path: Path, cluster: str) -> None:
    """Ray computes the cell; the processes find it finished and tell the same."""
    (tmp_path / "grid.yaml").write_text(CLASSIFIERS)
    command = (str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "build"), "--json")
    done = edgevlm(*command, "--engine", "ray", RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    before = stages(tmp_path)
    again = edgevlm(*command)
    assert again.returncode == 0 and stages(tmp_path) == before
    told = json.loads(done.stdout)
    assert json.loads(again.stdout) == told and told["failed"] == {}
    assert [one["recipe"] for one in told["cells"]] == ["FP16 reference", "zero-shot-classifier"]
    clean, fog = rows.read(tmp_path / "build" / "classifiers.parquet").rows
    assert (clean.model, clean.items, fog.corruption, fog.items) == ("demo-clip", 24, "fog", 4)
    assert clean.accuracy is not None and clean.accuracy > 0.8
    assert clean.mcm_auroc == fog.mcm_auroc is not None and clean.reference_mcm_auroc is not None
    assert clean.worst_group_accuracy is None, "24 pictures make no group of ten"


@pytest.mark.slow
def test_no_cluster_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed (extra `cluster`)")
    (tmp_path / "grid.yaml").write_text(GRID)
    done = edgevlm(
        str(tmp_path / "grid.yaml"), "--out", str(tmp_path), "--engine", "ray", RAY_ADDRESS="127.0.0.1:9"
    )
    assert done.returncode == 19, done.stderr
    assert "no Ray cluster at" in done.stderr and "Traceback" not in done.stderr


def test_a_cell_ends_in_a_sentence_whatever_happens_to_its_process(tmp_path: Path) -> None:
    (cell,) = grid.Sweep.model_validate({**_yaml(GRID), "models": ["no/where"], "recipes": ["int8"]}).cells()
    offline = cell.model_copy(update={"model": cell.model.model_copy(update={"offline": True})})
    finished = engines.in_process(offline, str(tmp_path), True)
    assert finished.rows == () and "no/where" in finished.failure
    assert "no/where" in (tmp_path / "sweeps" / "small-where-int8.log").read_text()
    assert list(engines.locally([offline], tmp_path, 1)) == [finished]


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (12, "warning\nerror: it does not fit.\n", "it does not fit."),
        (-9, "", "its process was ended by SIGKILL, perhaps for its memory; see x.log"),
        (-11, "", "its process was ended by SIGSEGV; see x.log"),
        (
            1,
            "Traceback ...\nValueError: error: x\n",
            "its process ended unexpectedly (exit code 1); see x.log",
        ),
    ],
)
def test_why(code: int, said: str, why: str) -> None:
    assert engines._why(code, said, Path("x.log")) == why


def _yaml(text: str) -> dict[str, Any]:
    import yaml

    data: dict[str, Any] = yaml.safe_load(text)
    return data
