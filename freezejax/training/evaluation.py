"""Loss and bits per byte of a model on validation tokens, in plain and in sliding windows."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from freezejax.data import ByteTable, Tokens, bits_per_byte, byte_counts, eval_batches
from freezejax.errors import UserError
from freezejax.models import cross_entropy
from freezejax.paths import PyTree
from freezejax.sharding import Layout
from freezejax.training import processes
from freezejax.training.tracing import OneTrace

Apply = Callable[..., jax.Array]
Batch = dict[str, np.ndarray]


class Evaluation(NamedTuple):
    """Figures over every scored target.

    >>> Evaluation(1.0, 2.0, 10, 12).tokens
    10
    """

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
    """Evaluation of parameters over non-overlapping windows, every target once.

    Windows and byte counts are those of the Parameter Golf challenge (docs/data.md). Sums are float64.

    Args:
      apply: `apply(params, tokens_BxT, compute_dtype=...) -> logits [B, T, V]`.
      tokens: 1-D validation tokens.
      table: bytes per token of the tokenizer.
      batch_size: windows per call.
      seq_len: tokens per window.
      every: scores every n-th window only.
      compute_dtype: of the activations.
      layout: how the parameters lie on a mesh, if they do; every process then calls the evaluation alike.

    Raises:
      UserError: too few tokens, or a mesh that does not divide `batch_size`.

    >>> table = ByteTable(np.ones(2, np.int64), np.zeros(2, bool), np.zeros(2, bool))
    >>> uniform = lambda params, x, compute_dtype: jnp.zeros((*x.shape, 2))
    >>> evaluate = make_evaluator(uniform, np.zeros(9, np.uint16), table, batch_size=2, seq_len=4)
    >>> found = evaluate({})
    >>> round(found.val_bpb, 6), found.tokens, found.bytes
    (1.0, 8, 8)
    """
    batches = list(eval_batches(tokens, batch_size=batch_size, seq_len=seq_len, every=every))
    processes.check_batch(batch_size, None if layout is None else layout.mesh, "data.eval_batch_size")
    score = _scorer(apply, compute_dtype, layout)
    return lambda params: _total(score, params, batches, table)


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

    Windows of `seq_len` end every `stride` tokens; each scores only what the one before did not. The
    first scores all of its targets. Same targets as the plain evaluation, each once.

    Raises:
      UserError: `stride` outside 1..seq_len, or fewer tokens than one window.

    >>> table = ByteTable(np.ones(2, np.int64), np.zeros(2, bool), np.zeros(2, bool))
    >>> uniform = lambda params, x, compute_dtype: jnp.zeros((*x.shape, 2))
    >>> evaluate_sliding(uniform, {}, np.zeros(9, np.uint16), table, batch_size=2, seq_len=4, stride=1).tokens
    8
    """
    if not 1 <= stride <= seq_len:
        raise UserError(f"stride={stride}: expected 1 to seq_len={seq_len}")
    scored = (len(tokens) - 1) // seq_len * seq_len
    if scored < 1:
        raise UserError(f"validation has {len(tokens)} tokens; seq_len={seq_len} needs {seq_len + 1}")
    batches = _sliding_batches(np.asarray(tokens), scored, batch_size, seq_len, stride)
    return _total(_scorer(apply, compute_dtype), params, batches, table)


def _sliding_batches(tokens: np.ndarray, scored: int, batch_size: int, seq_len: int, stride: int) -> Iterator[Batch]:
    ends = [*range(seq_len, scored, stride), scored]
    news = np.diff([0, *ends])
    position = np.arange(seq_len)
    for at in range(0, len(ends), batch_size):
        end, new = np.array(ends[at : at + batch_size]), news[at : at + batch_size]
        missing = batch_size - len(end)
        end, new = np.pad(end, (0, missing), constant_values=seq_len), np.pad(new, (0, missing))
        index_BxT = (end - seq_len)[:, None] + position
        yield {
            "inputs": tokens[index_BxT].astype(np.int32),
            "targets": tokens[index_BxT + 1].astype(np.int32),
            "weights": (position >= seq_len - new[:, None]).astype(np.float32),
        }


def _scorer(
    apply: Apply, compute_dtype: DTypeLike, layout: Layout | None = None
) -> Callable[[PyTree, Batch], jax.Array]:
    def score_B(params: PyTree, batch: dict[str, jax.Array]) -> jax.Array:
        if layout is not None:
            params = layout.at_use(params)
        logits = apply(params, batch["inputs"], compute_dtype=compute_dtype)
        return jnp.sum(cross_entropy(logits, batch["targets"]) * batch["weights"], axis=1)

    if layout is None:
        return OneTrace(score_B, "evaluation")
    over_mesh, rows = OneTrace(score_B, "evaluation", out_shardings=layout.replicated), layout.batch
    return lambda params, batch: over_mesh(params, processes.place(batch, dict.fromkeys(batch, rows)))


def _total(score: Any, params: PyTree, batches: Any, table: ByteTable) -> Evaluation:
    scores, count, n_bytes = [], 0, 0
    for batch in batches:
        scores.append(score(params, batch))
        weights = batch["weights"] > 0
        count += int(weights.sum())
        n_bytes += int(byte_counts(table, batch["inputs"], batch["targets"])[weights].sum())
    # Fetched only now, so that the device is never waited for between batches.
    nats = float(np.sum(jax.device_get(scores), dtype=np.float64))
    return Evaluation(nats / count, bits_per_byte(nats, n_bytes), count, n_bytes)
