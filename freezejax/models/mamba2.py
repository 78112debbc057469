"""The Mamba-2 mixer: one projection in, a short convolution, the recurrence, a gated norm, one projection out."""
# ruff: noqa: D107 - what a module is stands in its class docstring

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from freezejax.models import layers
from freezejax.models.ssd import ssd
from freezejax.models.state import State


class Memory(NamedTuple):
    """What a mixer keeps of earlier tokens, however many they are."""

    inputs_BxWxC: jax.Array  # of the convolution: the last W - 1 of its window
    state_BxHxPxN: jax.Array  # float32


class Conv(nnx.Module):
    """Causal convolution of each channel by itself: `filter` [width, 1, C], `bias` [C]."""

    def __init__(self, channels: int, width: int, bias: bool):
        self.filter = layers.parameter(width, 1, channels)
        if bias:
            self.bias = layers.parameter(channels)

    def __call__(self, x_BxTxC: jax.Array, earlier_BxWxC: jax.Array) -> jax.Array:
        """Token t sees itself and the last `width - 1` before it, of `earlier` where it is near the start."""
        x = jnp.concatenate([earlier_BxWxC.astype(x_BxTxC.dtype), x_BxTxC], axis=1)
        filter_WxC = self.filter[...][:, 0].astype(x.dtype)
        T = x_BxTxC.shape[1]
        # A sum of shifted products: elementwise, so that it fuses with the silu that follows.
        y = sum(x[:, w : w + T] * filter_WxC[w][None, None] for w in range(len(filter_WxC)))
        return y + self.bias[...].astype(x.dtype)[None, None] if hasattr(self, "bias") else jnp.asarray(y)


class GatedNorm(nnx.Module):
    """RMS norm of `x silu(gate)`, each group of channels by itself, times `scale` [C]."""

    def __init__(self, channels: int, groups: int, eps: float):
        self.scale = layers.parameter(channels)
        self.groups, self.eps = groups, eps

    def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        """[..., C] and [..., C] -> [..., C]."""
        gated = x.astype(jnp.float32) * jax.nn.silu(gate.astype(jnp.float32))
        normed = layers.rms_norm(gated.reshape(*x.shape[:-1], self.groups, -1), self.eps)
        return layers.scaled(normed.reshape(x.shape), self.scale[...]).astype(x.dtype)


class Mamba2(nnx.Module):
    """`out_proj(norm(y, gate))`, `y` read from the state of the recurrence plus `skip` times its input.

    `in_proj` gives gate, input x, b and c of the recurrence and its steps; x, b and c pass the convolution and silu.
    Source: Dao and Gu 2024, arXiv:2405.21060; with the gate inside of the norm, as in Nemotron-H, arXiv:2504.03624.
    """

    def __init__(self, config: Any):
        self.config = config
        inner, heads = config.mamba_heads * config.mamba_head_dim, config.mamba_heads
        channels = inner + 2 * config.mamba_groups * config.state_dim
        self.in_proj = layers.Linear(config.model_dim, inner + channels + heads, config.mamba_bias)
        self.conv1d = Conv(channels, config.conv_width, config.conv_bias)
        self.dt_bias = layers.parameter(heads)
        self.a_log = layers.parameter(heads)  # the rate of forgetting, -exp(a_log)
        self.skip = layers.parameter(heads)
        self.norm = GatedNorm(inner, config.mamba_groups, config.norm_eps)
        self.out_proj = layers.Linear(inner, config.model_dim, config.mamba_bias)

    def __call__(self, x_BxTxD: jax.Array, state: State | None) -> tuple[jax.Array, State | None]:
        """[B, T, D] -> [B, T, D]."""
        c, (B, T, _) = self.config, x_BxTxD.shape
        inner, heads = c.mamba_heads * c.mamba_head_dim, c.mamba_heads
        memory = self.empty(B, x_BxTxD.dtype) if state is None else state.kept
        gate, inputs, dt = jnp.split(self.in_proj(x_BxTxD), [inner, -heads], axis=-1)
        dt_BxTxH = jax.nn.softplus(dt.astype(jnp.float32) + self.dt_bias[...].astype(jnp.float32)[None, None])
        dt_BxTxH = jnp.clip(dt_BxTxH, c.dt_min or None, c.dt_max or None)
        if state is not None:  # padding is no token: it enters neither the convolution nor the recurrence
            real_BxT = (state.length + jnp.arange(T, dtype=jnp.int32))[None] >= state.starts_B[:, None]
            inputs, dt_BxTxH = (jnp.where(real_BxT[..., None], z, 0) for z in (inputs, dt_BxTxH))
        mixed = jax.nn.silu(self.conv1d(inputs, memory.inputs_BxWxC))
        x, b, cs = jnp.split(mixed, [inner, inner + c.mamba_groups * c.state_dim], axis=-1)
        x = x.reshape(B, T, heads, -1)
        b, cs = (z.reshape(B, T, c.mamba_groups, -1) for z in (b, cs))
        a_H = -jnp.exp(self.a_log[...].astype(jnp.float32))
        y, last = ssd(x, dt_BxTxH, a_H, b, cs, memory.state_BxHxPxN, c.chunk)
        y = y + x * self.skip[...].astype(x.dtype)[None, None, :, None]
        out = self.out_proj(self.norm(y.reshape(B, T, inner), gate))
        if state is None:
            return out, None
        seen = jnp.concatenate([memory.inputs_BxWxC, inputs.astype(memory.inputs_BxWxC.dtype)], axis=1)
        return out, state._replace(kept=Memory(seen[:, T:], last))

    def empty(self, batch: int, dtype: DTypeLike) -> Memory:
        """Before the first token."""
        c = self.config
        channels = c.mamba_heads * c.mamba_head_dim + 2 * c.mamba_groups * c.state_dim
        inputs = jnp.zeros((batch, c.conv_width - 1, channels), dtype)
        return Memory(inputs, jnp.zeros((batch, c.mamba_heads, c.mamba_head_dim, c.state_dim), jnp.float32))
