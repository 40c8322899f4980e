"""YAML in, frozen objects or one clear message out."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from edgevlm_deploy import resources
from edgevlm_deploy.config import load_yaml
from edgevlm_deploy.errors import ConfigError, NotFoundError
from edgevlm_deploy.recipe import Generation, Recipe
from edgevlm_deploy.target import Target

MINIMAL = """
name: mine
description: one gate
gates: [{metric: accuracy_drop, max: 0.02}]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_a_minimal_recipe_has_sensible_defaults(tmp_path: Path) -> None:
    recipe = load_yaml(write(tmp_path, MINIMAL), Recipe)
    assert recipe.evaluation.clean_items == 2000
    assert len(recipe.evaluation.corruptions) == 10
    assert recipe.evaluation.negation is None
    assert recipe.evaluation.blind_items == recipe.evaluation.background_items == 0
    with pytest.raises(ValidationError):
        recipe.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL + "gate: 1", "gate: unknown key"),
        (MINIMAL.replace("max: 0.02", "max: 0.02, min: 0.1"), "exactly one of `min` and `max`"),
        (MINIMAL.replace("accuracy_drop", "accurracy"), "gates.0.metric"),
        (MINIMAL + "components: {vision_encoder: {scheme: w5a5}}", "components.vision_encoder.scheme"),
        (MINIMAL + "calibration: {mixture: {clean: 0.5}}", "shares must sum to 1"),
        (MINIMAL + "evaluation: {severities: [6]}", "evaluation.severities.0"),
        (MINIMAL + "evaluation: {negation: {forms: [irony]}}", "evaluation.negation.forms.0"),
        (
            MINIMAL.replace("accuracy_drop", "negation_success_drop"),
            "the gate on negation_success_drop needs items: set evaluation.negation",
        ),
        (
            MINIMAL.replace("accuracy_drop", "prior_bias_increase"),
            "the gate on prior_bias_increase needs items: set evaluation.blind_items",
        ),
        ("name: mine\ndescription: d\ngates: []", "gates"),
        ("- a list", "expected a mapping"),
        ("name: [unclosed", "not valid YAML"),
        (MINIMAL.replace("mine", "Mine!"), "name"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load_yaml(path, Recipe)
    assert str(path) in str(raised.value)
    assert expected in str(raised.value)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "colour: red\nevaluation: {clean_items: 0}")
    with pytest.raises(ConfigError) as raised:
        load_yaml(path, Recipe)
    assert "colour" in str(raised.value) and "evaluation.clean_items" in str(raised.value)


def test_yaml_tags_are_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_yaml(write(tmp_path, "name: !!python/object/apply:os.system [ls]"), Recipe)


def test_names_and_paths(tmp_path: Path) -> None:
    assert resources.recipe("default").name == "default"
    assert resources.recipe(str(write(tmp_path, MINIMAL))).name == "mine"
    with pytest.raises(NotFoundError, match="host-cpu"):
        resources.target("orin-max")
    with pytest.raises(NotFoundError, match="no such file"):
        resources.recipe("here/not.yaml")


def test_targets_state_a_budget_and_its_source() -> None:
    target = resources.target("host-cpu")
    assert isinstance(target, Target)
    assert target.budgets.time_to_first_token_ms_p95 == 150
    assert "budgets.time_to_first_token_ms_p95" in target.sources


@pytest.mark.parametrize(
    ("generation", "context", "expected"),
    [
        (Generation(), 2048, ((512, 2048), (32, 128))),
        (Generation(), 512, ((128, 512), (32, 128))),
        (Generation(), 64, ((64,), (32,))),
        (Generation(max_context=16, max_new_tokens=4), 16, ((16,), ())),
        (Generation(cache_lengths=(1024, 256)), 2048, ((256, 1024, 2048), (32, 128))),
        (Generation(cache_lengths=(1024, 256), prefill_lengths=(64,)), 512, ((256, 512), (64,))),
    ],
)
def test_lengths_of_static_graphs(
    generation: Generation, context: int, expected: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    assert generation.static_lengths(context) == expected


@pytest.mark.parametrize("length", [32, 4096])
def test_a_cache_that_no_question_fits_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(
        ConfigError, match=f"between max_new_tokens = 32 and max_context = 2048, got {length}"
    ):
        load_yaml(write(tmp_path, MINIMAL + f"generation: {{cache_lengths: [{length}]}}\n"), Recipe)
