"""Loss and bits per byte of a model on validation tokens, in plain and in sliding windows."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from freezejax.data import ByteTable, Tokens, bits_per_byte, byte_counts, eval_batches
from freezejax.errors import UserError
from freezejax.paths import PyTree
from freezejax.sharding import Layout
from freezejax.training import processes
from freezejax.training.programs.compiler import compiler_options
from freezejax.training.programs.tracing import OneTrace

Apply = Callable[..., jax.Array]
Batch = dict[str, np.ndarray]

IN_FLIGHT = 8  # batches handed to the device before the score of the first is waited for


class Windows(NamedTuple):
    """Of every window, in order."""

    nats_N: np.ndarray  # float64, of all its scored targets
    tokens_N: np.ndarray  # int64, how many these are
    bytes_N: np.ndarray  # int64, UTF-8 bytes that they stand for


class Evaluation(NamedTuple):
    """Figures over every scored target."""

    val_ce: float  # mean cross entropy, nats per token
    val_bpb: float  # bits per byte of text
    tokens: int  # scored targets
    bytes: int  # UTF-8 bytes they stand for


def make_evaluator(
    apply: Apply,
    tokens: Tokens,
    table: ByteTable,
    *,
    batch_size: int,
    seq_len: int,
    every: int = 1,
    compute_dtype: DTypeLike = jnp.float32,
    layout: Layout | None = None,
) -> Callable[[PyTree], Evaluation]:
    """Evaluation of parameters over non-overlapping windows, every target once. Sums are float64.

    Windows and byte counts are those of the Parameter Golf challenge (docs/data.md). Batches are read from the tokens
    anew in every evaluation and not kept; targets and bytes are counted in the first one.

    `apply(params, tokens_BxT, targets_BxT=..., compute_dtype=...)` gives negative log likelihoods in nats, float32
    [B, T], as that of a `Model` does. `tokens`, 1-D, are best memory-mapped; `batch_size` windows of `seq_len` tokens
    are scored at a time, with `every=n` each n-th only. With a `layout`, which says how the parameters lie on a mesh,
    every process calls the evaluation alike.

    Raises:
      UserError: too few tokens, or a mesh that does not divide `batch_size`.

    >>> table = ByteTable(np.ones(2, np.int64), np.zeros(2, bool), np.zeros(2, bool))
    >>> uniform = lambda params, x, targets_BxT, compute_dtype: jnp.full(x.shape, jnp.log(2.0))
    >>> evaluate = make_evaluator(uniform, np.zeros(9, np.uint16), table, batch_size=2, seq_len=4)
    >>> found = evaluate({})
    >>> round(found.val_bpb, 6), found.tokens, found.bytes
    (1.0, 8, 8)
    """
    sizes = {"batch_size": batch_size, "seq_len": seq_len, "every": every}
    score = make_window_scorer(apply, tokens, table, **sizes, compute_dtype=compute_dtype, layout=layout)
    return lambda params: total(score(params))


def make_window_scorer(
    apply: Apply,
    tokens: Tokens,
    table: ByteTable,
    *,
    batch_size: int,
    seq_len: int,
    every: int = 1,
    compute_dtype: DTypeLike = jnp.float32,
    layout: Layout | None = None,
) -> Callable[[PyTree], Windows]:
    """As `make_evaluator`, each window by itself: for intervals over text. `total` makes one evaluation of them."""
    batches = functools.partial(eval_batches, tokens, batch_size=batch_size, seq_len=seq_len, every=every)
    batches()  # a bad size is told now
    processes.check_batch(batch_size, None if layout is None else layout.mesh, "data.eval_batch_size")
    return _scorer(apply, table, batches, compute_dtype, layout)


def total(windows: Windows) -> Evaluation:
    """The figures of all windows together.

    >>> total(Windows(np.log([2.0, 8.0]), np.array([1, 1]), np.array([2, 2])))
    Evaluation(val_ce=1.3862943611198906, val_bpb=1.0, tokens=2, bytes=4)
    """
    nats, tokens, size = (float(windows.nats_N.sum()), int(windows.tokens_N.sum()), int(windows.bytes_N.sum()))
    return Evaluation(nats / tokens, bits_per_byte(nats, size), tokens, size)


def evaluate_sliding(
    apply: Apply,
    params: PyTree,
    tokens: Tokens,
    table: ByteTable,
    *,
    batch_size: int,
    seq_len: int,
    stride: int,
    compute_dtype: DTypeLike = jnp.float32,
) -> Evaluation:
    """Like `make_evaluator`, but each target is scored with at least `seq_len - stride` tokens before it.

    Windows of `seq_len` end every `stride` tokens; each scores only what the one before did not, the first all of its
    targets: those of the plain evaluation, each once.

    Raises:
      UserError: `stride` outside 1..seq_len, or fewer tokens than one window.

    >>> table = ByteTable(np.ones(2, np.int64), np.zeros(2, bool), np.zeros(2, bool))
    >>> uniform = lambda params, x, targets_BxT, compute_dtype: jnp.full(x.shape, jnp.log(2.0))
    >>> evaluate_sliding(uniform, {}, np.zeros(9, np.uint16), table, batch_size=2, seq_len=4, stride=1).tokens
    8
    """
    if not 1 <= stride <= seq_len:
        raise UserError(f"stride={stride}: expected 1 to seq_len={seq_len}")
    scored = (len(tokens) - 1) // seq_len * seq_len
    if scored < 1:
        raise UserError(f"validation has {len(tokens)} tokens; seq_len={seq_len} needs {seq_len + 1}")
    batches = functools.partial(_sliding_batches, np.asarray(tokens), scored, batch_size, seq_len, stride)
    return total(_scorer(apply, table, batches, compute_dtype, None)(params))


def _sliding_batches(tokens: np.ndarray, scored: int, batch_size: int, seq_len: int, stride: int) -> Iterator[Batch]:
    ends = [*range(seq_len, scored, stride), scored]
    missing = -len(ends) % batch_size  # rows of the last batch, in which nothing is scored
    ends_NxB = np.array([*ends, *[seq_len] * missing]).reshape(-1, batch_size)
    news_NxB = np.array([*np.diff([0, *ends]), *[0] * missing]).reshape(-1, batch_size)
    position = np.arange(seq_len + 1)
    for end, new in zip(ends_NxB, news_NxB, strict=True):
        window = tokens[(end - seq_len)[:, None] + position].astype(np.int32)
        weights = (position[:-1] >= seq_len - new[:, None]).astype(np.float32)
        yield {"inputs": window[:, :-1], "targets": window[:, 1:], "weights": weights}


def _scorer(
    apply: Apply, table: ByteTable, batches: Callable[[], Iterable[Batch]], dtype: DTypeLike, layout: Layout | None
) -> Callable[[PyTree], Windows]:
    """Scores of batches that can be read again and again; their targets and bytes are counted once."""

    def score_B(params: PyTree, batch: dict[str, jax.Array]) -> jax.Array:
        if layout is not None:
            params = layout.at_use(params)
        nll_BxT = apply(params, batch["inputs"], targets_BxT=batch["targets"], compute_dtype=dtype)
        return jnp.sum(nll_BxT * batch["weights"], axis=1)

    replicated = None if layout is None else layout.replicated
    score = OneTrace(score_B, "evaluation", out_shardings=replicated, compiler_options=compiler_options())
    counts = functools.cache(lambda: _counts(batches(), table))

    def scored(params: PyTree) -> Windows:
        under_way, scores = deque[jax.Array](), []
        for batch in batches():
            placed = batch if layout is None else processes.place(batch, dict.fromkeys(batch, layout.batch))
            under_way.append(score(params, placed))
            if len(under_way) > IN_FLIGHT:  # neither does the device wait, nor does it hold all batches
                scores.append(jax.device_get(under_way.popleft()))
        nats_N = np.concatenate([*scores, *jax.device_get(list(under_way))], dtype=np.float64)
        tokens_N, bytes_N = counts()
        real = tokens_N > 0  # the other rows fill the last batch up
        return Windows(nats_N[real], tokens_N[real], bytes_N[real])

    return scored


def _counts(batches: Iterable[Batch], table: ByteTable) -> tuple[np.ndarray, np.ndarray]:
    """Scored targets of every row, and the bytes that they stand for."""
    tokens, sizes = [], []
    for batch in batches:
        scored = batch["weights"] > 0
        tokens.append(scored.sum(axis=1))
        sizes.append(np.where(scored, byte_counts(table, batch["inputs"], batch["targets"]), 0).sum(axis=1))
    return np.concatenate(tokens), np.concatenate(sizes)
