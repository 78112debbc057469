"""Batches with what their frozen prefix makes of them, computed or from a cache."""

import contextlib
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from freezejax.errors import UserError
from freezejax.paths import PyTree
from freezejax.training.batches import BatchSource
from freezejax.training.config import TrainConfig
from freezejax.training.prefix_cache.store import ActivationCache
from freezejax.training.programs.compiler import PhasePrograms
from freezejax.training.state import fingerprint
from freezejax.version import versions

FOLDER = "prefix_cache"  # in the folder of a run
LOOKAHEAD = 16  # batches that are read ahead, at most, to fill a program whose batch is in the cache for the most part


class PrefixBatches:
    """Batches with a further `entry`, `prefix`: what the prefix program makes of them, computed or from a cache.

    The program, a compiled `prefix(frozen, inputs)`, has as many rows as a batch. Where the cache holds some windows of
    a batch and lacks others, the rows that are free are filled with windows that the batches to come lack, so a cache
    of nine windows in ten saves about nine runs in ten. The first batch that was put together so is computed as well:
    should a window have other bits in other company, the cache is given up, and every batch is computed as without one.
    """

    def __init__(
        self,
        source: BatchSource,
        program: Callable[..., PyTree],
        frozen: PyTree,
        cache: ActivationCache | None = None,
        entry: str = "prefix",
    ) -> None:
        """Reads nothing yet."""
        self._entry, self.windows = entry, np.zeros(0, np.int64)  # of the last batch
        self._source, self._program, self._frozen, self._cache = source, program, frozen, cache
        self._position = source.get_state()  # after the last batch that was handed out
        self._queue = deque[tuple[dict[str, Any], np.ndarray, dict[str, Any]]]()  # read ahead
        self._ahead: dict[int, list[np.ndarray]] = {}  # rows computed ahead that the cache has no room for, by window
        self._pending: tuple[np.ndarray, np.ndarray, PyTree] | None = None
        self._checked = False
        self.runs = self.reused = 0  # of the program, windows from the cache

    def __next__(self) -> dict[str, Any]:
        """The next batch."""
        self._keep()
        batch, self.windows, self._position = self._queue.popleft() if self._queue else self._read()
        return batch | {self._entry: self._of_batch(self.windows, batch["inputs"])}

    def get_state(self) -> dict[str, Any]:
        """Position after the last batch that was handed out."""
        return self._position

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a position."""
        self._queue.clear()
        self._source.set_state(state)
        self._position = state

    def close(self, *, remove: bool) -> None:
        """Ends the phase, or the run in the middle of it; then what is on disk stays for the resumed run."""
        self._keep()
        if self._queue:
            self._source.set_state(self._position)
        if self._cache is not None:
            self._cache.remove() if remove else self._cache.close()

    def _read(self) -> tuple[dict[str, Any], np.ndarray, dict[str, Any]]:
        """A batch, the numbers of its windows (none from a source without), and the source's position after it."""
        batch = next(self._source)
        return batch, getattr(self._source, "windows", np.zeros(0, np.int64)), self._source.get_state()

    def _of_batch(self, windows: np.ndarray, inputs: np.ndarray) -> PyTree:
        if self._cache is None:
            return self._run(inputs)
        leaves, structure, found = self._cache.get(windows, inputs)
        hits = int(found.sum())
        self._take_ahead(windows, leaves, found)
        if not found.any():
            computed = self._run(inputs)
            self._pending = windows, inputs, computed
            return computed
        if not found.all():
            self._compute_with_those_to_come(self._cache, windows[~found], inputs[~found])
            self._take_ahead(windows, leaves, found)
        kept = jax.tree.unflatten(structure, leaves)
        if not self._checked and not self._check(kept, inputs):
            return self._run(inputs)
        self.reused += hits
        return kept

    def _run(self, inputs: np.ndarray) -> PyTree:
        self.runs += 1
        return self._program(self._frozen, inputs)

    def _take_ahead(self, windows: np.ndarray, leaves: list[np.ndarray], found: np.ndarray) -> None:
        """Fills in the rows that were computed ahead."""
        for i in np.flatnonzero(~found):
            if windows[i] in self._ahead:
                for leaf, row in zip(leaves, self._ahead[windows[i]], strict=True):
                    leaf[i] = row
                found[i] = True
        for window in windows:
            self._ahead.pop(window, None)

    def _compute_with_those_to_come(self, cache: ActivationCache, windows: np.ndarray, inputs: np.ndarray) -> None:
        """Runs the program on windows that are wanted now, and on others that will be, up to a whole batch."""
        wanted = dict(zip(windows, inputs, strict=True))
        for place in range(LOOKAHEAD):
            if place == len(self._queue):
                self._queue.append(self._read())
            batch, later, _ = self._queue[place]
            size = len(later)
            for i in np.flatnonzero(~cache.has(later)):
                if len(wanted) < size and later[i] not in self._ahead:
                    wanted.setdefault(later[i], batch["inputs"][i])
            if len(wanted) == size:
                break
        whole = np.resize(np.array(list(wanted)), size)  # filled up with those that are there
        tokens = np.stack([wanted[window] for window in whole])
        computed = jax.device_get(self._run(tokens))
        cache.put(whole, tokens, computed)
        for row, window in enumerate(wanted):
            self._ahead[window] = [np.array(leaf[row]) for leaf in jax.tree.leaves(computed)]

    def _keep(self) -> None:
        # One step late, like the metrics: fetching waits for the prefix, and the step is under way behind it.
        if self._pending is not None and self._cache is not None:
            self._cache.put(*jax.device_get(self._pending))
        self._pending = None

    def _check(self, kept: PyTree, inputs: np.ndarray) -> bool:
        """Whether these rows have the bits of a run on this very batch; if not, the cache is given up."""
        self._checked = fingerprint(jax.device_get(self._program(self._frozen, inputs))) == fingerprint(kept)
        if not self._checked and self._cache is not None:
            self._cache.remove()
            self._cache = None
            self._ahead.clear()
        return self._checked


