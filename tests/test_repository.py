"""The repository keeps its own rules."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from edgevlm_runner.errors import EdgeVlmError

from edgevlm_deploy import errors, resources
from edgevlm_deploy.config import Frozen
from edgevlm_deploy.recipe import Recipe
from edgevlm_deploy.sweep.grid import Sweep
from edgevlm_deploy.target import Target

PACKAGES = ("edgevlm_deploy", "runners/edgevlm_runner")


def python_files(repository: Path, *folders: str) -> list[Path]:
    return [path for folder in folders for path in (repository / folder).rglob("*.py")]


def test_files_are_short(repository: Path) -> None:
    long = {
        str(path.relative_to(repository)): lines
        for path in python_files(repository, *PACKAGES, "tests", "benchmarks")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_exit_codes_are_unique_and_documented() -> None:
    def family(cls: type[EdgeVlmError]) -> list[type[EdgeVlmError]]:
        return [cls, *(one for child in cls.__subclasses__() for one in family(child))]

    # A private subclass is the same cause, told apart inside one module.
    codes = [cls.exit_code for cls in family(EdgeVlmError) if not cls.__name__.startswith("_")]
    verdicts = [
        errors.EXIT_PASSED,
        errors.EXIT_GATES_FAILED,
        errors.EXIT_INCONCLUSIVE,
        errors.EXIT_LINT_FAILED,
        errors.EXIT_INTERRUPTED,
    ]
    everything = [*codes, *verdicts, 2]
    assert len(everything) == len(set(everything))
    from edgevlm_deploy.cli import EPILOG

    for code in everything:
        assert re.search(rf"\b{code}\b", EPILOG), code


def test_the_runner_speaks_python_3_8(repository: Path, tmp_path: Path) -> None:
    """Its grammar, and nothing of the standard library that came later."""
    for path in python_files(repository, "runners"):
        ast.parse(path.read_text(), feature_version=(3, 8))

    def vermin(path: Path) -> subprocess.CompletedProcess[str]:
        tool = str(Path(sys.executable).with_name("vermin"))
        command = [tool, "--target=3.8-", "--violations", "--no-tips", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = vermin(repository / "runners")
    assert done.returncode == 0, done.stdout
    newer = tmp_path / "newer.py"
    newer.write_text("from functools import cache\n")
    assert vermin(newer).returncode != 0


def test_imports_point_one_way(repository: Path) -> None:
    """The layers of `[tool.importlinter]` in pyproject.toml."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_help_and_the_runner_load_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "neural_compressor", "litert_torch", "onnx", "scipy", "matplotlib"}
    program = (
        f"import sys, edgevlm_deploy.cli, edgevlm_runner.measure\nprint(sorted({heavy!r} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_shipped_recipes_and_targets_are_valid_and_named_after_their_files() -> None:
    for name in resources.names("recipes"):
        assert resources.recipe(name).name == name
    for name in resources.names("targets"):
        target = resources.target(name)
        assert target.name == name
        numbers = {"memory_bandwidth_gb_s"} & {key for key, value in target if value is not None}
        numbers |= {f"budgets.{key}" for key, value in target.budgets if value is not None}
        assert numbers <= set(target.sources), f"{name}: numbers without a source"


@pytest.mark.parametrize("cls", [Recipe, Target, Sweep])
def test_json_schemas_are_up_to_date(repository: Path, cls: type[Frozen]) -> None:
    written = json.loads((repository / "docs" / f"{cls.__name__.lower()}.schema.json").read_text())
    assert written == cls.model_json_schema(), "run `make schemas`"


@pytest.mark.parametrize("kind", ["recipe", "target"])
def test_shipped_files_satisfy_their_json_schema(repository: Path, kind: str) -> None:
    import jsonschema
    import yaml

    schema = json.loads((repository / "docs" / f"{kind}.schema.json").read_text())
    for path in (repository / f"{kind}s").glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)


def test_every_key_of_recipe_and_target_is_described(repository: Path) -> None:
    page = (repository / "docs" / "recipes.md").read_text()
    for key in [*Recipe.model_fields]:
        assert f"`{key}`" in page, key


def test_commands_in_the_readme_exist(repository: Path) -> None:
    from edgevlm_deploy.cli import app

    commands = {one.name or (one.callback and one.callback.__name__) for one in app.registered_commands}
    used = set(re.findall(r"^(?:\$ )?edgevlm (\w+)", (repository / "README.md").read_text(), re.MULTILINE))
    assert used and used <= commands


@pytest.mark.slow
def test_the_wheel_carries_what_a_device_needs(repository: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(repository),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "edgevlm_runner/__main__.py" in names
    assert "edgevlm_deploy/_data/targets/host-cpu.yaml" in names
    assert "edgevlm_deploy/_data/recipes/default.yaml" in names
    assert "edgevlm_deploy/demo/checkpoint/model.safetensors" in names
    assert not any(name.startswith("tests/") for name in names)
