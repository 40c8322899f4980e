"""Fixtures that more than one test folder needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


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
