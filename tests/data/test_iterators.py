"""Iterators: every window once per epoch for all processes together, resumable anywhere."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax import data
from freezejax.errors import UserError

TOKENS = np.arange(1001, dtype=np.uint16)  # a window's first input tells which window it is


def take(iterator, steps):
    return [next(iterator) for _ in range(steps)]


def first_inputs(batches):
    return np.concatenate([batch["inputs"][:, 0] for batch in batches])


def test_shapes_and_shift():
    batch = next(data.train_iterator(TOKENS, batch_size=3, seq_len=7, seed=0))
    assert set(batch) == {"inputs", "targets"}
    for array in batch.values():
        assert (array.shape, array.dtype) == ((3, 7), np.int32)
    np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)
    assert (batch["inputs"][:, 0] % 7 == 0).all()


@given(before=st.integers(0, 30), lost=st.integers(0, 10), seed=st.integers(0, 2**32 - 1), t=st.integers(5, 90))
def test_resuming_equals_not_stopping(before, lost, seed, t):
    arguments = {"batch_size": 3, "seq_len": t, "seed": seed}
    straight = take(data.train_iterator(TOKENS, **arguments), before + 12)[before:]
    interrupted = data.train_iterator(TOKENS, **arguments)
    take(interrupted, before)
    state = json.loads(json.dumps(interrupted.get_state()))  # a checkpoint can hold it
    take(interrupted, lost)  # steps after the checkpoint, lost with the crash
    resumed = data.train_iterator(TOKENS, **arguments)
    resumed.set_state(state)
    for a, b in zip(straight, take(resumed, 12), strict=True):
        np.testing.assert_array_equal(a["inputs"], b["inputs"])
        np.testing.assert_array_equal(a["targets"], b["targets"])


def test_not_restoring_the_state_is_seen():
    arguments = {"batch_size": 3, "seq_len": 7, "seed": 5}
    straight = take(data.train_iterator(TOKENS, **arguments), 8)
    fresh = take(data.train_iterator(TOKENS, **arguments), 3)
    assert (first_inputs(straight[5:]) != first_inputs(fresh)).any()


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_processes_together_see_each_window_once_per_epoch(process_count, batch_size, seed):
    """60 windows and global batches of P*B: lcm(60, P*B)/60 epochs end with a whole batch."""
    n_windows, rows = 60, process_count * batch_size
    epochs = rows // np.gcd(n_windows, rows)
    steps = n_windows * epochs // rows
    seen = [
        first_inputs(
            take(
                data.train_iterator(
                    TOKENS[: n_windows * 5 + 1],
                    batch_size=batch_size,
                    seq_len=5,
                    seed=seed,
                    process_index=index,
                    process_count=process_count,
                ),
                steps,
            )
        )
        for index in range(process_count)
    ]
    windows, times = np.unique(np.concatenate(seen), return_counts=True)
    assert windows.tolist() == list(range(0, 300, 5))
    assert set(times) == {epochs}


def test_one_epoch_over_two_processes_is_a_partition():
    halves = [
        data.train_iterator(TOKENS, batch_size=5, seq_len=10, seed=3, process_index=i, process_count=2) for i in (0, 1)
    ]
    a, b = (set(first_inputs(take(half, 10)).tolist()) for half in halves)
    assert not a & b
    assert a | b == set(range(0, 1000, 10))


def test_forgetting_the_process_is_seen():
    """Two processes that both claim to be the only one read the same windows."""
    same = [set(first_inputs(take(data.train_iterator(TOKENS, batch_size=5, seq_len=10, seed=3), 10)).tolist())] * 2
    assert same[0] & same[1]


@given(st.integers(1, 4), st.integers(0, 9))
def test_the_global_batch_does_not_depend_on_the_process_count(process_count, seed):
    whole = data.train_iterator(TOKENS, batch_size=2 * process_count, seq_len=9, seed=seed)
    shares = [
        data.train_iterator(TOKENS, batch_size=2, seq_len=9, seed=seed, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for _ in range(60):  # several epochs
        together = np.concatenate([next(share)["inputs"] for share in shares])
        np.testing.assert_array_equal(next(whole)["inputs"], together)
    assert whole.get_state() == shares[0].get_state()


def test_order_changes_with_the_epoch_and_the_seed():
    def epochs(seed):
        return first_inputs(take(data.train_iterator(TOKENS, batch_size=10, seq_len=10, seed=seed), 20)).reshape(2, 100)

    first, second = epochs(0)
    assert set(first) == set(second) == set(range(0, 1000, 10))
    assert (first != second).any()
    assert (first != np.sort(first)).any()
    assert (first != epochs(1)[0]).any()
    np.testing.assert_array_equal(epochs(0), [first, second])


@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 6))
def test_evaluation_scores_each_kept_target_once(n_tokens, seq_len, batch_size):
    tokens = TOKENS[:n_tokens]
    if n_tokens < seq_len + 1:
        with pytest.raises(UserError, match="too few for one window"):
            data.eval_batches(tokens, batch_size=batch_size, seq_len=seq_len)
        return
    batches = list(data.eval_batches(tokens, batch_size=batch_size, seq_len=seq_len))
    weights = np.concatenate([batch["weights"] for batch in batches])
    assert weights.dtype == np.float32
    scored = np.concatenate([batch["targets"] for batch in batches])[weights > 0]
    inputs = np.concatenate([batch["inputs"] for batch in batches])[weights > 0]
    kept = (n_tokens - 1) // seq_len * seq_len + 1
    np.testing.assert_array_equal(scored, tokens[1:kept])
    np.testing.assert_array_equal(inputs, tokens[: kept - 1])
    assert {batch[name].shape for batch in batches for name in batch} == {(batch_size, seq_len)}
    assert set(np.unique(weights)) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 400}, "1001 training tokens are too few .* need 1201"),
        ({"process_count": 200}, "too few"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seq_len": -1}, "seq_len=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"process_index": 1}, "process_index=1"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(UserError, match=message) as error:
        data.train_iterator(TOKENS, **({"batch_size": 3, "seq_len": 7, "seed": 0} | changes))
    assert "\n" not in str(error.value)


def test_exactly_enough_tokens():
    assert next(data.train_iterator(TOKENS[:22], batch_size=3, seq_len=7, seed=0))["inputs"].shape == (3, 7)
    with pytest.raises(UserError, match="21 training tokens"):
        data.train_iterator(TOKENS[:21], batch_size=3, seq_len=7, seed=0)
