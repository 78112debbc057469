"""A random map: a weight matrix that is a recipe and a name, drawn from the base seed whenever it is needed."""

import functools
import math
import numbers
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from freezejax.errors import UserError
from freezejax.paths import check_known, named_key
from freezejax.sharding import kernel_gradient
from freezejax.weights.recipes import RECIPES

Sharding = NamedSharding | None


@dataclass(frozen=True)
class RandomMap:
    """A matrix [in, out] of fixed random numbers of mean zero, regenerated from a key inside jit.

    The same (base key, name) gives the same bits in jit and eager, on one device and any mesh; see docs/random_maps.md.

    Args:
      shape: `(in, out)`.
      distribution: 'normal', 'uniform', 'rademacher' or 'hadamard', which are integer recipes and portable;
        'normal_f32' or 'orthogonal_qr', for comparison, which are not.
      scale: standard deviation of a weight: 'fan_in' = 1/sqrt(in) (PR 1301), 'none' or None = 1, or a number.
      name: leaf path; the map's key is the base key with its hash folded in: maps without one are of one key.

    Raises:
      UserError: a shape, distribution or scale that cannot be.

    >>> up = RandomMap(shape=(4, 8), distribution="rademacher", name="blocks/0/mlp/up/kernel")
    >>> up.materialize(jax.random.key(0))[0, 0]
    Array(-0.5, dtype=float32)
    """

    shape: tuple[int, int]
    distribution: str = "normal"
    scale: str | float | None = "fan_in"
    name: str = ""

    def __post_init__(self) -> None:  # noqa: D105
        where = f"random map {self.name!r}"
        if not isinstance(self.name, str):
            raise UserError(f"{where}: the name must be a string, the leaf's path")
        is_pair = isinstance(self.shape, tuple | list) and len(self.shape) == 2
        if not is_pair or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in self.shape):
            raise UserError(f"{where}: shape={self.shape!r} must be (in, out), two integers of at least 1")
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        check_known(str(self.distribution), RECIPES, f"{where}: no distribution {self.distribution!r}", count=3)
        is_name = self.scale is None or (isinstance(self.scale, str) and self.scale in ("fan_in", "none"))
        is_number = isinstance(self.scale, numbers.Real) and not isinstance(self.scale, bool)
        # Levels times a scale inside these limits stay well inside float32.
        if not is_name and not (is_number and 1e-30 < self.scale < 1e30):  # type: ignore[operator]
            raise UserError(f"{where}: scale={self.scale!r} must be 'fan_in', 'none' or a number in (1e-30, 1e30)")
        if is_number:
            object.__setattr__(self, "scale", float(self.scale))  # type: ignore[arg-type]

    @property
    def portable(self) -> bool:
        """Whether the bits are the same on every backend."""
        return RECIPES[self.distribution].portable

    @property
    def std(self) -> float:
        """Standard deviation of a weight."""
        if self.scale == "fan_in":
            return 1 / math.sqrt(self.shape[0])
        return 1.0 if self.scale in ("none", None) else float(self.scale)

    @property
    def step(self) -> float:
        """The weight that level 1 stands for: weights are levels times this."""
        return self.std / RECIPES[self.distribution].std

    def levels(self, key: jax.Array, sharding: Sharding = None) -> jax.Array:
        """The map before its scale, float32 [in, out]: small integers for the portable distributions.

        Raises:
          UserError: `key` is not a typed threefry2x32 key, or the mesh has explicit axes.
        """
        check_key(key)
        if sharding is not None and any(kind != AxisType.Auto for kind in sharding.mesh.axis_types):
            wanted = "make it with jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto, ...))"
            raise UserError(f"random map {self.name!r}: its mesh has axes that are not automatic; {wanted}")
        drawn = RECIPES[self.distribution].levels(named_key(key, self.name), self.shape, sharding)
        return drawn if sharding is None else jax.lax.with_sharding_constraint(drawn, sharding)

    def materialize(self, key: jax.Array, sharding: Sharding = None) -> jax.Array:
        """The weights, float32 [in, out], from the base key; raises what `levels` raises."""
        return self.levels(key, sharding) * jnp.float32(self.step)

    def apply(self, x: jax.Array, key: jax.Array, *, sharding: Sharding = None) -> jax.Array:
        """`x @ materialize(key)`: [..., in] -> [..., out] in the dtype of `x` (float32 or bfloat16), summed in float32.

        The map is drawn again in the backward pass, nothing of it is kept between the passes, and nothing is
        differentiated but `x`. With a `sharding` each device draws its own shard only.

        Raises:
          UserError: what `check_input` raises of `x`, and `levels` of the rest.
        """
        check_key(key)
        self.check_input(x)
        return _regenerated(self, sharding, x, jax.random.key_data(key))

    def check_input(self, x: jax.Array) -> None:
        """Refuses an input that is not floating point, or whose last axis is not `in`."""
        where = f"random map {self.name!r}: x"
        if x.ndim < 1 or x.shape[-1] != self.shape[0]:
            raise UserError(f"{where} has shape {x.shape}, its last axis must be {self.shape[0]}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise UserError(f"{where} is {x.dtype}, not floating point; cast it to float32 or bfloat16")


def check_key(key: jax.Array) -> None:
    """Refuses what is not one typed threefry2x32 key, and jax's generator that depends on the mesh."""
    found = f"{key.dtype}{list(key.shape)}" if isinstance(key, jax.Array) else type(key).__name__
    if found == "uint32[2]":
        found = "an old-style key: write jax.random.key(7) for jax.random.PRNGKey(7)"
    if found != "key<fry>[]":
        raise UserError(f"random maps need a threefry2x32 key, jax.random.key(seed, impl='threefry2x32'), not {found}")
    if not jax.config.jax_threefry_partitionable:
        raise UserError("random maps need jax_threefry_partitionable=True, which is jax's default")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def scaled_product(x: jax.Array, levels: jax.Array, step: float) -> jax.Array:
    """`x @ levels * step` in the dtype of `x`, summed in float32.

    In float32 the scale goes to the narrower of input and output; in bfloat16, where levels are exact and
    a scaled input would be rounded, to the float32 output. The gradient of `x` is the same product with the
    transposed levels, whether they are stored or drawn again.
    """
    width_in, width_out = levels.shape
    x_NxI = x.reshape(-1, width_in)
    scales_input = width_in <= width_out and x.dtype == jnp.float32
    if scales_input:
        x_NxI = x_NxI * jnp.float32(step)
    y_NxO = jnp.matmul(x_NxI, levels.astype(x.dtype), preferred_element_type=jnp.float32)
    if not scales_input:
        y_NxO = y_NxO * jnp.float32(step)
    return y_NxO.astype(x.dtype).reshape(*x.shape[:-1], width_out)


def _scaled_backward(step: float, saved: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, levels = saved
    return scaled_product(grad, levels.T, step), kernel_gradient(x, grad) * jnp.float32(step)


scaled_product.defvjp(lambda x, levels, step: (scaled_product(x, levels, step), (x, levels)), _scaled_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _regenerated(random_map: RandomMap, sharding: Sharding, x: jax.Array, seed: jax.Array) -> jax.Array:
    return scaled_product(x, _levels_after(x, random_map, sharding, seed), random_map.step)


def _regenerated_backward(random_map: RandomMap, sharding: Sharding, seed: jax.Array, grad: jax.Array) -> Any:
    levels = _levels_after(grad, random_map, sharding, seed)
    return scaled_product(grad, levels.T, random_map.step), None


_regenerated.defvjp(lambda *args: (_regenerated(*args), args[-1]), _regenerated_backward)


def _levels_after(x: jax.Array, random_map: RandomMap, sharding: Sharding, seed: jax.Array) -> jax.Array:
    # Keys do not depend on data: without the barrier every layer's map may be drawn at the start of the step,
    # and the backward pass may reuse, and so keep, the forward pass's.
    seed, _ = jax.lax.optimization_barrier((seed, x))
    levels = random_map.levels(jax.random.wrap_key_data(seed, impl="threefry2x32"), sharding)
    return jax.lax.optimization_barrier(levels)  # drawn once, in its own layout, not inside the matmul's loops
