"""`SHA256SUMS` beside shards or text, as coreutils writes it: a changed bit is told, not trained on.

A shard has no digest of its own, and a flipped bit may well give another token of the vocabulary. Where the file
stands, what it lists is checked at every load.
"""

import hashlib
import re
from pathlib import Path

from freezejax.atomic import atomic_file
from freezejax.errors import UserError

NAME = "SHA256SUMS"
_CHECKED = (".bin", ".model", ".txt")
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")  # text or binary mode, which are one on Unix


class Damaged(UserError):
    """A file is missing or not as it was listed, for certain: what to do about it may be said."""


def write(folder: Path, *, everything: bool = False) -> None:
    """Lists every shard, tokenizer and text of a folder, or with `everything` every file in and below it."""
    if everything:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    else:
        files = sorted(path for path in folder.iterdir() if path.name.endswith(_CHECKED))
    lines = (f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    with atomic_file(folder / NAME) as listing:
        listing.write("".join(lines).encode())


def verify(folder: Path, remedy: str, *, everything: bool = False, only: str = "") -> None:
    """Checks every shard, tokenizer and text that the folder's SHA256SUMS lists; without one checks nothing.

    Args:
        remedy: ends the error's line: what to do about a file that is missing or differs. A file that cannot be read
            (no permission, a disk that fails, one that is away) may be whole: there it is not said.
        everything: checks files of every kind.
        only: checks no other shard and text than the one of this name; "" checks all.

    Raises:
        Damaged: naming the first file that is missing or differs, or the line that is none of `sha256sum`.
        UserError: a file cannot be read.
    """
    listing = folder / NAME
    if not listing.exists():
        return
    try:
        lines = listing.read_text(encoding="utf-8").split("\n")
    except (IsADirectoryError, ValueError):
        raise Damaged(f"{listing}: cannot be read as text; write it with sha256sum, or delete it") from None
    except OSError as error:
        raise UserError(f"{listing}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        found = _LINE.fullmatch(line)
        if found is None or not found[2].isprintable():
            raise Damaged(f"{listing}: line {number} is not 'SHA-256  NAME'; write it with sha256sum, or delete it")
        digest, name = found.groups()
        if everything or (name.endswith(_CHECKED) and (only in ("", name) or name.endswith(".model"))):
            _check(folder / name, digest.lower(), remedy)


def _check(path: Path, digest: str, remedy: str) -> None:
    try:
        found = _sha256(path)
    except _GONE as error:
        raise Damaged(f"{path}: is listed in {NAME}, but cannot be read: {error.strerror}; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: is listed in {NAME}, but cannot be read: {error.strerror}") from None
    if found != digest:
        raise Damaged(f"{path}: does not match its SHA-256 in {NAME}: damaged or changed; {remedy}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
