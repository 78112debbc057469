"""The documentation site builds without a warning, has a page per module, and shows every example as code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}", *options]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = build(folder)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_every_module_has_a_page_with_its_docstring(site):
    modules = [path.relative_to(ROOT) for path in (ROOT / "freezejax").rglob("*.py") if path.name != "__main__.py"]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in modules}
    assert {path.stem for path in (site / "api").glob("*.html")} == names
    assert "Masks: trees of Python bools" in (site / "api" / "freezejax.masks.html").read_text(encoding="utf-8")


def test_examples_are_shown_as_code(site):
    page = (site / "api" / "freezejax.masks.html").read_text(encoding="utf-8")
    assert page.count('<span class="gp">&gt;&gt;&gt; </span>') > 5
    assert "<blockquote>" not in page


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "fonts.googleapis" not in text
        assert '<script src="http' not in text


def test_counterpart_a_broken_link_fails_the_build(tmp_path):
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("[nowhere](nowhere.md)\n", encoding="utf-8")
    start = config[config.index("validation:") : config.index("nav:")]
    (tmp_path / "mkdocs.yml").write_text(
        f"site_name: x\ntheme: {{name: material, font: false}}\n{start}", encoding="utf-8"
    )
    built = build(tmp_path / "site", f"--config-file={tmp_path / 'mkdocs.yml'}")
    assert built.returncode != 0
    assert "nowhere.md" in built.stdout + built.stderr
