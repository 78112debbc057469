"""A phase transition: the state of one phase made into that of the next, by a program compiled beforehand."""

from collections.abc import Callable
from typing import Any

import jax

from freezejax.paths import PyTree


class PhaseTransition:
    """A function of a state, worked out from shapes: what it passes on is passed by reference, the rest is one program.

    A boundary passes on nearly everything: parameters, and the moments of what goes on training. Fresh moments of
    what thaws are all that there is to compute, so nothing of a whole model is copied or allocated twice.

    Args:
      enter: pure `state -> state`.
      abstract: shapes of the argument, with shardings where it lies on a mesh.
      shardings: of a tree of shapes like the result; None = the default device.

    >>> import jax.numpy as jnp
    >>> state = {"w": jnp.ones(3), "old moment": jnp.ones(3)}
    >>> enter = lambda s: {"w": s["w"], "moment": jnp.zeros_like(s["w"])}
    >>> transition = PhaseTransition(enter, jax.eval_shape(lambda: state))
    >>> found = transition(state)
    >>> found["w"] is state["w"], transition.computed
    (True, 1)
    """

    def __init__(
        self,
        enter: Callable[[PyTree], PyTree],
        abstract: PyTree,
        shardings: Callable[[PyTree], PyTree] | None = None,
    ) -> None:
        """Traces and compiles; nothing is left to do when the boundary comes."""
        jaxpr, result = jax.make_jaxpr(enter, return_shape=True)(abstract)
        inputs = {id(variable): at for at, variable in enumerate(jaxpr.jaxpr.invars)}
        self._structure = jax.tree.structure(result)
        self._source = [inputs.get(id(variable)) for variable in jaxpr.jaxpr.outvars]
        fresh = [at for at, source in enumerate(self._source) if source is None]
        self.computed = len(fresh)

        def compute(state: PyTree) -> list[jax.Array]:
            leaves = jax.tree.leaves(enter(state))
            return [leaves[at] for at in fresh]

        placed: Any = None
        if shardings is not None:
            leaves = jax.tree.leaves(shardings(result))
            placed = [leaves[at] for at in fresh]
        self._program = jax.jit(compute, out_shardings=placed).lower(abstract).compile()

    def __call__(self, state: PyTree) -> PyTree:
        """The result; leaves that are passed on are those of `state`."""
        leaves, fresh = jax.tree.leaves(state), iter(self._program(state))
        found = [next(fresh) if source is None else leaves[source] for source in self._source]
        return jax.tree.unflatten(self._structure, found)
