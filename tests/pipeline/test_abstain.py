"""A recipe with a Selector, from compilation to an answer that is withheld."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_runner import abstain
from edgevlm_runner.bundle import MANIFEST, open_bundle, unpack
from edgevlm_runner.contract import Answer, Item, read_jsonl
from edgevlm_runner.respond import Respondent

from edgevlm_deploy import bundle, pipeline
from edgevlm_deploy.pipeline import certainty
from edgevlm_deploy.pipeline.job import DEMO
from edgevlm_deploy.progress import Silent

pytestmark = pytest.mark.slow

RECIPE = """
name: abstaining
description: Few items, and corruptions under which the demo errs.
components: {decoder: {scheme: w8a16}}
calibration: {samples: 8}
generation: {max_new_tokens: 6, max_context: 128}
evaluation:
  clean_items: 8
  corruptions: [gaussian_noise]
  severities: [5]
  items_per_condition: 8
  bootstrap_resamples: 200
abstain: {by: selector, risk: 0.1, questions: 96}
gates:
  - {metric: answered_risk, max: 1.0}
target_budgets: report
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("build")
    recipe = out / "abstaining.yaml"
    recipe.write_text(RECIPE)
    order = pipeline.Order(model=DEMO, target="host-cpu", recipe=str(recipe), out=out)
    return pipeline.compile(order, Silent())


def test_the_selector_ships_with_what_made_it(compiled: Path) -> None:
    opened = open_bundle(compiled)
    assert opened.model.hidden
    assert opened.certainty.abstain == "selector" and opened.certainty.fitted_on == 192
    assert opened.certainty.threshold is not None and 0 < opened.certainty.threshold < 1
    assert opened.path("graphs/selector.onnx").is_file()
    made = opened.manifest["certainty"]
    assert made["selector"]["difference of the file's scores"] <= 1e-5
    assert len(made["selector"]["trials"]) == 6
    parts = [made["selector"][name] for name in ("trained on", "chosen on", "threshold chosen on")]
    assert sum(parts) == 192 and made["threshold"]["n"] == parts[-1]
    assert opened.manifest["verification"]["hidden_difference"] <= 1e-5


def test_it_learns_on_pictures_that_nothing_else_sees(compiled: Path) -> None:
    (tuning,) = (compiled.parent / "stages").glob("tuning-*")
    learnt_from = {item.image_id for item in read_jsonl(tuning / "items.jsonl", Item)}
    assert len(learnt_from) == 24
    assert not learnt_from & {item.image_id for item in open_bundle(compiled).items}


def test_the_runner_scores_what_the_host_trained_on(compiled: Path) -> None:
    """The same held-out question, answered by the bundle: the features are the artifact's own."""
    opened, stages = open_bundle(compiled), compiled.parent / "stages"
    (tuning,), (held_out,) = stages.glob("tuning-*"), stages.glob("held-out-*")
    asked, said = read_jsonl(tuning / "items.jsonl", Item), read_jsonl(held_out / "answers.jsonl", Answer)
    features = np.fromfile(held_out / "features.f32", np.float32).reshape(len(said), -1)
    select = abstain.load(opened.path(opened.certainty.graph), "onnxruntime")
    with Respondent(opened) as respondent:
        for number in (0, 100, 191):
            item = asked[number]
            if item.corruption is None:  # the bundle holds no pictures of held-out questions
                reply = respondent.ask(item.prompt, tuning / item.image, lambda _: None)
                assert reply.token_ids == said[number].token_ids
                assert reply.selector == pytest.approx(select(features[number]), abs=1e-4)


def ask(path: Path, item: Item, *more: str) -> subprocess.CompletedProcess[str]:
    picture = str(open_bundle(path).root / item.image)
    command = [sys.executable, "-m", "edgevlm_deploy.cli", "run", str(path), "--unsealed", *more]
    command += ["--image", picture, "--prompt", item.prompt]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})


def with_rule(compiled: Path, folder: Path, **changes: Any) -> Path:
    """The bundle with another rule in its certainty.json."""
    unpack(compiled, folder)
    rule = json.loads((folder / "certainty.json").read_text())
    (folder / "certainty.json").write_text(json.dumps({**rule, **changes}))
    assert (folder / MANIFEST).is_file()
    bundle.revise(folder, ["certainty.json"], {})
    return folder


def test_run_abstains_and_says_so(compiled: Path, tmp_path: Path) -> None:
    item = next(one for one in open_bundle(compiled).items if one.image)
    silent = with_rule(compiled, tmp_path / "silent", threshold=1.5)
    said = ask(silent, item)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("(abstained: the selector gives 0.") and "answers need 1.50)" in said.stdout
    told = json.loads(ask(silent, item, "--json").stdout)
    assert told["abstained"] is True and told["answer"] and 0 <= told["selector"] <= 1
    assert told["answer"] not in said.stdout
    by_probability = with_rule(compiled, tmp_path / "maxprob", abstain="maxprob", threshold=0.0)
    told = json.loads(ask(by_probability, item, "--json").stdout)
    assert told["abstained"] is False
    assert ask(by_probability, item).stdout.strip() == told["answer"]
    odds = abstain.log_odds(told["confidence"]) * open_bundle(compiled).certainty.temperature
    assert odds >= abstain.log_odds(told["max_prob"]) - 1e-6, "a mean is no less than the product, unscaled"


def test_a_cut_off_row_is_answered_again(tmp_path: Path) -> None:
    row = 4 * 3
    (tmp_path / "answers.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n{"a"')
    (tmp_path / "features.f32").write_bytes(bytes(2 * row + 5))
    assert certainty._resume(tmp_path, row) == 2
    assert (tmp_path / "answers.jsonl").read_text() == '{"a": 1}\n{"a": 2}\n'
    assert (tmp_path / "features.f32").stat().st_size == 2 * row
    assert certainty._resume(tmp_path / "nothing", row) == 0


def test_pictures_are_dealt_whole() -> None:
    clusters = tuple(f"p{n % 50}" for n in range(400))
    parts = certainty.parts(clusters, 0)
    assert np.array_equal(sum(part.astype(int) for part in parts), np.ones(400))
    sides = [{name for name, inside in zip(clusters, part, strict=True) if inside} for part in parts]
    assert [len(side) for side in sides] == [25, 10, 15]
