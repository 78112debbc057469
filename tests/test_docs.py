"""Every Python block of the README and of docs/ runs as it stands, and prints what the page says it prints.

Tutorials, each of which is one program, have tests/test_tutorials.py.
"""

import inspect
import re
from pathlib import Path

import pytest

from freezejax import artifact

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {
    page.stem: page.read_text(encoding="utf-8") for page in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))
}
# A heading, its one python block, and the text blocks before the next heading.
SECTIONS = {
    f"{name}: {section.split(chr(10), 1)[0]}": section
    for name, page in PAGES.items()
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    if "```python" in section
}


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.stem)
def test_links_lead_somewhere_in_the_checkout(page):
    """The pages of the API are made with the site; whoever reads the files has none of them."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.usefixtures("jax_as_a_reader_has_it")
@pytest.mark.parametrize("title", SECTIONS)
def test_block_runs_and_prints_what_the_page_shows(title, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(SECTIONS[title], "python")
    exec(compile(code, title, "exec"), {"__name__": "page"})
    assert capsys.readouterr().out == "".join(blocks(SECTIONS[title], "text"))


def test_a_page_that_needs_equinox_says_where_it_comes_from():
    pages = [page for page in PAGES.values() if "import equinox" in page]
    assert len(pages) >= 3
    for page in pages:
        assert "Equinox is of the extra `dev`" in page[: page.index("import equinox")], page[:60]


def test_artifact_page_shows_the_defaults_of_its_calls():
    rows = re.findall(r"^\| `artifact\.(\w+)\((.*?)\)` \|", PAGES["artifact"], flags=re.MULTILINE)
    assert len(rows) == 6
    shown = {name: dict(re.findall(r'(\w+)="(\w+)"', arguments)) for name, arguments in rows}
    for name, defaults in shown.items():
        for argument, parameter in inspect.signature(getattr(artifact, name)).parameters.items():
            if isinstance(parameter.default, str):
                assert defaults.get(argument) == parameter.default, f"{name}({argument}=)"


def test_every_block_of_the_quickstart_checks_its_bits():
    for title, section in SECTIONS.items():
        if title.startswith("quickstart"):
            assert "array_equal(a, b)" in section or "allclose(a, b" in section, title


def test_blocks_that_save_run_a_second_time_in_the_same_folder():
    for title, section in SECTIONS.items():
        for call in re.findall(r"ocp\.save\(.*", "".join(blocks(section, "python"))):
            assert "overwrite=True" in call, title


def test_quickstart_has_all_four_kinds_of_model_and_both_forms():
    words = ("flax.linen", "nnx.split", "eqx.partition", "scheduled_freeze(", "freezejax.freeze(", "(TrainState)")
    for word in words:
        assert word in PAGES["quickstart"]
