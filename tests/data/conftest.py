"""A folder of two texts, and a cache."""

import pytest

TEXTS = {
    "one.txt": "".join(f"This is sentence {i} of the first text, café.\n\n" for i in range(60)),
    "two.txt": "".join(f"Line {i} of another one.\n" for i in range(80)),
}


@pytest.fixture
def books(tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    for name, content in TEXTS.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"
