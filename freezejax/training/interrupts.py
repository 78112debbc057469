"""Ctrl-C and SIGTERM as a wish to stop at the next step, and the ways a run ends early."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator
from types import FrameType

SAME = 0.5  # seconds: `uv run` and `timeout` pass on a signal that the whole group of processes got


class Stopped(Exception):
    """The run was asked to stop, saved a checkpoint and did: after a step, or (None) between two runs.

    >>> Stopped(12, signal.SIGTERM).exit_code
    143
    """

    def __init__(self, step: int | None, signal_number: int) -> None:
        """Takes the step reached and the signal that asked."""
        self.exit_code = 128 + signal_number
        where = "between two runs" if step is None else f"after step {step}"
        super().__init__(f"stopped by {signal.Signals(signal_number).name} {where}")


class NonFinite(Exception):
    """The loss of a step, the norm of its gradient, an evaluation or a weight to be saved is not a finite number.

    >>> str(NonFinite(7, "loss", float("nan"), 5))
    'step 7: loss is nan; the checkpoint of step 5 is kept. Lower the learning rate or raise the warmup'
    """

    def __init__(self, step: int, what: str, value: float, checkpoint: int | None) -> None:
        """Names the step (the one that computed the value) and the last good checkpoint."""
        kept = "no checkpoint was saved yet" if checkpoint is None else f"the checkpoint of step {checkpoint} is kept"
        super().__init__(f"step {step}: {what} is {value}; {kept}. Lower the learning rate or raise the warmup")


@dataclasses.dataclass
class StopSignal:
    """Whether a stop was asked for; `received` is the signal's number or None."""

    received: int | None = None


@contextlib.contextmanager
def catch_signals() -> Iterator[StopSignal]:
    """Inside, the first SIGINT or SIGTERM only sets `received`; a second one interrupts at once.

    Within half a second of the first it is no second one. Must be entered on the main thread.

    >>> with catch_signals() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.received == signal.SIGTERM
    True
    """
    stop, first = StopSignal(), 0.0

    def note(number: int, _: FrameType | None) -> None:
        nonlocal first
        if stop.received is None:
            stop.received, first = number, time.monotonic()
        elif time.monotonic() - first > SAME:
            raise KeyboardInterrupt

    with contextlib.ExitStack() as afterwards:
        for number in (signal.SIGINT, signal.SIGTERM):
            afterwards.callback(signal.signal, number, signal.signal(number, note))
        yield stop
