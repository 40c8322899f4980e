"""The sweep file: what it may say, what cells it means, which mistakes get a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm_deploy import resources
from edgevlm_deploy.errors import ConfigError, EdgeVlmError, NotFoundError
from edgevlm_deploy.recipe import EDGE_SUITE, SENSOR_SUITE, Component, Corruption
from edgevlm_deploy.sweep import grid

HEAD = "name: mine\ntarget: host-cpu\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def test_every_model_meets_every_recipe(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    file = written(
        tmp_path,
        f"""{HEAD}
models: [demo, {{model: {tmp_path}/other, data: items.jsonl}}]
recipes:
  - int8
  - {{recipe: int8, name: int4, components: {{decoder: {{scheme: w4a16_g32, algorithm: awq}}}}}}
suite: sensor
evaluation: {{severities: [2], items_per_condition: 7, clean_items: 9}}
""",
    )
    cells = grid.load(file).cells()
    assert [cell.name for cell in cells] == ["demo × int8", "demo × int4", "other × int8", "other × int4"]
    int8, int4 = cells[0].recipe, cells[1].recipe
    assert int4.precision(Component.DECODER).scheme.value == "w4a16_g32"
    assert int4.precision(Component.VISION_ENCODER) == int8.precision(Component.VISION_ENCODER)
    assert int4.gates == resources.recipe("int8").gates
    for cell in cells:
        assert cell.recipe.evaluation == int8.evaluation
    assert int8.evaluation.corruptions == SENSOR_SUITE and int8.evaluation.severities == (2,)
    assert cells[2].model.data is not None and cells[2].model.data.is_absolute()
    assert grid.Cell.model_validate_json(cells[3].model_dump_json()) == cells[3]


def test_suites() -> None:
    assert grid.Suite.EDGE.corruptions == EDGE_SUITE
    assert len(grid.Suite.IMAGENET_C.corruptions) == 15
    assert set(grid.Suite.ALL.corruptions) == set(Corruption)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "models: [demo]\nrecipes: [int8]\nspeed: 1\n",
            ConfigError,
            "speed: unknown key. `edgevlm schema sweep`",
        ),
        ("models: []\nrecipes: [int8]\n", ConfigError, "models: Tuple should have at least 1"),
        ("models: [a/x, b/x]\nrecipes: [int8]\n", ConfigError, "'x' is there twice"),
        (
            "models: [demo]\nrecipes: [int8, {recipe: int8}]\n",
            ConfigError,
            "'int8' is there twice.*give each a `name`",
        ),
        ("models: [demo]\nrecipes: [int9]\n", NotFoundError, "'int9' is not one of the recipes"),
        (
            "models: [demo]\nrecipes: [int8]\nsuite: edge\nevaluation: {corruptions: [fog]}\n",
            ConfigError,
            "give `suite` or `evaluation.corruptions`",
        ),
        (
            "models: [demo]\nrecipes: [int8]\nsuite: sensor\nevaluation: {corruption_profile: cifar-c}\n",
            ConfigError,
            "cifar-c has no constants",
        ),
        (
            "models: [demo]\nrecipes: [{recipe: int8, scheme: w8a8}]\n",
            ConfigError,
            "recipes.0.scheme: unknown key",
        ),
    ],
)
def test_mistakes(tmp_path: Path, text: str, error: type[EdgeVlmError], message: str) -> None:
    with pytest.raises(error, match=message):
        grid.load(written(tmp_path, HEAD + text)).cells()


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        grid.load(tmp_path / "nowhere.yaml")
