"""The layers that model families are made of, from linear to dropout."""
# ruff: noqa: D107 - what a module is stands in its class docstring

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import DTypeLike

from freezejax.errors import UserError
from freezejax.models.loss import capped, head_cross_entropy
from freezejax.paths import named_key
from freezejax.weights.linear import linear, matmul, scaled


def parameter(*shape: int) -> nnx.Param[Any]:
    """A float32 parameter of this shape; only the shape counts, `family.make_init` draws the values."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


class Linear(nnx.Module):
    """`x @ kernel`, plus `bias` [out] where asked for; kernel [in, out] or any weight, see `weights.linear`."""

    def __init__(self, in_dim: int, out_dim: int, bias: bool = False):
        self.kernel = parameter(in_dim, out_dim)
        if bias:
            self.bias = parameter(out_dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        y = linear(x, self.kernel.get_value())
        if hasattr(self, "bias"):
            y = y + jnp.expand_dims(self.bias[...].astype(y.dtype), range(y.ndim - 1))
        return y


CORRECTION_INIT = [
    (r".*/correction/a/kernel", initializers.variance_scaling(1.0, "fan_in", "normal")),
    (r".*/correction/b/kernel", initializers.zeros),
]


class Correction(nnx.Module):
    """`b(a x)`, or `b(gelu(a x))` with the exact GELU: of low rank, beside a whole MLP. `b` starts at zero.

    Source: main seed (PR 1301), section 4; its script has the GELU.
    """

    def __init__(self, model_dim: int, rank: int, nonlinear: bool):
        self.nonlinear = nonlinear
        self.a = Linear(model_dim, rank)
        self.b = Linear(rank, model_dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        low = self.a(x)
        return self.b(jax.nn.gelu(low, approximate=False) if self.nonlinear else low)


def corrected(mlp: nnx.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """What an MLP makes of `x`, its output `y`, plus its correction where it has one."""
    return y + mlp.correction(x) if hasattr(mlp, "correction") else y


def head(
    logits_of: Callable[[Any], jax.Array], x_BxTxD: Any, targets_BxT: jax.Array | None, softcap: float = 0.0
) -> jax.Array:
    """[B, T, D] -> float32 logits [B, T, V], or the targets' negative log likelihoods [B, T] where there are any.

    `logits_of` is a `Linear(D, V)`, or the product with the tied embedding, or of a tree of `x_BxTxD` what makes logits
    of it; of `softcap` see `cross_entropy`.

    >>> head(Linear(3, 5), jnp.ones((2, 4, 3)), jnp.zeros((2, 4), jnp.int32)).shape
    (2, 4)
    """
    if targets_BxT is not None:
        return head_cross_entropy(logits_of, x_BxTxD, targets_BxT, softcap)
    return capped(logits_of(x_BxTxD), softcap)


class Positions(nnx.Module):
    """A learned vector [D] for each of so many positions."""

    def __init__(self, length: int, model_dim: int):
        self.embedding = parameter(length, model_dim)

    def __call__(self, length: int, dtype: DTypeLike, positions_BxT: jax.Array | None = None) -> jax.Array:
        """Those of the first T positions, [1, T, D], or of given ones, [B, T, D]; UserError where there are fewer."""
        table = self.embedding[...]
        if length > len(table):
            raise UserError(f"a sequence of {length} tokens: this model has positions for {len(table)}")
        if positions_BxT is None:
            return table[None, :length].astype(dtype)
        return jnp.take(table, positions_BxT, axis=0).astype(dtype)  # NaN beyond the last


class Embedding(nnx.Module):
    """Token embedding [V, D], which can be used a second time as the output head (tied)."""

    def __init__(self, vocab_size: int, model_dim: int):
        self.embedding = parameter(vocab_size, model_dim)

    def __call__(self, tokens_BxT: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Tokens [B, T] -> [B, T, D]; NaN for a token out of range, so that bad data cannot pass unseen."""
        return jnp.take(self.embedding[...], tokens_BxT, axis=0).astype(dtype)

    def head(self, x_BxTxD: jax.Array, targets_BxT: jax.Array | None, softcap: float = 0.0) -> jax.Array:
        """See `head`."""
        embedding_VxD = self.embedding[...]
        return head(lambda x: matmul(x, embedding_VxD.T), x_BxTxD, targets_BxT, softcap)


class RMSNorm(nnx.Module):
    """`rms_norm` with a learned scale [D]."""

    def __init__(self, dim: int, eps: float):
        self.scale = parameter(dim)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        return rms_norm(x, self.eps, self.scale[...])


