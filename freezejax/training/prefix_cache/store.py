"""Activations by window of the corpus, in memory or in a file, within a bound of bytes."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.paths import PyTree

Rows = list[np.ndarray]

_SEAL_BYTES = 16
_ABSENT, _FOUND, _GOOD = range(3)  # what is known of a slot; found = left by another process, not yet checked


class ActivationCache:
    """What a fixed function made of each window, for as many windows as fit; the others are never there.

    Kept are windows 0, 1, 2, ... up to the bound of bytes. Reading or writing never raises: a full disk, or a slot
    that was half-written when a process died, is as if nothing had been kept.

    `fingerprint` tells what the activations follow from besides a window's tokens; a folder with another is emptied. It
    may take long, so it is called on a thread, unless the folder holds something to compare it with.
    """

    def __init__(
        self,
        row: PyTree,  # shapes and dtypes of what is kept of one window
        windows: int,  # in the corpus
        limit_bytes: float,
        folder: Path | None = None,  # where the file goes; None keeps everything in memory
        fingerprint: Callable[[], str] = str,
    ) -> None:
        """Allocates address space only; memory or disk is taken as windows come."""
        self._row, self._structure = jax.tree.flatten(row)
        self._folder = folder
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in self._row) + (_SEAL_BYTES if folder else 0)
        self.capacity = min(windows, int(limit_bytes // size)) if self._row else 0
        self._known = np.zeros(self.capacity, np.uint8)
        self._store = _File(folder, size, fingerprint) if folder else _Memory(self._row, self.capacity)
        self._known[: self._store.found] = _FOUND

    def has(self, windows: np.ndarray) -> np.ndarray:
        """Which of some windows [B] are there, as far as is known without reading them; bool [B]."""
        found = windows < self.capacity
        found[found] = self._known[windows[found]] != _ABSENT
        return found

    def get(self, windows: np.ndarray, tokens: np.ndarray) -> tuple[Rows, Any, np.ndarray]:
        """`(leaves, structure, found)`: what was kept of some windows [B], and which of them are there, bool [B].

        Each leaf has a leading axis B; the rows of windows that are not there hold anything. `tokens` [B, ...] are
        those that the activations are wanted for: where others were kept they do not count.
        """
        leaves = [np.empty((len(windows), *leaf.shape), leaf.dtype) for leaf in self._row]
        found = self.has(windows)
        for i in np.flatnonzero(found):
            slot, row = windows[i], [leaf[i : i + 1] for leaf in leaves]
            found[i] = self._store.read(slot, row)
            if self._known[slot] != _GOOD:
                assert isinstance(self._store, _File)
                found[i] = found[i] and self._store.seal(slot) == _seal(tokens[i], row)
                self._known[slot] = _GOOD if found[i] else _ABSENT
        return leaves, self._structure, found

    def put(self, windows: np.ndarray, tokens: np.ndarray, activations: PyTree) -> None:
        """Keeps activations (leading axis B) of some windows [B]; those beyond the bound are passed over."""
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(activations)]
        for i, window in enumerate(windows):
            if window < self.capacity and self._known[window] != _GOOD:
                written = self._store.write(window, tokens[i], [leaf[i : i + 1] for leaf in leaves])
                self._known[window] = _GOOD if written else _ABSENT

    def remove(self) -> None:
        """Empties the cache for good, and removes its folder."""
        self.capacity = 0
        self._store.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Ends its use; what is on disk stays."""
        self._store.close()


class _Memory:
    """Slots in memory. A row is a list of arrays [1, ...]."""

    found = 0  # slots that another process left

    def __init__(self, row: list[Any], slots: int) -> None:
        self._leaves = [np.zeros((slots, *leaf.shape), leaf.dtype) for leaf in row]

    def read(self, slot: int, row: Rows) -> bool:
        for leaf, part in zip(self._leaves, row, strict=True):
            part[0] = leaf[slot]
        return True

    def write(self, slot: int, tokens: np.ndarray, row: Rows) -> bool:
        for leaf, part in zip(self._leaves, row, strict=True):
            leaf[slot] = part[0]
        return True

    def close(self) -> None:
        self._leaves = []


class _File:
    """Slots in one file, each followed by a seal over its tokens and its bytes; the fingerprint lies beside it."""

    def __init__(self, folder: Path, slot_bytes: int, fingerprint: Callable[[], str]) -> None:
        self._slot_bytes = slot_bytes
        # One thread, whose only job is the fingerprint of a cache that begins.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fingerprint")
        label = folder / "fingerprint"
        try:
            fresh = not (label.is_file() and label.read_text() == fingerprint())
            if fresh:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            self._file = os.open(folder / "activations", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{folder}: the prefix cache cannot be made there: {error.strerror}") from None
        if fresh:
            self._pool.submit(lambda: write_atomically(label, fingerprint()))
        self.found = os.fstat(self._file).st_size // slot_bytes

    def read(self, slot: int, row: Rows) -> bool:
        """Whether the slot could be read whole."""
        with contextlib.suppress(OSError):
            read = os.preadv(self._file, [*map(_bytes, row)], slot * self._slot_bytes)
            return read >= self._slot_bytes - _SEAL_BYTES
        return False

    def write(self, slot: int, tokens: np.ndarray, row: Rows) -> bool:
        parts: list[Any] = [*map(_bytes, row), _seal(tokens, row)]
        with contextlib.suppress(OSError):
            return os.pwritev(self._file, parts, slot * self._slot_bytes) == self._slot_bytes
        return False

    def seal(self, slot: int) -> bytes:
        return os.pread(self._file, _SEAL_BYTES, (slot + 1) * self._slot_bytes - _SEAL_BYTES)

    def close(self) -> None:
        self._pool.shutdown()
        os.close(self._file)


def _seal(tokens: np.ndarray, row: Rows) -> bytes:
    digest = hashlib.blake2b(np.ascontiguousarray(tokens, np.int64).tobytes(), digest_size=_SEAL_BYTES)
    for part in row:
        digest.update(_bytes(part))
    return digest.digest()


def _bytes(part: np.ndarray) -> np.ndarray:
    """The bytes of an array; a view where it is contiguous."""
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)