@contextlib.contextmanager
def phase_batches(
    source: BatchSource, programs: PhasePrograms, frozen: PyTree, config: TrainConfig, directory: Path
) -> Iterator[BatchSource | PrefixBatches]:
    """Batches as the step of a phase takes them, with its `frozen` half of the parameters.

    The cache, on "disk" in the `directory` of the run, goes with the phase; a broken-off one is left there.
    """
    if programs.prefix is None:
        shutil.rmtree(directory / FOLDER, ignore_errors=True)  # left by a run killed at the end of an earlier phase
        yield source
        return
    cache = None
    if config.prefix_cache != "recompute":
        cache = make_cache(
            "train.prefix_cache",
            config.prefix_cache,
            config.prefix_cache_gib,
            programs.prefix.compiled.out_info,
            source,
            directory / FOLDER,
            lambda: origin(programs.prefix_text, frozen),
        )
    found, whole = PrefixBatches(source, programs.prefix, frozen, cache), False
    try:
        yield found
        whole = True
    finally:
        found.close(remove=whole)


def make_cache(
    field: str, kind: str, gib: float, batch: PyTree, source: BatchSource, folder: Path, fingerprint: Callable[[], str]
) -> ActivationCache:
    """The cache of a program that makes `batch` (shapes with a leading axis B) of the windows of a source.

    `field` of a config names it in errors, and `field` with `_gib` its bound; it lies in "memory", or on "disk" in
    `folder`. For `fingerprint` see `ActivationCache` and `origin`.

    Raises:
      UserError: windows without numbers, or a bound beyond what this machine's memory can promise.
    """
    windows = getattr(source, "count", None)
    if windows is None:
        raise UserError(f"{field}={kind!r} needs batches of numbered windows: use 'recompute'")
    row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch)
    try:
        return ActivationCache(row, windows, gib * 2**30, folder if kind == "disk" else None, fingerprint)
    except MemoryError:
        wrong = f"{field}_gib={gib}: this machine's memory is smaller"
        raise UserError(f"{wrong}; lower it, or use {field}='disk'") from None


def origin(program: str, params: PyTree) -> str:
    """Digest of all that activations follow from besides the tokens: the bits depend on the machine, too."""
    packages = versions("freezejax", "jax", "jaxlib")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = jax.devices()[0].device_kind, cores, os.environ.get("XLA_FLAGS", "")
    return hashlib.sha256(repr((program, fingerprint(params), packages, machine)).encode()).hexdigest()