def rms_norm(x: jax.Array, eps: float, scale_D: jax.Array | None = None) -> jax.Array:
    """`x / sqrt(mean(x^2) + eps)` over the last axis, times `scale_D` where given; computed in float32.

    The backward starts from `x` and one number per row. Source: Zhang and Sennrich 2019, arXiv:1910.07467.

    >>> rms_norm(jnp.array([3.0, 3.0]), eps=0.0)
    Array([1., 1.], dtype=float32)
    """
    return _rms_norm(eps, x, scale_D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rms_norm(eps: float, x: jax.Array, scale_D: jax.Array | None) -> jax.Array:
    return _rms_norm_forward(eps, x, scale_D)[0]


def _rms_norm_forward(eps, x, scale_D):
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    normed = wide * inverse if scale_D is None else scaled(wide * inverse, scale_D)
    return normed.astype(x.dtype), (x, inverse, scale_D)


def _rms_norm_backward(eps, saved, grad):
    x, inverse, scale_D = saved
    wide_grad, normed = grad.astype(jnp.float32), x.astype(jnp.float32) * inverse
    dnormed = wide_grad if scale_D is None else scaled(wide_grad, scale_D)
    dx = inverse * (dnormed - normed * jnp.mean(dnormed * normed, axis=-1, keepdims=True))
    dscale_D = None if scale_D is None else jnp.sum(wide_grad * normed, axis=range(x.ndim - 1)).astype(scale_D.dtype)
    return dx.astype(x.dtype), dscale_D


_rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


class LayerNorm(nnx.Module):
    """`(x - mean) / sqrt(var + eps)` over the last axis, times a scale [D], plus a bias [D]; computed in float32.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """

    def __init__(self, dim: int, eps: float):
        self.scale = parameter(dim)
        self.bias = parameter(dim)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        wide = x.astype(jnp.float32)
        normed = jax.nn.standardize(wide, axis=-1, epsilon=self.eps)
        bias = jnp.expand_dims(self.bias[...].astype(jnp.float32), range(x.ndim - 1))
        return (scaled(normed, self.scale[...]) + bias).astype(x.dtype)


@jax.custom_vjp
def geglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """`gelu(gate) * up` with the exact (erf) GELU, computed in float32; its backward starts from both.

    Source: Shazeer 2020, arXiv:2002.05202.

    >>> geglu(jnp.array([0.0, 10.0]), jnp.array([1.0, 2.0]))
    Array([ 0., 20.], dtype=float32)
    """
    return _geglu_forward(gate, up)[0]


def _geglu_forward(gate, up):
    wide = gate.astype(jnp.float32)
    return (wide * _normal_cdf(wide) * up.astype(jnp.float32)).astype(gate.dtype), (gate, up)


def _geglu_backward(saved, grad):
    gate, up, grad = (x.astype(jnp.float32) for x in (*saved, grad))
    share = _normal_cdf(gate)
    density = jnp.exp(-0.5 * gate * gate) / math.sqrt(2 * math.pi)
    dgate, dup = grad * up * (share + gate * density), grad * gate * share
    return dgate.astype(saved[0].dtype), dup.astype(saved[1].dtype)


def _normal_cdf(x):
    # erf loses the relative accuracy that erfc keeps far in the negative tail, where the product with x is under
    # 1e-6 anyway; it is cheaper.
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


geglu.defvjp(_geglu_forward, _geglu_backward)


def frequencies(base: float, dims: int) -> jax.Array:
    """Radians per position of each pair of so many rotated dims: `base^(-2i/dims)`, float32 [dims / 2].

    >>> frequencies(100.0, 4)
    Array([1. , 0.1], dtype=float32)
    """
    half = dims // 2
    return jnp.asarray(base, jnp.float32) ** (-jnp.arange(half, dtype=jnp.float32) / half)


def rotary(x_BxTxHxD: jax.Array, frequency_d: jax.Array, positions_BxT: jax.Array | None = None) -> jax.Array:
    """Rotary position embedding on the first 2d dims of each head, in the halves form; positions 0..T-1 if not given.

    With the halves x1, x2 of those dims, angle `position * frequency`, c = cos, s = sin: `x1 c - x2 s, x2 c + x1 s`.
    Source: Su et al. 2021, arXiv:2104.09864. There and in Llama frequencies are above 0; modded-nanogpt and the
    Parameter Golf baseline turn the other way.

    >>> x = jnp.ones((1, 1, 1, 4))
    >>> bool((rotary(x, frequencies(1e4, 4)) == x).all())  # position 0 is not rotated
    True
    """
    half = len(frequency_d)
    if positions_BxT is None:
        positions_BxT = jnp.arange(x_BxTxHxD.shape[1])[None]
    angle_BxTxd = positions_BxT.astype(jnp.float32)[..., None] * frequency_d[None, None]
    cos = jnp.cos(angle_BxTxd).astype(x_BxTxHxD.dtype)[:, :, None]
    sin = jnp.sin(angle_BxTxd).astype(x_BxTxHxD.dtype)[:, :, None]
    x1, x2, rest = jnp.split(x_BxTxHxD, (half, 2 * half), axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], axis=-1)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each element with probability `rate` and divides the others by `1 - rate`.

    `rate` is a Python float in [0, 1), realised to 1/65536: half a word of random bits decides an element. At 0, or
    without a key, `x` itself is returned and nothing is computed.

    >>> dropout(jnp.ones(3), 0.5, None)
    Array([1., 1., 1.], dtype=float32)
    """
    if key is None or rate == 0:
        return x
    *leading, last = x.shape
    words = jax.random.bits(key, (*leading, -(-last // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)  # [..., ceil(last / 2), 2]
    threshold = min(max(round(rate * 65536), 1), 65535)
    keep = halves.reshape(*leading, -1)[..., :last] >= jnp.uint16(threshold)
    return jnp.where(keep, x * (65536 / (65536 - threshold)), 0)


def named(key: jax.Array | None, name: str) -> jax.Array | None:
    """The key of one dropout site, see `named_key`, or none where there is none."""
    return None if key is None else named_key(key, name)
