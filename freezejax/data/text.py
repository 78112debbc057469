"""Plain text as documents: a folder of .txt files, or what every Python installation carries, prose and code.

A document is a name and a text with Unix line ends. The last part of *each* document is kept for
validation, so that both splits hold every book, and no text is in both.
"""

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from freezejax.errors import UserError

# Later releases, then those of the 1990s, whose preamble ends with "*END*THE SMALL PRINT! ...*END*".
_HEADER = re.compile(
    r"^(?:\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG[^*]*\*{3}|\*END ?\*? ?THE SMALL PRINT!?.*)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_FOOTER = re.compile(
    r"^(?:\*{3} ?END OF (?:THE|THIS) PROJECT GUTENBERG|End of (?:the |this )?Project Gutenberg)",
    re.IGNORECASE | re.MULTILINE,
)


class Document(NamedTuple):
    """One text; the name says where it comes from."""

    name: str
    text: str


def strip_gutenberg(text: str) -> str:
    """The book alone: without Project Gutenberg's header and licence. Any other text is returned as it is."""
    # The footer first: some old releases print the "small print" once more after the book.
    footer = _FOOTER.search(text)
    book = text[: footer.start()] if footer else text
    return book[max((marker.end() for marker in _HEADER.finditer(book)), default=0) :]


def read_text(path: str | Path) -> str:
    """A UTF-8 text file (with or without BOM), line ends made Unix, without Project Gutenberg's frame."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read the text: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); convert it, e.g. with iconv") from None
    text = strip_gutenberg(text.replace("\r\n", "\n").replace("\r", "\n")).strip("\n")
    return text + "\n" if text else ""


def documents_at(path: str | Path) -> Iterator[Document]:
    """The text of a file, or every non-empty `*.txt` of a folder, in the order of the file names."""
    place = Path(path)
    for file in [place] if place.is_file() else sorted(place.glob("*.txt")):
        if text := read_text(file):
            yield Document(file.name, text)


def embedded_documents() -> Iterator[Document]:
    """The language reference in every CPython, `pydoc_data.topics`: 0.5 MB of English, in one order per version."""
    from pydoc_data import topics

    seen = set()  # two topics may share one text, and then a split could hold it twice
    for name, text in sorted(topics.topics.items()):
        if text.strip() and text not in seen:
            seen.add(text)
            yield Document(name, text.strip("\n") + "\n")


_MODULES = """argparse ast calendar cmd configparser csv dataclasses difflib doctest enum fractions functools heapq
inspect ipaddress mailbox optparse pdb pickle plistlib pprint random shlex shutil smtplib socket statistics string
subprocess tarfile tempfile textwrap threading tokenize traceback typing uuid"""


def embedded_code() -> Iterator[Document]:
    """Modules of Python's own library, about 1.5 MB of source code: another domain than prose, on every machine."""
    library = Path(sysconfig.get_path("stdlib"))
    for name in _MODULES.split():
        if (path := library / f"{name}.py").is_file():
            yield Document(path.name, read_text(path))


def split_document(text: str, val_fraction: float) -> tuple[str, str]:
    """Cuts a document into its beginning, for training, and its last `val_fraction`, for validation.

    The cut is the paragraph end nearest to that place, no further away than half the validation part; else
    the nearest line end, else the nearest space, else exactly there. The parts add up to the text.

    >>> split_document("one two\\n\\nthree four\\n\\nfive six", 0.3)
    ('one two\\n\\nthree four\\n\\n', 'five six')
    """
    cut, slack = round(len(text) * (1 - val_fraction)), int(len(text) * val_fraction / 2)
    for boundary in ("\n\n", "\n", " "):
        before = text.rfind(boundary, max(0, cut - slack), cut)
        after = text.find(boundary, cut, cut + slack)
        if found := [at for at in (before, after) if at >= 0]:
            cut = min(found, key=lambda at: abs(at - cut)) + len(boundary)
            break
    return text[:cut], text[cut:]
