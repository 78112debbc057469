"""Crystals: what a trained matrix is replaced by when little of it is to be kept."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from freezejax.errors import UserError
from freezejax.paths import nearest
from freezejax.roles import Role, Weight
from freezejax.weights.kinds import Site, check_rank
from freezejax.weights.linear import linear, matrix
from freezejax.weights.random_map import RandomMap
from freezejax.weights.scalar import ScalarWeight
from freezejax.weights.seeded import MapWeight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrystalWeight(Weight):
    """`(x @ left) @ right`: a matrix known by its factors, which are all that is stored and counted.

    Source: paper 63, whose crystal is the approximation of rank 1, frozen.

    >>> CrystalWeight(jnp.ones((4, 1)), jnp.ones((1, 2)))(jnp.ones((1, 4)))
    Array([[4., 4.]], dtype=float32)
    """

    roles: ClassVar = {"left": Role.ADAPTER, "right": Role.ADAPTER}

    left: jax.Array  # float32 [in, rank]
    right: jax.Array  # float32 [rank, out]

    @staticmethod
    def make(kernel: Any, site: Site, *, form: str = "low_rank", rank: int = 1, distribution: str = "normal") -> Any:
        """Kind "crystal": a replacement of the kernel, or of whatever weight stands there, by its `form`.

        - "low_rank": the nearest matrix of this rank (`rank`);
        - "mean": every input gets the mean of its column, the mean of the inputs' rows;
        - "random": a random map (`distribution`) times the number that gives it the kernel's norm; no bytes but that;
        - "kept": the kernel as it is, to be frozen.

        It says nothing of what trains: freeze it by a rule. `weights.recast` puts crystals into trained parameters.
        """
        check_rank(rank, kernel.shape)
        if form not in _FORMS:
            raise UserError(f"form={form!r}: expected one of {', '.join(_FORMS)}; {nearest(str(form), _FORMS, 1)}")
        return _FORMS[form](kernel, site, rank, distribution)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return linear(linear(x, self.left), self.right)

    def materialize(self) -> jax.Array:
        """The weights [in, out]."""
        return self.left @ self.right


def _low_rank(kernel: Any, site: Site, rank: int, distribution: str) -> CrystalWeight:
    """By the eigenvectors of the smaller Gram matrix: no more than that is held beside the kernel."""
    whole = matrix(kernel)
    wide = whole.shape[0] <= whole.shape[1]
    gram = jnp.matmul(whole, whole.T, precision="highest") if wide else jnp.matmul(whole.T, whole, precision="highest")
    axes = jnp.linalg.eigh(gram)[1][:, ::-1][:, :rank]  # largest first
    left, right = (axes, axes.T @ whole) if wide else (whole @ axes, axes.T)
    # Both of one size: a codec rounds each on the scale of its largest number.
    size = jnp.sqrt(jnp.linalg.norm(right, axis=1) / jnp.maximum(jnp.linalg.norm(left, axis=0), 1e-30))
    size = jnp.where(size > 0, size, 1.0)
    return CrystalWeight(left * size[None], right / size[:, None])


def _mean(kernel: Any, site: Site, rank: int, distribution: str) -> CrystalWeight:
    whole = matrix(kernel)
    return CrystalWeight(jnp.ones((whole.shape[0], 1)), jnp.mean(whole, axis=0, keepdims=True))


def _random(kernel: Any, site: Site, rank: int, distribution: str) -> ScalarWeight:
    base = MapWeight.create(RandomMap(kernel.shape, distribution, "fan_in", site.path), site.base_key)
    return ScalarWeight(base, jnp.linalg.norm(matrix(kernel)) / jnp.linalg.norm(base.materialize()))


def _kept(kernel: Any, site: Site, rank: int, distribution: str) -> Any:
    return kernel


_FORMS: dict[str, Callable[..., Any]] = {"low_rank": _low_rank, "mean": _mean, "random": _random, "kept": _kept}
