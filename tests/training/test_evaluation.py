"""Evaluation in plain and sliding windows: every target once, and the figures of a loop anyone would write."""

import math
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezejax.data import ByteTable
from freezejax.errors import UserError
from freezejax.models import cross_entropy
from freezejax.training import evaluation
from freezejax.training.evaluation import evaluate_sliding, make_evaluator

V = 61
TABLE = ByteTable(np.arange(V) % 5 + 1, np.arange(V) % 7 == 0, np.arange(V) == 3)


@pytest.fixture(scope="module")
def model(build):
    return build(num_layers=1)


@pytest.fixture(scope="module")
def params(model):
    return jax.tree.map(lambda x: x * 5, model.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def text():
    return np.random.default_rng(1).integers(0, V, 150).astype(np.uint16)


def uniform(params, x, targets_BxT, compute_dtype):
    return jnp.full(x.shape, math.log(V), jnp.float32)


def straightforward(model, params, text, windows):
    """`windows`: (start, first scored position, end); one window at a time, float64 sums."""
    nats, tokens, size, covered = 0.0, 0, 0, []
    for start, first, stop in windows:
        logits = model.apply(params, jnp.asarray(text[start:stop], jnp.int32)[None])[0]
        log_probability = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)), np.float64)
        for at in range(first, stop):
            target, before = int(text[at + 1]), int(text[at])
            nats -= log_probability[at - start, target]
            tokens += 1
            size += int(TABLE.base_V[target]) + int(TABLE.leading_space_V[target] and not TABLE.boundary_V[before])
            covered.append(at + 1)
    return nats / tokens, nats / math.log(2) / size, tokens, size, covered


@pytest.mark.parametrize("batch_size", [1, 4])
def test_plain_is_the_straightforward_computation(model, params, text, batch_size):
    found = make_evaluator(model.apply, text, TABLE, batch_size=batch_size, seq_len=16)(params)
    *figures, covered = straightforward(model, params, text, [(s, s, s + 16) for s in range(0, 144, 16)])
    assert found == pytest.approx(tuple(figures), rel=1e-5)
    assert covered == list(range(1, 145))


def test_every_nth_window(model, params, text):
    found = make_evaluator(model.apply, text, TABLE, batch_size=2, seq_len=16, every=4)(params)
    *figures, _ = straightforward(model, params, text, [(s, s, s + 16) for s in (0, 64, 128)])
    assert found == pytest.approx(tuple(figures), rel=1e-5)
    assert found.tokens == 48


def sliding(model, params, text, stride, batch_size=3):
    return evaluate_sliding(model.apply, params, text, TABLE, batch_size=batch_size, seq_len=16, stride=stride)


@pytest.mark.parametrize("stride", [5, 16])
def test_sliding_is_the_straightforward_computation(model, params, text, stride):
    ends = [*range(16, 144, stride), 144]
    windows = [(end - 16, max(last, end - 16), end) for last, end in zip([0, *ends], ends, strict=False)]
    *figures, covered = straightforward(model, params, text, windows)
    assert covered == list(range(1, 145))
    assert sliding(model, params, text, stride) == pytest.approx(tuple(figures), rel=1e-5)


def test_sliding_by_whole_windows_is_plain(model, params, text):
    plain = make_evaluator(model.apply, text, TABLE, batch_size=3, seq_len=16)(params)
    assert sliding(model, params, text, 16) == pytest.approx(plain, rel=1e-6)
    assert sliding(model, params, text, 4).val_ce != pytest.approx(plain.val_ce, rel=1e-6)


@settings(max_examples=15)
@given(stride=st.integers(1, 8), length=st.integers(9, 60), batch_size=st.integers(1, 5), seed=st.integers(0, 9))
def test_every_target_is_scored_once_whatever_the_stride(stride, length, batch_size, seed):
    """The score of a target is its own token, so the sum tells which were scored."""
    text = np.random.default_rng(seed).integers(0, V, length).astype(np.uint16)
    scored = (length - 1) // 8 * 8
    table = ByteTable(np.arange(1, V + 1), np.zeros(V, bool), np.zeros(V, bool))
    found = evaluate_sliding(uniform, {}, text, table, batch_size=batch_size, seq_len=8, stride=stride)
    plain = make_evaluator(uniform, text, table, batch_size=batch_size, seq_len=8)({})
    assert found.tokens == plain.tokens == scored
    assert found.bytes == plain.bytes == int(text[1 : scored + 1].astype(int).sum()) + scored
    assert found.val_ce == pytest.approx(math.log(V), rel=1e-6)
    assert found.val_bpb == pytest.approx(found.val_ce * found.tokens / found.bytes / math.log(2), rel=1e-9)


@pytest.mark.parametrize("stride", [0, 17, -1])
def test_a_stride_that_skips_or_stands_still_is_refused(model, params, text, stride):
    with pytest.raises(UserError, match=f"stride={stride}"):
        sliding(model, params, text, stride)


def test_too_few_tokens_are_refused(model, params, text):
    with pytest.raises(UserError, match="16 tokens"):
        sliding(model, params, text[:16], 4)


def test_batches_are_read_from_the_text_and_not_kept(tmp_path):
    """Of 400,000 tokens in a file an evaluation holds a few batches; kept, they would take 12 bytes a token."""
    path, count = tmp_path / "tokens", 400_000
    np.zeros(count, np.uint16).tofile(path)
    text = np.memmap(path, np.uint16, "r")
    evaluate = make_evaluator(uniform, text, TABLE, batch_size=4, seq_len=500)
    evaluate({})  # compiles
    tracemalloc.start()
    try:
        evaluate = make_evaluator(uniform, text, TABLE, batch_size=4, seq_len=500)
        kept_before = tracemalloc.get_traced_memory()[0]
        found = evaluate({})
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.tokens == count - 500
    assert max(kept_before, kept) < count
    assert peak < 4 * count


def test_bytes_are_counted_in_the_first_evaluation_only(model, params, text, monkeypatch):
    calls, count = [], evaluation.byte_counts
    monkeypatch.setattr(evaluation, "byte_counts", lambda *args: calls.append(1) or count(*args))
    evaluate = make_evaluator(model.apply, text, TABLE, batch_size=3, seq_len=16)
    found = [evaluate(params) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert len(calls) == 3  # batches


def test_the_logits_of_a_batch_never_stand_in_float32(build):
    """A vocabulary so large that they are most of the program; counterpart: they do where they are asked for."""
    B, T, large = 16, 64, 2**15
    model = build(vocab_size=large)
    table = ByteTable(np.ones(large, np.int64), np.zeros(large, bool), np.zeros(large, bool))
    shapes, tokens = jax.eval_shape(model.init, jax.random.key(0)), jax.ShapeDtypeStruct((B, T), jnp.int32)
    asked = []

    def apply(params, inputs, **options):
        asked.append(options.keys())
        return model.apply(params, inputs, **options)

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    make_evaluator(apply, np.zeros(T + 1, np.uint16), table, batch_size=1, seq_len=T)(zeros)
    assert asked == [{"targets_BxT", "compute_dtype"}]

    def temporaries(score):
        return jax.jit(score).lower(shapes, tokens, tokens).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * B * T * large
    assert temporaries(lambda p, x, y: model.apply(p, x, targets_BxT=y)) < logits
    assert temporaries(lambda p, x, y: cross_entropy(model.apply(p, x), y)) > logits
