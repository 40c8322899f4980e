"""A small checkpoint with random weights and one bundle made of it by the real pipeline."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest

from edgevlm_deploy import pipeline
from edgevlm_deploy.progress import Silent

RECIPE = """
name: small
description: Few items, loose gates; what is tested is the line, not the model.
components:
  vision_encoder: {scheme: w8a8}
  projector: {scheme: w8a8}
  embedding: {scheme: w8a16}
  decoder: {scheme: w4a16_g32}
  head: {scheme: w8a16}
calibration: {samples: 8}
generation: {max_new_tokens: 6, max_context: 128}
evaluation:
  clean_items: 12
  corruptions: [gaussian_noise, jpeg_compression]
  severities: [2]
  items_per_condition: 4
  bootstrap_resamples: 200
gates:
  - {metric: divergence_rate, max: 1.0}
target_budgets: report
"""


SSH = """#!/bin/sh
[ "$1 $2 $3" = "-o BatchMode=yes board" ] || exit 255
cd {disk} && exec sh -c "$4"
"""
SFTP = """#!{python}
import os, pathlib, shlex, shutil, sys

assert sys.argv[1:] == ["-q", "-o", "BatchMode=yes", "-b", "-", "board"], sys.argv
os.chdir({disk!r})
for line in sys.stdin:
    verb, source, target = shlex.split(line)
    assert verb == ("get" if pathlib.Path(target).is_absolute() else "put"), line
    shutil.copy(source, target)
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a board behind stand-ins for `ssh` and `sftp`; test_ssh.py has the real ones."""
    disk, tools = tmp_path / "board", tmp_path / "tools"
    disk.mkdir()
    tools.mkdir()
    for name, text in (("ssh", SSH), ("sftp", SFTP)):
        (tools / name).write_text(text.format(python=sys.executable, disk=str(disk)))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    return disk


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's architecture before training, in `save_pretrained` layout."""
    import torch

    from edgevlm_deploy import quiet
    from edgevlm_deploy.demo import model as demo

    folder = tmp_path_factory.mktemp("checkpoint") / "untrained"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with quiet.libraries(), warnings.catch_warnings():
        tokenizer = demo.tokenizer(scenes=50)
        demo.save(demo.architecture(tokenizer), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def compiled(checkpoint: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that nobody has judged yet; tests copy it before they change it."""
    out = tmp_path_factory.mktemp("build")
    order = pipeline.Order(model=str(checkpoint), target="host-cpu", recipe=str(recipe), out=out)
    return pipeline.compile(order, Silent())
