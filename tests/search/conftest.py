"""The demo's checkpoint as a space: nothing is loaded for it but headers."""

from __future__ import annotations

import pytest

from edgevlm_deploy import resources, source
from edgevlm_deploy.recipe import Algorithm, Recipe
from edgevlm_deploy.search import space
from edgevlm_deploy.search.space import Space
from edgevlm_deploy.source import SourceModel
from edgevlm_deploy.target import Target


@pytest.fixture(scope="session")
def demo() -> SourceModel:
    return source.inspect(resources.DEMO_CHECKPOINT)


@pytest.fixture(scope="session")
def base() -> Recipe:
    return resources.recipe("default")


@pytest.fixture(scope="session")
def host() -> Target:
    return resources.target("host-cpu")


@pytest.fixture(scope="session")
def choices(demo: SourceModel, base: Recipe, host: Target) -> Space:
    return space.build(demo, base, host, (Algorithm.GPTQ,))
