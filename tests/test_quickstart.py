"""Every block of the quickstart runs as it stands, and prints what the page says it prints."""

import re
from pathlib import Path

import jax
import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "quickstart.md"
# A heading, its python block, and the first text block before the next heading, if there is one.
SECTIONS = {
    section.split("\n", 1)[0]: section
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    if "```python" in section
}


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("title", SECTIONS)
def test_block_runs_and_prints_what_the_page_shows(title, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(SECTIONS[title], "python")
    # A reader runs with jax's defaults, and optax's Adam needs them.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, f"{PAGE.name}: {title}", "exec"), {"__name__": "quickstart"})
    assert capsys.readouterr().out == "".join(blocks(SECTIONS[title], "text"))
    assert "array_equal(a, b)" in code or "allclose(a, b" in code


def test_all_four_kinds_of_model_and_both_forms_are_there():
    page = "".join(SECTIONS.values())
    for word in ("flax.linen", "nnx.split", "eqx.partition", "scheduled_freeze(", "freezejax.freeze("):
        assert word in page
