"""Files and folders that are absent or complete, never half-written.

A Ctrl-C, a full disk or a second process doing the same work at the same time cannot leave anything that a
later reader would take for whole: content is made beside its place under a hidden name, then renamed.
"""

import contextlib
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from freezejax.errors import UserError

SCRATCH = re.compile(r"\..+-[0-9a-f]{32}$")  # the hidden names


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which replaces `path` when the block ends without an exception."""
    # Not mkstemp: its files are private to their owner, and a cache may be shared.
    scratch = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with open(scratch, "wb") as file:
            yield file
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def remove_scratch(folder: Path) -> None:
    """Removes what a process that was killed left half-written in a folder, of which nobody else is a writer now.

    >>> with tempfile.TemporaryDirectory() as directory:
    ...     folder = Path(directory)
    ...     with atomic_file(folder / "a.json"):
    ...         (scratch,) = folder.iterdir()
    ...     _ = scratch.write_text("{")  # as a kill leaves it
    ...     remove_scratch(folder)
    ...     [path.name for path in folder.iterdir()]
    ['a.json']
    """
    for path in folder.rglob(".*"):
        if SCRATCH.search(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader, or a kill, sees the old or the new one whole.

    >>> with tempfile.TemporaryDirectory() as directory:
    ...     write_atomically(Path(directory) / "a.json", "{}")
    ...     (Path(directory) / "a.json").read_text()
    '{}'
    """
    with atomic_file(path) as file:
        file.write(text.encode())


def cached_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder, built by `build(empty folder)` unless it is there already.

    Of several processes that build at once the first to finish wins; the others use its folder. A `UserError` says
    that the parent folder cannot be written, or its disk is full.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent)
    except OSError as error:
        raise UserError(f"cache_dir={folder.parent}: cannot be written: {error.strerror}") from None
    with scratch:
        fresh = Path(scratch.name) / folder.name
        fresh.mkdir()
        try:
            build(fresh)
        except (OSError, RuntimeError) as error:
            # ArrayRecord's writers are C++, whose errors have no number but the same words.
            if (words := re.search(r"No space left on device|Disk quota exceeded", str(error))) is None:
                raise
            raise UserError(f"cache_dir={folder.parent}: {words[0]}; free some, or name another folder") from None
        try:
            os.rename(fresh, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster: its content is the same
                raise
    return folder
