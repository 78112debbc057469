"""Training some of the parameters, chosen at random: the control of equal number for training a part of a model."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from freezejax.paths import PyTree, leaf_paths, named_key
from freezejax.training.objectives.base import Batch, Objective

TRAINED = "trained"  # metric: how many parameters train


@dataclasses.dataclass(frozen=True)
class Few(Objective):
    """An objective of which only some of the parameters train, chosen at random from a seed, the others by no bit.

    Each parameter is chosen with the same probability, so that their number is `count` on average, whatever leaves they
    lie in. The control for "it forgets less because it is small": every type with as many parameters as the smallest.
    """

    inner: Objective
    sizes: Mapping[str, int]  # of the leaves that train
    count: int
    seed: int

    def chosen(self, path: str, leaf: jax.Array) -> jax.Array:
        """Which parameters of a leaf train: bools of its shape, the same in every step."""
        share = min(1.0, self.count / sum(self.sizes.values()))
        # A name of its own: by the leaf's the draw would be that of its first weights, and choose the smallest of them.
        return jax.random.uniform(named_key(jax.random.key(self.seed), f"few/{path}"), leaf.shape) < share

    def number(self, params: PyTree) -> int:
        """How many train."""
        of_leaf = zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
        return sum(int(self.chosen(path, leaf).sum()) for path, leaf in of_leaf if path in self.sizes)

    def loss(self, params: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As the inner one's, with no gradient but to the chosen."""
        held = [
            jnp.where(self.chosen(path, leaf), leaf, jax.lax.stop_gradient(leaf)) if path in self.sizes else leaf
            for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
        ]
        return self.inner.loss(jax.tree.unflatten(jax.tree.structure(params), held), batch, key)

    def prepare(self, batch: Batch) -> Batch:
        """As the inner one."""
        return self.inner.prepare(batch)

    def check(self, batch: Batch) -> None:
        """As the inner one."""
        self.inner.check(batch)

    def evaluate(self, params: PyTree) -> Mapping[str, float]:
        """As the inner one, and how many parameters train."""
        return {**self.inner.evaluate(params), TRAINED: float(self.number(params))}
