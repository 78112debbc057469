"""Batches of token windows: endless shuffled ones for training, every target once for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from freezejax.data.shards import Tokens
from freezejax.errors import UserError

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]


class Windows:
    """The windows `[i*T, i*T + T]` of a token array, as a Grain random-access source.

    The last target of one is the first input of the next, so every token but the first is a target exactly once.

    >>> Windows(np.arange(10, dtype=np.uint16), 4)[1]
    {'inputs': array([4, 5, 6, 7], dtype=int32), 'targets': array([5, 6, 7, 8], dtype=int32)}
    """

    def __init__(self, tokens: Tokens, seq_len: int, *, with_index: bool = False):
        """Takes tokens [N] and the window length T in targets; `with_index` adds each window's own number."""
        # The plain view of a memory map: slicing numpy.memmap itself takes twice as long as the rest.
        self.tokens = np.asarray(tokens) if isinstance(tokens, np.ndarray) else tokens
        self.seq_len = seq_len
        self.with_index = with_index

    def __len__(self) -> int:
        """Number of whole windows: (N - 1) // T."""
        return max(0, len(self.tokens) - 1) // self.seq_len

    def __getitem__(self, index: int) -> Batch:
        """Inputs and targets, int32 [T]; `index`, int64 [], where it was asked for."""
        start = index * self.seq_len
        window = self.tokens[start : start + self.seq_len + 1].astype(np.int32)
        found = {"inputs": window[:-1], "targets": window[1:]}
        return found | {"index": np.asarray(index, np.int64)} if self.with_index else found


def train_iterator(
    tokens: Tokens,
    *,
    batch_size: int,
    seq_len: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    with_index: bool = False,
) -> grain.DatasetIterator[Batch]:
    """Endless batches of shuffled windows, every window once per epoch, each epoch in a new order.

    The shares of all processes, one after another, are the batch that one process with `process_count` times the
    batch size would see: how many processes share the work does not change what is learned. No window is dropped.

    Args:
        tokens: unsigned integers [N].
        batch_size: rows B per process.
        seq_len: targets T per row.
        seed: of the order, in [0, 2**32).
        process_index: which of the `process_count` shares this process reads.
        with_index: batches also hold `"index": int64 [B]`, the windows' numbers in the text.

    Returns:
        A Grain iterator of `{"inputs": int32 [B, T], "targets": int32 [B, T]}`. `set_state` of what `get_state()`
        gave, a small JSON-able dict, continues with exactly the batches that would follow.

    Raises:
        UserError: an argument out of range, or too few tokens for one global batch of distinct windows.

    >>> batches = train_iterator(np.arange(101, dtype=np.uint16), batch_size=2, seq_len=10, seed=0)
    >>> next(batches)["inputs"].shape
    (2, 10)
    >>> batches.get_state()
    {'next_index': 1}
    """
    import grain  # as in `elements`

    _check_sizes(batch_size=batch_size, seq_len=seq_len, process_count=process_count)
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index={process_index}: must lie in [0, process_count={process_count})")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: must lie in [0, 2**32)")
    needed = batch_size * process_count * seq_len + 1
    if len(tokens) < needed:
        rows = f"batch_size={batch_size * process_count} rows of seq_len={seq_len}"
        raise UserError(f"{len(tokens)} training tokens are too few for {rows}, which need {needed}; lower one of them")
    windows = grain.MapDataset.source(Windows(tokens, seq_len, with_index=with_index)).seed(seed).shuffle().repeat()
    # Nothing is left over of an endless stream, but rounding its length up overflows at batch_size=1.
    share = windows.batch(batch_size, drop_remainder=True)[process_index::process_count]
    return elements(share)


def elements(dataset: grain.MapDataset) -> grain.DatasetIterator:
    """One pass in order and in this thread: a row costs 0.02 ms, and of texts Grain would read 500 books ahead."""
    import grain  # imports JAX, which reading and accounting of tokens does without

    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def eval_batches(tokens: Tokens, *, batch_size: int, seq_len: int, every: int = 1) -> Iterator[Batch]:
    """Batches in order, in which each target of the `((N-1)//T)*T + 1` kept tokens has weight 1 once.

    A batch is `{"inputs": int32 [B, T], "targets": int32 [B, T], "weights": float32 [B, T]}` with B = `batch_size` and
    T = `seq_len`; the rows that pad the last one are zeros with weight 0. With `every` = n the windows are 0, n, 2n,
    ..., a cheaper sample of the whole text.

    Raises:
        UserError: an argument out of range, or too few tokens for one window.

    >>> batches = eval_batches(np.arange(8, dtype=np.uint16), batch_size=2, seq_len=2)
    >>> [batch["weights"].sum(axis=1).tolist() for batch in batches]
    [[2.0, 2.0], [2.0, 0.0]]
    """
    _check_sizes(batch_size=batch_size, seq_len=seq_len, every=every)
    windows = Windows(tokens, seq_len)
    if not len(windows):
        raise UserError(f"{len(tokens)} validation tokens are too few for one window of seq_len={seq_len} + 1")
    chosen = range(0, len(windows), every)
    starts = range(0, len(chosen), batch_size)
    return (_eval_batch(windows, chosen[at : at + batch_size], batch_size) for at in starts)


def _eval_batch(windows: Windows, chosen: range, batch_size: int) -> Batch:
    """The chosen windows, padded to `batch_size` rows."""
    shape = (batch_size, windows.seq_len)
    dtypes = {"inputs": np.int32, "targets": np.int32, "weights": np.float32}
    batch: Batch = {name: np.zeros(shape, dtype) for name, dtype in dtypes.items()}
    for row, index in enumerate(chosen):
        for name, values in windows[index].items():
            batch[name][row] = values
        batch["weights"][row] = 1
    return batch


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}={size}: must be at least 1")
