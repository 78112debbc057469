"""One wish to stop may arrive twice; a second wish interrupts."""

import signal

import pytest

from freezejax.training import interrupts


def test_a_signal_that_is_passed_on_twice_is_one():
    """`uv run` forwards what its group of processes got as well."""
    with interrupts.catch_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGTERM


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_interrupts_at_once(second, monkeypatch):
    now = iter([10.0, 10.0 + interrupts.SAME - 0.1, 10.0 + interrupts.SAME + 0.1])
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: next(now))
    with interrupts.catch_signals() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
        assert stop.received == signal.SIGINT


def test_afterwards_signals_mean_what_they_meant_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupts.catch_signals():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
