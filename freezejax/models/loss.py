"""Cross-entropy of next-token logits, and of a head whose logits are too large to hold twice."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SLICE = 2**24  # logits: 64 MiB in float32; a loop over fewer is not worth its start
MOST_SLICES = 8  # the gradient of the logits then takes an eighth of what they take


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def cross_entropy(logits_BxTxV: jax.Array, targets_BxT: jax.Array, softcap: float = 0.0) -> jax.Array:
    """Negative log likelihood of every target, in nats: logits [..., V], integer targets [...] -> float32 [...].

    With a `softcap` the logits are `softcap * tanh(logits / softcap)`. Computed in float32 and safe for logits of any
    finite size. The backward pass keeps the logits as they came and one number per token; capped logits and
    probabilities are computed again, so no second [B, T, V] array waits for it. A target of V or more gives NaN.

    >>> cross_entropy(jnp.zeros((1, 1, 4)), jnp.zeros((1, 1), jnp.int32))
    Array([[1.3862944]], dtype=float32)
    """
    return _forward(logits_BxTxV, targets_BxT, softcap)[0]


def capped(logits: jax.Array, softcap: float) -> jax.Array:
    """`softcap * tanh(logits / softcap)` in float32, or with `softcap=0` the logits in float32."""
    wide = logits.astype(jnp.float32)
    return softcap * jnp.tanh(wide / softcap) if softcap else wide


def head_cross_entropy(
    logits_of: Callable[[Any], jax.Array], x_BxTxD: Any, targets_BxT: jax.Array, softcap: float = 0.0
) -> jax.Array:
    """`cross_entropy` of `logits_of(x)`, float32 [B, T]; the backward pass finds the logits once, in the dtype of `x`.

    From 2^24 logits on the head runs in up to 8 slices of positions, one after the other in both passes, and
    float32 logits and their gradient are held for one slice alone. `logits_of` takes each position for itself:
    [B, t, D] -> [B, t, V] in the dtype of `x_BxTxD`, float32 or bfloat16. `x_BxTxD` may be a tree of such arrays.

    >>> head_cross_entropy(lambda x: x @ jnp.ones((3, 4)), jnp.zeros((1, 2, 3)), jnp.zeros((1, 2), jnp.int32))
    Array([[1.3862944, 1.3862944]], dtype=float32)
    """
    B, T = targets_BxT.shape

    def of_slice(part: tuple[Any, jax.Array]) -> jax.Array:
        x, targets = part
        return cross_entropy(logits_of(x), targets, softcap)

    slices = count_slices(T, jax.eval_shape(logits_of, x_BxTxD).size)
    if slices == 1:
        return of_slice((x_BxTxD, targets_BxT))

    def split(x: jax.Array) -> jax.Array:  # of T, as the batch may lie on several devices
        x = jnp.pad(x, [(0, 0), (0, -T % slices), (0, 0)][: x.ndim]) if T % slices else x
        return x.reshape(B, slices, -1, *x.shape[2:]).swapaxes(0, 1)

    found_SxBxt: jax.Array = jax.lax.map(of_slice, jax.tree.map(split, (x_BxTxD, targets_BxT)))
    return found_SxBxt.swapaxes(0, 1).reshape(B, -1)[:, :T]


def count_slices(length: int, logits: int) -> int:
    """Slices of so many positions for so many logits: a power of two, at most 8; the last may be filled up."""
    slices = 1
    while slices < MOST_SLICES and 2 * slices <= length and logits > SLICE * slices:
        slices *= 2
    return slices


def _forward(logits_BxTxV, targets_BxT, softcap):
    wide = capped(logits_BxTxV, softcap)
    normalizer_BxT = jax.nn.logsumexp(wide, axis=-1)
    picked = jnp.take_along_axis(wide, targets_BxT[..., None], axis=-1, mode="fill", fill_value=jnp.nan)
    return normalizer_BxT - picked[..., 0], (logits_BxTxV, targets_BxT, normalizer_BxT)


def _backward(softcap, residuals, grad_BxT):
    logits_BxTxV, targets_BxT, normalizer_BxT = residuals
    wide = capped(logits_BxTxV, softcap)
    probability = jnp.exp(wide - normalizer_BxT[..., None])
    hit = jax.nn.one_hot(targets_BxT, logits_BxTxV.shape[-1], dtype=jnp.float32)
    grad = (probability - hit) * grad_BxT[..., None]
    if softcap:
        grad = grad * (1 - jnp.square(wide / softcap))
    return grad.astype(logits_BxTxV.dtype), None


cross_entropy.defvjp(_forward, _backward)
