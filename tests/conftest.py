"""Fixtures that more than one test folder needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import tiny_litert

# A busy machine is no failure, and time is measured in benchmarks.
hypothesis.settings.register_profile("repository", deadline=None)
hypothesis.settings.load_profile("repository")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Bundles are unpacked into a folder of this test run, in subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEVLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Configs, tokenizers, images and questions of published models and data sets; optional."""
    folder = Path(os.environ.get("EDGEVLM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"published configs and data sets are not at {folder} (set EDGEVLM_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def litert_files(tmp_path_factory: pytest.TempPathFactory) -> tiny_litert.Files:
    """A tiny VLM exported for LiteRT; the processes of one run share it."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    return tiny_litert.make(shared / "tiny-litert")
