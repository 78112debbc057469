"""A few evenly spaced levels in place of real numbers, for weights that are trained to be stored in few bits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

# Levels -> the spacing, in standard deviations, that rounds Gaussian weights with the least squared error (Max 1960,
# "Quantizing for minimum distortion", table II).
GAUSSIAN_STEPS = {2: 1.596, 3: 1.224, 4: 0.9957, 8: 0.5860, 16: 0.3352}


def step_for(width_in: int, levels: int) -> float:
    """The spacing for weights of variance 1 / inputs, a float16: a file stores it as such."""
    return float(np.float16(GAUSSIAN_STEPS[levels] / math.sqrt(width_in)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def to_grid(x: jax.Array, levels: int, step: float) -> jax.Array:
    """The nearest of so many levels around zero, spaced by `step`; for an even number zero is none of them.

    The gradient passes as if nothing were rounded (straight-through, Bengio et al. 2013, arXiv:1308.3432).

    >>> to_grid(jnp.array([-0.9, 0.1, 7.0]), 3, 1.0), to_grid(jnp.array([-0.9, 0.1, 7.0]), 4, 1.0)
    (Array([-1.,  0.,  1.], dtype=float32), Array([-0.5,  0.5,  1.5], dtype=float32))
    """
    half = 0.5 * (levels % 2 == 0)
    lowest = -(levels // 2)
    return (jnp.clip(jnp.round(x / step - half), lowest, lowest + levels - 1) + half) * step


to_grid.defjvp(lambda levels, step, primals, tangents: (to_grid(*primals, levels, step), *tangents))
