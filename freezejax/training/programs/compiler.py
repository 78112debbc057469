"""What runs during a phase and at the boundary before it, compiled in the background before it is needed."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from freezejax.paths import PyTree
from freezejax.training.programs.tracing import Program


def compiler_options() -> dict[str, Any]:
    """What XLA is told for each program of a run.

    On a CPU LLVM's first level of optimization: XLA's own emitters have vectorized what there is by then, so the
    higher levels take a quarter of the time of compilation and make no step faster (`benchmarks.compile_level`).
    """
    chosen = jax.default_backend() == "cpu" and not jax.config.read("jax_disable_most_optimizations")
    return {"xla_backend_optimization_level": 1} if chosen else {}


class PhasePrograms(NamedTuple):
    """What runs during a phase."""

    step: Program
    prefix: Program | None  # the frozen prefix, where it is apart from the step
    prefix_text: str  # its StableHLO


class BackgroundCompiler(contextlib.AbstractContextManager["BackgroundCompiler"]):
    """Compiles the program of each phase at most once, on one background thread, in the order of `prepare`.

    `compile_phase` makes the executable of a phase from its index. `masks` has one mask per phase: those with equal
    masks share one executable. Use it as a context manager: leaving it drops what was not yet begun.
    """

    def __init__(self, compile_phase: Callable[[int], Any], masks: Sequence[Any]) -> None:
        """Starts no work yet."""
        self._masks = masks
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")
        self._begun = functools.cache(lambda index: self._pool.submit(compile_phase, index))

    def extend(self, masks: Sequence[Any]) -> None:
        """There are more phases; those that there were have not changed."""
        self._masks = masks

    def prepare(self, index: int) -> None:
        """Begins to compile phase `index`, if there is such a phase and it was not begun."""
        if index < len(self._masks):
            self._begun(self._masks.index(self._masks[index]))

    def get(self, index: int) -> Any:
        """Executable of phase `index`; waits for it if need be. Raises what compiling it raised."""
        return self._begun(self._masks.index(self._masks[index])).result()

    def __exit__(self, *_: object) -> None:
        """Cancels what has not begun and waits for what has."""
        self._pool.shutdown(cancel_futures=True)


class PhaseTransition:
    """A function of a state, worked out from shapes: what it passes on is passed by reference, the rest is one program.

    A boundary passes on nearly everything: parameters, and the moments of what goes on training. Fresh moments of
    what thaws are all that there is to compute, so nothing of a whole model is copied or allocated twice. `shardings`
    tells those of a tree of shapes like the result; without it all is on the default device.
    """

    def __init__(
        self, enter: Callable[[PyTree], PyTree], abstract: PyTree, shardings: Callable[[PyTree], PyTree] | None = None
    ) -> None:
        """Traces and compiles; nothing is left to do when the boundary comes."""
        jaxpr, result = jax.make_jaxpr(enter, return_shape=True)(abstract)
        inputs = {id(variable): at for at, variable in enumerate(jaxpr.jaxpr.invars)}
        self._structure = jax.tree.structure(result)
        self._source = [inputs.get(id(variable)) for variable in jaxpr.jaxpr.outvars]
        self.computed = self._source.count(None)

        def fresh(tree: PyTree) -> list[Any]:
            return [leaf for leaf, source in zip(jax.tree.leaves(tree), self._source, strict=True) if source is None]

        placed = None if shardings is None else fresh(shardings(result))
        self._program = (
            jax.jit(lambda state: fresh(enter(state)), out_shardings=placed)
            .lower(abstract)
            .compile(compiler_options=compiler_options())
        )

    def __call__(self, state: PyTree) -> PyTree:
        """The result; leaves that are passed on are those of `state`."""
        leaves, fresh = jax.tree.leaves(state), iter(self._program(state))
        found = [next(fresh) if source is None else leaves[source] for source in self._source]
        return jax.tree.unflatten(self._structure, found)
