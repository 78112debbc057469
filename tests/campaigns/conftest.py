"""Commands of campaigns are started as those of tests/experiments."""

import pytest

from tests.experiments.conftest import environment  # noqa: F401
from tests.experiments.forks import Forks


@pytest.fixture(scope="session")
def forks(environment, tmp_path_factory):  # noqa: F811
    with Forks(environment, tmp_path_factory.mktemp("streams")) as started:
        yield started
