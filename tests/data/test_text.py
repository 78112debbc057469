"""Text: Project Gutenberg's frame comes off, splits lose nothing, order is fixed."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax.data import text
from freezejax.errors import UserError

SHARED = Path(os.environ.get("FREEZEJAX_SHARED", Path(__file__).resolve().parents[3] / "shared"))
BOOKS = sorted((SHARED / "data" / "gutenberg").glob("*.txt"))
BODY = "\nChapter 1\n\n*** a scene break ***\n\nIt was the end of the Project.\n\n"

FRAMES = {
    "2020s": (
        "The Project Gutenberg eBook of X\n\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n",
        "*** END OF THE PROJECT GUTENBERG EBOOK X ***\n\nUpdated editions will replace ...\n",
    ),
    "2000s, title over two lines": (
        "Project Gutenberg's X\n\n***START OF THIS PROJECT GUTENBERG EBOOK A LONG\nTITLE***\n",
        "\nEnd of the Project Gutenberg EBook of X, by Y\n\n*** END OF THIS PROJECT GUTENBERG EBOOK X ***\n"
        "*** START: FULL LICENSE ***\nTHE FULL PROJECT GUTENBERG LICENSE\n",
    ),
    "1990s": (
        "A Project Gutenberg Etext\n\n***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\n"
        "Why is this statement here?\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n",
        "\nEnd of Project Gutenberg's Etext of X\n",
    ),
    "1990s, another small print, printed again at the end": (
        "Etext\n*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n",
        "End of The Project Gutenberg Etext of X\n*END*THE SMALL PRINT!*Ver.02.11.02*END*\n",
    ),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_the_frame_comes_off(frame):
    header, footer = frame
    assert text.strip_gutenberg(header + BODY + footer).strip() == BODY.strip()


@pytest.mark.parametrize("other", ["", BODY, "Project Gutenberg is a library.\n*** START ***\nText.\n"])
def test_other_text_stays_as_it_is(other):
    assert text.strip_gutenberg(other) == other


@pytest.mark.skipif(len(BOOKS) != 8, reason=f"no eight books in {SHARED / 'data' / 'gutenberg'}")
@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_real_books(path):
    raw = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    book = text.read_text(path)
    for frame in ("*** START", "*** END", "Gutenberg-tm", "End of Project Gutenberg"):
        assert frame in raw or frame.startswith("End of")
        assert frame not in book  # (a credit line before chapter 1 may thank the project)
    assert "\r" not in book
    assert book in raw + "\n"
    assert 18_000 < len(raw) - len(book) < 22_000  # what a licence has in characters


@given(st.text(alphabet="ab \n", min_size=0, max_size=300), st.floats(0.05, 0.5))
def test_split_loses_nothing_and_is_near_the_fraction(document, val_fraction):
    train, val = text.split_document(document, val_fraction)
    assert train + val == document
    wanted = len(document) * val_fraction
    assert abs(len(val) - wanted) <= wanted / 2 + 3


def test_split_is_at_a_paragraph_where_there_is_one():
    paragraphs = "".join(f"paragraph {i}\nsecond line\n\n" for i in range(100))
    train, val = text.split_document(paragraphs, 0.1)
    assert train.endswith("\n\n")
    assert val.startswith("paragraph 90\n")
    lines = paragraphs.replace("\n\n", "\n")
    assert text.split_document(lines, 0.1)[0].endswith("\n")
    assert text.split_document("word " * 200, 0.1)[0].endswith(" ")
    assert text.split_document("x" * 100, 0.1) == ("x" * 90, "x" * 10)


def test_folder_order_line_ends_and_byte_order_mark(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"second\r\nline\r")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\n\n\n")
    (tmp_path / "c.txt").write_bytes(b"\r\n\n")
    (tmp_path / "d.md").write_bytes(b"not text")
    assert list(text.documents_at(tmp_path)) == [("a.txt", "café\n"), ("b.txt", "second\nline\n")]


def test_not_utf8(tmp_path):
    (tmp_path / "latin1.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin1\.txt: not UTF-8 \(byte 3\)"):
        list(text.documents_at(tmp_path))


def test_embedded_text_is_prose_in_a_fixed_order():
    documents = list(text.embedded_documents())
    assert documents == list(text.embedded_documents())
    assert [doc.name for doc in documents] == sorted(doc.name for doc in documents)
    assert len({doc.text for doc in documents}) == len(documents)
    assert 300_000 < sum(len(doc.text) for doc in documents) < 1_000_000
    assert "statement" in documents[0].text
