"""Every page of docs/tutorials runs from its first block to its last, and prints what it says it prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "tutorials").glob("*.md"))}
IN_PYTHON = [name for name, page in PAGES.items() if "```python" in page]


def cells(page: str) -> list[tuple[str, str]]:
    """The Python blocks of a page, each with the text block that follows, or with nothing."""
    found = re.findall(r"^```(python|text)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    following = [*found[1:], ("", "")]
    return [
        (block, after if kind == "text" else "")
        for (language, block), (kind, after) in zip(found, following, strict=True)
        if language == "python"
    ]


@pytest.mark.usefixtures("jax_as_a_reader_has_it")
@pytest.mark.parametrize("name", IN_PYTHON)
def test_its_blocks_are_one_program(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for number, (code, printed) in enumerate(cells(PAGES[name]), start=1):
        exec(compile(code, f"{name}, block {number}", "exec"), namespace)
        assert capsys.readouterr().out == printed, f"block {number}"


def test_its_commands_end_well(tmp_path):
    python = str(Path(sys.executable).parent)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment = {**clean, "PATH": f"{python}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu", "RUNS": str(tmp_path)}
    commands = re.findall(r"^```bash\n(.*?)^```$", PAGES["laptop_to_pod"], flags=re.DOTALL | re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        ran = subprocess.run(["bash", "-ec", command], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
    assert (tmp_path / "eight" / "runs" / "baseline" / "seed_1" / "result.json").is_file()


def test_every_tutorial_is_a_page_of_the_site():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name in PAGES:
        assert f"tutorials/{name}.md" in site, name
    assert set(PAGES) == {*IN_PYTHON, "laptop_to_pod"}
