"""Cross-entropy of next-token logits."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def cross_entropy(logits_BxTxV: jax.Array, targets_BxT: jax.Array) -> jax.Array:
    """Negative log likelihood of every target, in nats.

    Computed in float32 and safe for logits of any finite size. The backward pass keeps the logits and one
    number per token; the probabilities are recomputed, so no second [B, T, V] array waits for it. Targets
    outside [0, V) give NaN.

    Args:
      logits_BxTxV: [..., V].
      targets_BxT: integers [...].

    Returns:
      float32 [...].

    >>> cross_entropy(jnp.zeros((1, 1, 4)), jnp.zeros((1, 1), jnp.int32))
    Array([[1.3862944]], dtype=float32)
    """
    return _forward(logits_BxTxV, targets_BxT)[0]


def _forward(logits_BxTxV, targets_BxT):
    wide = logits_BxTxV.astype(jnp.float32)
    normalizer_BxT = jax.nn.logsumexp(wide, axis=-1)
    picked = jnp.take_along_axis(wide, targets_BxT[..., None], axis=-1, mode="fill", fill_value=jnp.nan)
    return normalizer_BxT - picked[..., 0], (logits_BxTxV, targets_BxT, normalizer_BxT)


def _backward(residuals, grad_BxT):
    logits_BxTxV, targets_BxT, normalizer_BxT = residuals
    probability = jnp.exp(logits_BxTxV.astype(jnp.float32) - normalizer_BxT[..., None])
    hit = jax.nn.one_hot(targets_BxT, logits_BxTxV.shape[-1], dtype=jnp.float32)
    grad = (probability - hit) * grad_BxT[..., None]
    return grad.astype(logits_BxTxV.dtype), None


cross_entropy.defvjp(_forward, _backward)
