"""`edgevlm diff` on real bundles: their evidence is sealed in them or lies beside them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from edgevlm_runner.bundle import open_bundle
from edgevlm_runner.contract import TEMPERATURE, Answer, read_jsonl

from edgevlm_deploy import bundle as bundles
from edgevlm_deploy import pipeline, validation
from edgevlm_deploy.metrics.normalize import normalize
from edgevlm_deploy.progress import Silent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sealed(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It passed; its evidence is in the bundle alone."""
    path = Path(shutil.copy(compiled, tmp_path_factory.mktemp("sealed") / "int4.edgevlm"))
    assert validation.validate(path, False, Silent()).sealed
    shutil.rmtree(path.with_suffix(".evidence"))
    return path


@pytest.fixture(scope="module")
def refused(checkpoint: Path, recipe: Path, compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coarser, one condition more, and it failed; its evidence lies beside the bundle."""
    out = tmp_path_factory.mktemp("refused")
    shutil.copytree(compiled.parent, out, dirs_exist_ok=True)
    text = recipe.read_text().replace("{scheme: w4a16_g32}", "{scheme: w3a16_channel}")
    text = text.replace("metric: divergence_rate, max: 1.0", "metric: bundle_bytes, max: 1000")
    coarse = out / "coarse.yaml"
    coarse.write_text(
        text.replace("name: small", "name: coarse").replace("jpeg_compression", "jpeg_compression, fog")
    )
    order = pipeline.Order(model=str(checkpoint), target="host-cpu", recipe=str(coarse), out=out)
    path = pipeline.compile(order, Silent())
    assert not validation.validate(path, False, Silent()).sealed
    return path


def diff(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgevlm_deploy.cli", "diff", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def said(path: Path) -> dict[str, str]:
    """Item → answer, without the items that only the temperature is fitted on."""
    opened = open_bundle(path)
    counted = {item.id for item in opened.items if item.condition != TEMPERATURE}
    answers = read_jsonl(bundles.evidence_of(opened, path) / "answers.jsonl", Answer)
    return {one.item_id: one.text for one in answers if one.item_id in counted}


def test_two_bundles(sealed: Path, refused: Path, tmp_path: Path) -> None:
    done = diff(sealed, refused, "--json", "--html", tmp_path / "diff.html")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    before, now = said(sealed), said(refused)
    common = before.keys() & now.keys()
    assert (found["items"], found["only_in_a"]) == (len(common), len(before) - len(common))
    assert found["only_in_b"] == len(now) - len(common) > 0, "fog"
    expected = {one for one in common if normalize(before[one]) != normalize(now[one])}
    assert {one["id"] for one in found["changed"]} == expected
    assert found["a"]["recipe"] == "small" and found["b"]["recipe"] == "coarse"
    moves = [abs(row["confidence_change"]["value"]) for row in found["rows"]]
    assert max(moves) > 0, "three bits are not four"
    assert "coarse" in (tmp_path / "diff.html").read_text(encoding="utf-8")


def test_fp16_and_a_bundle_as_file_and_folder(refused: Path, tmp_path: Path) -> None:
    done = diff("reference", refused)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("A    FP16 reference\n")
    folder = tmp_path / "coarse"
    bundles.unpack(refused, folder)
    shutil.copytree(refused.with_suffix(".evidence"), folder.with_suffix(".evidence"))
    assert diff("reference", folder).stdout == done.stdout
    opened = open_bundle(refused)
    reference = {one.item_id: one.text for one in read_jsonl(opened.path("reference.jsonl"), Answer)}
    now = said(refused)
    changed = sum(normalize(reference[one]) != normalize(now[one]) for one in now)
    sentence = done.stdout.splitlines()[-1]
    assert sentence.startswith(
        f"B answers {changed} of {len(now)} items" if changed else "B gives A's answer"
    )


def test_a_bundle_without_evidence(compiled: Path, sealed: Path, tmp_path: Path) -> None:
    unjudged = shutil.copy(compiled, tmp_path / "new.edgevlm")
    done = diff(sealed, unjudged)
    assert done.returncode == 20 and done.stdout == ""
    assert f"Run `edgevlm validate {unjudged}` first" in done.stderr
    assert "Traceback" not in done.stderr
