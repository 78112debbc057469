"""What the tests of random maps share: the distributions, and readers of compiled programs."""

import numpy as np
import pytest

from freezejax.weights import RECIPES

PORTABLE = [name for name, recipe in RECIPES.items() if recipe.portable]


@pytest.fixture(params=PORTABLE)
def portable(request: pytest.FixtureRequest) -> str:
    """Every portable distribution in turn."""
    return request.param


@pytest.fixture(params=list(RECIPES))
def distribution(request: pytest.FixtureRequest) -> str:
    """Every distribution in turn."""
    return request.param


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    """int32 [2, 10] below 13."""
    return np.random.default_rng(0).integers(0, 13, (2, 10), dtype=np.int32)


@pytest.fixture(params=["geglu", "parameter_golf"])
def family(request: pytest.FixtureRequest) -> str:
    """Every model family in turn."""
    return request.param
