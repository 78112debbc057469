"""What the tests of random maps share: the distributions, and readers of compiled programs."""

import pytest

from freezejax.random_maps import RECIPES

PORTABLE = [name for name, recipe in RECIPES.items() if recipe.portable]


@pytest.fixture(params=PORTABLE)
def portable(request: pytest.FixtureRequest) -> str:
    """Every portable distribution in turn."""
    return request.param


@pytest.fixture(params=list(RECIPES))
def distribution(request: pytest.FixtureRequest) -> str:
    """Every distribution in turn."""
    return request.param
