"""From a bundle to a verdict on this machine, and what a seal lets through."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from edgevlm_runner.bundle import open_bundle
from edgevlm_runner.contract import Answer, read_jsonl

from edgevlm_deploy import ask, validation
from edgevlm_deploy.errors import BundleError
from edgevlm_deploy.progress import Silent
from edgevlm_deploy.verdict import Outcome

pytestmark = pytest.mark.slow


@pytest.fixture
def bundle(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(compiled, tmp_path / compiled.name))


@pytest.fixture(scope="module")
def validated(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> validation.Validation:
    path = Path(shutil.copy(compiled, tmp_path_factory.mktemp("validated") / compiled.name))
    return validation.validate(path, False, Silent())


def test_a_passing_bundle_is_sealed_with_its_evidence(validated: validation.Validation) -> None:
    assert validated.verdict.outcome is Outcome.PASS
    assert validated.sealed
    opened = open_bundle(validated.bundle)
    assert opened.seal is not None and opened.seal["deployable"] is True
    assert set(opened.seal["evidence"]) == {"answers.jsonl", "evidence.json", "metrics.json", "verdict.json"}
    assert len(read_jsonl(opened.root / "evidence" / "answers.jsonl", Answer)) == len(opened.items)
    assert validated.report.stat().st_size > 10_000


def test_latency_and_memory_are_the_runners_own(validated: validation.Validation) -> None:
    latency = validated.evidence["latency"]
    assert len(latency["time_to_first_token_ms"]) == 12
    pairs = zip(latency["time_to_first_token_ms"], latency["latency_ms"], strict=True)
    assert all(0 < first <= whole for first, whole in pairs)
    assert 20e6 < validated.evidence["peak_rss_bytes"] < 300e6, "torch is not in that process"
    assert validated.evidence["device_bytes"] == 0, "ONNX Runtime computes on the CPU"
    assert validated.evidence["board"]["samples"] > 0


def test_evidence_can_come_from_another_machine(
    validated: validation.Validation, bundle: Path, tmp_path: Path
) -> None:
    """`python -m edgevlm_runner` on a device, its folder copied back, judged here."""
    command = [sys.executable, "-m", "edgevlm_runner", str(bundle), "--out", str(tmp_path / "evidence")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"answered": 28, "items": 28}
    judged = validation.judge(open_bundle(bundle), bundle, tmp_path / "evidence")
    assert judged.verdict.outcome is Outcome.PASS
    before = {one.item_id: one.text for one in read_jsonl(validated.directory / "answers.jsonl", Answer)}
    after = {one.item_id: one.text for one in read_jsonl(tmp_path / "evidence/answers.jsonl", Answer)}
    assert before == after


def test_the_runner_in_the_bundle_runs_alone(bundle: Path, tmp_path: Path) -> None:
    """Isolated from the installed packages of edgevlm: only the bundle's own copy is on the path."""
    root = open_bundle(bundle).root
    program = (
        f"import sys; sys.path = [p for p in sys.path if 'main' not in p or 'site-packages' in p]; "
        f"sys.path.insert(0, {str(root / 'runner')!r}); sys.argv = ['edgevlm_runner', {str(bundle)!r}, "
        f"'--out', {str(tmp_path / 'out')!r}]; import edgevlm_runner; "
        f"assert edgevlm_runner.__file__.startswith({str(root)!r}); "
        "from edgevlm_runner.__main__ import main; sys.exit(main())"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=tmp_path)
    assert (tmp_path / "out" / "evidence.json").is_file()


def test_evidence_of_another_bundle_is_refused(validated: validation.Validation, bundle: Path) -> None:
    opened = open_bundle(bundle)
    evidence = json.loads((validated.directory / "evidence.json").read_text())
    evidence["bundle"] = "0" * 64
    folder = bundle.parent / "evidence"
    shutil.copytree(validated.directory, folder)
    (folder / "evidence.json").write_text(json.dumps(evidence))
    with pytest.raises(BundleError, match="evidence of another bundle"):
        validation.judge(opened, bundle, folder)


def test_a_failing_bundle_is_not_sealed_unless_asked_and_then_marked(
    checkpoint: Path, recipe: Path, compiled: Path, tmp_path: Path
) -> None:
    from edgevlm_deploy import pipeline

    out = tmp_path / "build"
    shutil.copytree(compiled.parent, out)
    strict = tmp_path / "small.yaml"
    strict.write_text(recipe.read_text() + "# stricter\n")
    text = strict.read_text().replace(
        "{metric: divergence_rate, max: 1.0}", "{metric: bundle_bytes, max: 1000}"
    )
    strict.write_text(text)
    order = pipeline.Order(model=str(checkpoint), target="host-cpu", recipe=str(strict), out=out)
    path = pipeline.compile(order, Silent())
    refused = validation.validate(path, False, Silent())
    assert refused.verdict.outcome is Outcome.FAIL and not refused.sealed
    assert open_bundle(path).seal is None
    with pytest.raises(BundleError, match="has not passed its gates"):
        ask.answer(path, "What is it?", None, False, lambda _: None)
    marked = validation.validate(path, True, Silent())
    assert marked.sealed and not marked.to_json()["deployable"]
    seal = open_bundle(path).seal
    assert seal is not None and seal["deployable"] is False and "Not deployable" in seal["statement"]


def test_a_tampered_bundle_is_refused_by_every_command(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "cache"))  # no sound copy from before
    content = bytearray(bundle.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    bundle.write_bytes(bytes(content))
    with pytest.raises(BundleError):
        validation.validate(bundle, False, Silent())
    with pytest.raises(BundleError):
        ask.answer(bundle, "What is it?", None, True, lambda _: None)


def test_questions_are_answered_with_and_without_a_picture(
    validated: validation.Validation, tmp_path: Path
) -> None:
    from edgevlm_deploy.demo.scenes import Split, scene

    scene(Split.EVALUATION, 0).image.save(tmp_path / "scene.png")
    pieces: list[str] = []
    reply = ask.answer(validated.bundle, "How many?", tmp_path / "scene.png", False, pieces.append)
    assert "".join(pieces).strip() == reply["answer"]
    assert 0 < reply["confidence"] <= 1 and reply["deployable"]
    assert ask.answer(validated.bundle, "How many?", None, False, lambda _: None)["tokens"] > 0
