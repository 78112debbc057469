"""The version of a checkout that nobody has installed, as on a machine without a network."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import freezejax
from experiments.configs.progressive import get_config
from experiments.engine import summary
from experiments.engine.variants import Study, Variant
from experiments.engine.workdir import Finished
from freezejax import version
from freezejax.training.prefix_cache import batches as prefix_batches
from tests.experiments.made_results import CORPUS, SCHEDULE

ROOT = Path(__file__).parents[1]


@pytest.fixture
def not_installed(monkeypatch):
    """What Python says of packages where freezejax is a folder in the path and no more."""
    installed = metadata.version

    def found(name):
        if name == "freezejax":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", found)


def test_a_study_and_the_prefix_cache_do_without_an_installation(not_installed, tmp_path):
    study = Study("s", [Variant("a", {}, {}, SCHEDULE)])
    found = summary.summarize(study, get_config("tiny"), CORPUS, Finished(tmp_path))
    assert found["versions"]["freezejax"] == freezejax.__version__
    assert found["versions"]["jax"]
    assert len(prefix_batches.origin("program", {})) == 64


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "freezejax/version.py"
    files = [path for folder in ("freezejax", "experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    asking = [path.name for path in files if re.search(r"importlib(\.| import )metadata", path.read_text())]
    assert asking == ["version.py"]


def test_a_package_that_is_missing_has_no_version():
    assert version.versions("no-such-package") == {"no-such-package": None}
