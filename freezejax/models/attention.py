"""Causal attention: cuDNN where it applies, otherwise in blocks of queries with a backward of its own."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax.extend import backend

BLOCKS = 4  # at T = 256 on CPU 8 blocks were slower than 4: fewer scores, but more and smaller matmuls
MIN_QUERIES = 32  # a block of fewer queries is not worth a launch


def causal_attention(q_BxTxHxD: jax.Array, k_BxTxKxD: jax.Array, v_BxTxKxD: jax.Array) -> jax.Array:
    """Softmax attention in which position t sees positions 0..t; scale 1/sqrt(D), softmax in float32.

    K key/value heads serve H query heads, H a multiple of K: query head h reads key head h // (H / K).
    A program lowered for an NVIDIA GPU hands bfloat16 and float16 to cuDNN's fused attention, where that is
    installed. All else is `blocked_attention`, on a TPU too: the partitioner splits it over a mesh like any
    matmul, while around a Pallas kernel it would gather batch and heads. Returns [B, T, H, D] in the dtype of q.

    >>> x = jnp.ones((1, 3, 2, 4))
    >>> causal_attention(x, x, x).shape
    (1, 3, 2, 4)
    """
    if not fused_applies(backend.get_backend().platform_version, q_BxTxHxD.dtype, q_BxTxHxD.shape[-1]):
        return blocked_attention(q_BxTxHxD, k_BxTxKxD, v_BxTxKxD)
    # The program may be lowered for another platform than the one this process has.
    fused = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    return jax.lax.platform_dependent(q_BxTxHxD, k_BxTxKxD, v_BxTxKxD, cuda=fused, default=blocked_attention)


def fused_applies(platform_version: str, dtype: jax.typing.DTypeLike, head_dim: int) -> bool:
    """Whether this process has cuDNN's fused attention for this dtype and head size; its limits before Hopper.

    `platform_version` is that of the backend, as jax reports it: without CUDA jax cannot even trace the call.
    """
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    return "cuda" in platform_version and half and head_dim % 8 == 0 and head_dim <= 128


def blocked_attention(
    q_BxTxHxD: jax.Array, k_BxTxKxD: jax.Array, v_BxTxKxD: jax.Array, blocks: int = BLOCKS
) -> jax.Array:
    """`causal_attention` in blocks of queries (not always equal: T need not be a multiple of `blocks`).

    Each block reads only the keys up to its own end: at 4 blocks 5/8 of the full scores.

    >>> x = jax.random.normal(jax.random.key(0), (1, 67, 2, 4))
    >>> bool(jnp.allclose(blocked_attention(x, x, x, 2), blocked_attention(x, x, x, 1), atol=1e-5))
    True
    """
    B, T, H, D = q_BxTxHxD.shape
    K = k_BxTxKxD.shape[2]
    q_BxKxGxTxD = (q_BxTxHxD * D**-0.5).reshape(B, T, K, H // K, D).transpose(0, 2, 3, 1, 4)
    k_BxKxTxD, v_BxKxTxD = (x.transpose(0, 2, 1, 3) for x in (k_BxTxKxD, v_BxTxKxD))
    blocks = max(1, min(blocks, T // MIN_QUERIES))
    edges = tuple(T * i // blocks for i in range(blocks + 1))
    out_BxKxGxTxD = _attend(edges, q_BxKxGxTxD, k_BxKxTxD, v_BxKxTxD)
    return out_BxKxGxTxD.transpose(0, 3, 1, 2, 4).reshape(B, T, H, D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(edges: tuple[int, ...], q_BxKxGxTxD: jax.Array, k_BxKxTxD: jax.Array, v_BxKxTxD: jax.Array) -> jax.Array:
    """Attention of scaled queries; block i holds the queries `edges[i]` to `edges[i + 1]`.

    The backward is written out because autodiff forms the gradients of keys and values from transposed
    scores, a matmul that XLA's CPU backend runs slowly, and reads the scores more often.
    """
    return _attend_forward(edges, q_BxKxGxTxD, k_BxKxTxD, v_BxKxTxD)[0]


def _attend_forward(edges, q_BxKxGxTxD, k_BxKxTxD, v_BxKxTxD):
    parts = [
        _forward_block(q_BxKxGxTxD[:, :, :, start:end], k_BxKxTxD[:, :, :end], v_BxKxTxD[:, :, :end])
        for start, end in itertools.pairwise(edges)
    ]
    out, powers, sums = zip(*parts, strict=True)
    out_BxKxGxTxD = jnp.concatenate(out, axis=3)
    return out_BxKxGxTxD, (q_BxKxGxTxD, k_BxKxTxD, v_BxKxTxD, out_BxKxGxTxD, powers, sums)


def _forward_block(q_BxKxGxtxD, k_BxKxSxD, v_BxKxSxD):
    """The last t of S positions attend to all that are not after them.

    Returns the output, and for the backward the powers exp(score - largest score) and their sums: the
    weights are powers / sums, and dividing the output is less work than dividing the weights.
    """
    t, S = q_BxKxGxtxD.shape[3], k_BxKxSxD.shape[2]
    scores = jnp.einsum("bkgtd,bksd->bkgts", q_BxKxGxtxD, k_BxKxSxD, preferred_element_type=jnp.float32)
    seen_txS = jnp.tri(t, S, S - t, dtype=jnp.bool_)
    scores = jnp.where(seen_txS[None, None, None], scores, -jnp.inf)
    powers_BxKxGxtxS = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    sums_BxKxGxtx1 = powers_BxKxGxtxS.sum(axis=-1, keepdims=True)
    powers_BxKxGxtxS = powers_BxKxGxtxS.astype(v_BxKxSxD.dtype)
    out = jnp.einsum("bkgts,bksd->bkgtd", powers_BxKxGxtxS, v_BxKxSxD, preferred_element_type=jnp.float32)
    return (out / sums_BxKxGxtx1).astype(v_BxKxSxD.dtype), powers_BxKxGxtxS, sums_BxKxGxtx1


def _attend_backward(edges, saved, grad_BxKxGxTxD):
    q_BxKxGxTxD, k_BxKxTxD, v_BxKxTxD, out_BxKxGxTxD, powers, sums = saved
    wide = grad_BxKxGxTxD.astype(jnp.float32)
    inner_BxKxGxTx1 = jnp.sum(wide * out_BxKxGxTxD.astype(jnp.float32), axis=-1, keepdims=True)
    parts = [
        _backward_block(
            q_BxKxGxTxD[:, :, :, start:end],
            k_BxKxTxD[:, :, :end],
            v_BxKxTxD[:, :, :end],
            (wide[:, :, :, start:end] / total).astype(v_BxKxTxD.dtype),
            inner_BxKxGxTx1[:, :, :, start:end] / total,
            power,
        )
        for (start, end), power, total in zip(itertools.pairwise(edges), powers, sums, strict=True)
    ]
    dq, dk, dv = zip(*parts, strict=True)
    return jnp.concatenate(dq, axis=3), _add_prefixes(edges, dk), _add_prefixes(edges, dv)


def _backward_block(q_BxKxGxtxD, k_BxKxSxD, v_BxKxSxD, grad_BxKxGxtxD, inner_BxKxGxtx1, powers_BxKxGxtxS):
    """Gradients of a block, those of keys and values as [B, K, D, S].

    `grad`, of the output, and `inner`, its inner product with the output, come divided by the sums.
    """
    dtype = v_BxKxSxD.dtype
    dweights = jnp.einsum("bkgtd,bksd->bkgts", grad_BxKxGxtxD, v_BxKxSxD, preferred_element_type=jnp.float32)
    dscores = (powers_BxKxGxtxS.astype(jnp.float32) * (dweights - inner_BxKxGxtx1)).astype(dtype)
    dq_BxKxGxtxD = jnp.einsum("bkgts,bksd->bkgtd", dscores, k_BxKxSxD)
    dk_BxKxDxS = jnp.einsum("bkgts,bkgtd->bkds", dscores, q_BxKxGxtxD)
    dv_BxKxDxS = jnp.einsum("bkgts,bkgtd->bkds", powers_BxKxGxtxS, grad_BxKxGxtxD)
    return dq_BxKxGxtxD, dk_BxKxDxS, dv_BxKxDxS


def _add_prefixes(edges, parts_BxKxDxS):
    """The sum of arrays over the first edges[1], edges[2], ... positions: [B, K, T, D]."""
    columns = [
        sum(part[..., start:end] for part in parts_BxKxDxS[i:])
        for i, (start, end) in enumerate(itertools.pairwise(edges))
    ]
    return jnp.concatenate(columns, axis=-1).swapaxes(2, 3)


_attend.defvjp(_attend_forward, _attend_backward)
