"""Dockerfile.jetson as text. What needs the network or an emulated machine is in `jetson_image.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from device.jetson_image import DOCKERFILE, PYTHONS, Stage, pins, requirements, stages
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgevlm_deploy import resources
from edgevlm_deploy.target import Backend


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("hadolint")), "--no-color", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_hadolint_has_no_complaint(tmp_path: Path) -> None:
    done = hadolint(DOCKERFILE)
    assert done.returncode == 0, done.stdout
    worse = tmp_path / "Dockerfile"
    worse.write_text(DOCKERFILE.read_text().replace("--no-install-recommends ", ""))
    assert "DL3015" in hadolint(worse).stdout


def test_the_parser() -> None:
    lines = ("FROM a AS b", "# RUN no", "RUN x \\", "    # why", "    && pip install --constraint c 'd<2' e")
    text = "\n".join([*lines, "FROM a", "COPY f g h", ""])
    assert stages(text) == [
        Stage((), ("x", "pip install --constraint c 'd<2' e")),
        Stage((("f", "g", "h"),), ()),
    ]
    assert requirements(stages(text)[0].commands) == ["d<2", "e"]


def test_the_image_holds_the_wheel_and_what_a_board_needs() -> None:
    build, final = stages(DOCKERFILE.read_text())
    assert requirements(build.commands) == ["pip", "build", "hatchling", "/dist/*.whl", "cuda-python"]
    assert requirements(final.commands) == []
    assert [words[-1] for words in final.copies] == ["/opt/edgevlm"]


@pytest.mark.parametrize("python", PYTHONS)
def test_base_dependencies_are_pinned_and_nothing_of_the_compiler(repository: Path, python: str) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    pinned = pins(python)
    for one in map(Requirement, project["dependencies"]):
        assert one.specifier.contains(pinned[canonicalize_name(one.name)]), one
    compiler = {
        canonicalize_name(Requirement(one).name) for one in project["optional-dependencies"]["compile"]
    }
    assert not compiler & pinned.keys()


def test_what_is_copied_is_not_ignored(repository: Path) -> None:
    build, _ = stages(DOCKERFILE.read_text())
    allowed = {line[1:] for line in (repository / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    assert allowed == {source for *sources, _ in build.copies for source in sources}
    assert all((repository / name).exists() for name in allowed)


def test_the_page_knows_every_jetson_and_every_base(repository: Path) -> None:
    page = (repository / "docs" / "jetson.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| `([^`]+)` \|", page, re.MULTILINE)
    releases = {name: jetpacks.split(", ") for jetpacks, name in rows}
    for name in resources.names("targets"):
        target = resources.target(name)
        if target.backend is Backend.TENSORRT:
            assert target.software["jetpack"] in releases.get(name, []), name
    images = set(re.findall(r"nvcr\.io/\S+", DOCKERFILE.read_text()))
    assert len(images) == 3 and set(re.findall(r"nvcr\.io/\S+", page)) <= images


def test_nobody_is_root_and_the_command_is_edgevlm() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["10001"]
    assert 'ENTRYPOINT ["edgevlm"]' in lines
    assert lines.index("USER 10001") < lines.index('ENTRYPOINT ["edgevlm"]')
