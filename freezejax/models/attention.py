"""Causal attention: cuDNN where it applies, otherwise in blocks of queries."""

import itertools

import jax
import jax.numpy as jnp

BLOCKS = 4  # at T = 256 on CPU 8 blocks were slower than 4: fewer scores, but more and smaller matmuls
MIN_QUERIES = 32  # a block of fewer queries is not worth a launch


def causal_attention(q_BxTxHxD: jax.Array, k_BxTxKxD: jax.Array, v_BxTxKxD: jax.Array) -> jax.Array:
    """Softmax attention in which position t sees positions 0..t; scale 1/sqrt(D), softmax in float32.

    K key/value heads serve H query heads, H a multiple of K: query head h reads key head h // (H / K).
    On an NVIDIA GPU bfloat16 and float16 go to cuDNN's fused attention. Elsewhere queries are cut into up
    to 4 blocks, each of which reads only the keys up to its own end: 5/8 of the full scores, and on CPU,
    forward and backward, several times faster than `jax.nn.dot_product_attention`.

    Returns:
      [B, T, H, D] in the dtype of `q_BxTxHxD`.

    >>> x = jnp.ones((1, 3, 2, 4))
    >>> causal_attention(x, x, x).shape
    (1, 3, 2, 4)
    """
    if fused_applies(jax.default_backend(), q_BxTxHxD.dtype, q_BxTxHxD.shape[-1]):
        return jax.nn.dot_product_attention(q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, is_causal=True, implementation="cudnn")
    return blocked_attention(q_BxTxHxD, k_BxTxKxD, v_BxTxKxD)


def fused_applies(platform: str, dtype: jax.typing.DTypeLike, head_dim: int) -> bool:
    """Whether cuDNN's fused attention takes this dtype and head size; its limits before Hopper.

    >>> fused_applies("gpu", jnp.bfloat16, 64), fused_applies("cpu", jnp.bfloat16, 64)
    (True, False)
    """
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    return platform == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128


def blocked_attention(
    q_BxTxHxD: jax.Array, k_BxTxKxD: jax.Array, v_BxTxKxD: jax.Array, blocks: int = BLOCKS
) -> jax.Array:
    """`causal_attention` in blocks of queries (not always equal: T need not be a multiple of `blocks`).

    >>> x = jax.random.normal(jax.random.key(0), (1, 67, 2, 4))
    >>> bool(jnp.allclose(blocked_attention(x, x, x, 2), blocked_attention(x, x, x, 1), atol=1e-5))
    True
    """
    B, T, H, D = q_BxTxHxD.shape
    K = k_BxTxKxD.shape[2]
    q_BxTxKxGxD = (q_BxTxHxD * D**-0.5).reshape(B, T, K, H // K, D)
    blocks = max(1, min(blocks, T // MIN_QUERIES))
    edges = [T * i // blocks for i in range(blocks + 1)]
    out = [
        _attend(q_BxTxKxGxD[:, start:end], k_BxTxKxD[:, :end], v_BxTxKxD[:, :end])
        for start, end in itertools.pairwise(edges)
    ]
    return jnp.concatenate(out, axis=1).reshape(B, T, H, D)


def _attend(q_BxtxKxGxD: jax.Array, k_BxSxKxD: jax.Array, v_BxSxKxD: jax.Array) -> jax.Array:
    """The last t of S positions attend to all that are not after them."""
    t, S = q_BxtxKxGxD.shape[1], k_BxSxKxD.shape[1]
    scores_BxKxGxtxS = jnp.einsum("btkgd,bskd->bkgts", q_BxtxKxGxD, k_BxSxKxD, preferred_element_type=jnp.float32)
    seen_txS = jnp.tri(t, S, S - t, dtype=jnp.bool_)
    scores_BxKxGxtxS = jnp.where(seen_txS[None, None, None], scores_BxKxGxtxS, -jnp.inf)
    weights_BxKxGxtxS = jax.nn.softmax(scores_BxKxGxtxS).astype(v_BxSxKxD.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights_BxKxGxtxS, v_BxSxKxD)
