"""The whole search on an untrained checkpoint: few items, few trials, real compilation."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from edgevlm_deploy import resources, search
from edgevlm_deploy.bundle import open_bundle
from edgevlm_deploy.pipeline import Order
from edgevlm_deploy.progress import Silent
from edgevlm_deploy.report import frontier
from edgevlm_deploy.search import Found, Settings, images

pytestmark = pytest.mark.slow

RECIPE = """
name: small
description: Few items; what is tested is the line, not the model.
components:
  decoder: {scheme: w4a16_g32}
calibration: {samples: 4}
generation: {max_new_tokens: 4, max_context: 128}
evaluation:
  clean_items: 12
  corruptions: [gaussian_noise]
  severities: [3]
  items_per_condition: 8
  bootstrap_resamples: 200
gates:
  - {metric: divergence_rate, max: 1.0}
target_budgets: report
"""


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Order:
    import torch

    from edgevlm_deploy import quiet
    from edgevlm_deploy.demo import model as demo

    folder = tmp_path_factory.mktemp("search")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with quiet.libraries(), warnings.catch_warnings():
        tokenizer = demo.tokenizer(scenes=50)
        demo.save(demo.architecture(tokenizer), tokenizer, folder / "untrained")
    (folder / "small.yaml").write_text(RECIPE)
    model, recipe = str(folder / "untrained"), str(folder / "small.yaml")
    return Order(model=model, target="host-cpu", recipe=recipe, out=folder / "build")


@pytest.fixture(scope="module")
def found(order: Order) -> Found:
    order.out.mkdir()
    return search.search(order, Settings(trials=3, share=1.0), Silent())


@pytest.fixture(scope="module", autouse=True)
def _half_of_the_tokens() -> Iterator[None]:
    """One share per method is enough here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "SHARES", (0.5,))
        yield


def test_what_sees_less_was_examined(found: Found) -> None:
    """Gates that anything passes admit everything; the demo has one tile."""
    assert [one.label for one in found.seen] == ["", "fastv 0.5", "visionzip 0.5", "tome 0.5"]
    assert found.seen[2].prompt_tokens == found.seen[0].prompt_tokens - 8 and found.seen[0].accuracy <= 1
    assert found.absent == ("tiles: a picture is one tile already",) and not found.emulated


def test_the_winner_was_compiled_and_sealed(order: Order, found: Found) -> None:
    """With gates that anything passes, the smallest uniform one cannot be beaten."""
    proof = found.winning_proof
    assert proof is not None and found.winner == found.best_uniform == 0 and proof.sealed
    assert open_bundle(Path(proof.bundle)).seal is not None
    smallest = min(one.judged.weight_bytes for one in found.trials)
    assert found.trials[0].judged.weight_bytes == smallest


def test_the_bundle_holds_the_bytes_that_were_predicted(found: Found) -> None:
    proof = found.winning_proof
    assert proof is not None
    bundle = open_bundle(Path(proof.bundle))
    graphs = sum(
        int(entry["bytes"]) for name, entry in bundle.manifest["files"].items() if name.startswith("graphs/")
    )
    predicted = found.trials[0].judged.weight_bytes
    assert predicted < graphs < predicted * 1.15, "nodes, rotary tables and names come on top"


def test_the_winner_is_a_recipe(order: Order, found: Found) -> None:
    path = order.out / f"search-{order.name}" / "winner.yaml"
    made = resources.recipe(str(path))
    assert made.name == "small-0" and made.components
    assert path.read_text().startswith("# Found by `edgevlm search")
    assert yaml.safe_load(path.read_text())["calibration"] == {"samples": 4}


def test_everything_is_written_down(order: Order, found: Found) -> None:
    folder = order.out / f"search-{order.name}"
    data = json.loads((folder / "front.json").read_text())
    assert len(data["sensitivities"]) == len(data["blocks"]) == 23
    assert all(row["kl"] >= 0 for row in data["sensitivities"])
    assert data["front"] and data["winner"] == 0
    page = (folder / "front.html").read_text()
    assert page.count('<rect class="mark uniform') == 3 and "Nothing smaller" in page
    assert str(folder / "winner.yaml") in frontier.text(data, folder)


def test_a_second_search_judges_only_what_is_new(
    order: Order, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    once = search._judge

    def counted(*arguments: object) -> object:
        judged.append(arguments)
        return once(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "_judge", counted)
    again = search.search(order, Settings(trials=4, share=1.0), Silent())
    assert again.trials[:3] == found.trials
    assert len(judged) == len(again.trials) - 3 == 1
    assert again.proofs == found.proofs, "kept, not compiled again"
