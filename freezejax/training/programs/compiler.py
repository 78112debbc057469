"""The programs of a phase, compiled in the background before they are needed."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

from freezejax.training.programs.tracing import Program


class PhasePrograms(NamedTuple):
    """What runs during a phase.

    >>> PhasePrograms(step=None, prefix=None, prefix_text="").prefix is None
    True
    """

    step: Program
    prefix: Program | None  # the frozen prefix, where it is apart from the step
    prefix_text: str  # its StableHLO


class BackgroundCompiler:
    """Compiles the program of each phase at most once, on one background thread, in the order of `prepare`.

    Use it as a context manager: leaving it drops what was not yet begun.

    Args:
      compile_phase: phase index -> executable.
      masks: one mask per phase; phases with equal masks share one executable.

    >>> with BackgroundCompiler(lambda index: f"program {index}", [{"w": True}, {"w": False}, {"w": True}]) as c:
    ...     c.prepare(1)
    ...     c.get(1), c.get(2)
    ('program 1', 'program 0')
    """

    def __init__(self, compile_phase: Callable[[int], Any], masks: Sequence[Any]) -> None:
        """Starts no work yet."""
        self._compile = compile_phase
        self._first_like = [next(i for i, other in enumerate(masks) if other == mask) for mask in masks]
        self._futures: dict[int, Future[Any]] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")

    def prepare(self, index: int) -> None:
        """Begins to compile phase `index`, if there is such a phase and it was not begun."""
        if index < len(self._first_like):
            first = self._first_like[index]
            if first not in self._futures:
                self._futures[first] = self._pool.submit(self._compile, first)

    def get(self, index: int) -> Any:
        """Executable of phase `index`; waits for it if need be. Raises what compiling it raised."""
        self.prepare(index)
        return self._futures[self._first_like[index]].result()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Cancels what has not begun and waits for what has."""
        self._pool.shutdown(cancel_futures=True)
