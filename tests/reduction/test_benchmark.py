"""The benchmark's own answers: what it measures is what the product would say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml
from edgevlm_runner.contract import CLEAN, Item, Pruning

from benchmarks import token_reduction
from edgevlm_deploy.demo.dataset import samples
from edgevlm_deploy.demo.scenes import Split
from edgevlm_deploy.recipe import Recipe, Reduction, ReductionMethod


def test_a_recipe_asks_for_nothing_but_fewer_tokens(tmp_path: Path) -> None:
    wanted = Reduction(method=ReductionMethod.TOME, keep=0.33)
    made = token_reduction.recipe(wanted, 400)
    assert made.name == "tome-33" and not made.components
    read = Recipe.model_validate(yaml.safe_load(token_reduction.write(made, tmp_path).read_text()))
    assert read == made and read.image.reduction == wanted
    assert (read.evaluation.clean_items, read.evaluation.items_per_condition) == (400, 8)


def test_pruning_nothing_gives_the_models_own_answers(tmp_path: Path) -> None:
    """Through the loop without a cache, on questions of several lengths."""
    drawn = samples(Split.EVALUATION, 2, 3, tmp_path)
    rows = [
        Item(one.id, one.id, one.group, CLEAN, one.image.name, one.image_id, one.prompt, one.answers)
        for one in drawn
        if one.image is not None
    ]
    root = next(one.image for one in drawn if one.image is not None).parent
    job = token_reduction.job_of(None, 6, tmp_path)
    expected = token_reduction.answers(job, rows, root)
    pruned = dataclasses.replace(job, spec=dataclasses.replace(job.spec, pruning=Pruning(2, 0.99)))
    found = token_reduction.answers(pruned, rows, root)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert [one.item_id for one in found] == [one.id for one in rows]
