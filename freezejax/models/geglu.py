"""The GEGLU language model: the toy model of the progressive-freezing study.

Leaves: `tok_emb/embedding`, `ln_f/scale` and per block `ln1/scale`, `attn/{qkv,out}/kernel` (with `separate_qkv`:
`attn/{q,k,v,out}/kernel`), `ln2/scale`, `mlp/{gate,up,down}/kernel`.
"""
# ruff: noqa: D107 - what a module is stands in its class docstring

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.sharding import PartitionSpec as P

from freezejax.errors import UserError
from freezejax.models import layers
from freezejax.models.config import check_sizes, mlp_width
from freezejax.models.decoder import Decoder, pre_norm_blocks
from freezejax.models.family import TORCH_NAMES, Family, InitRules
from freezejax.models.state import State, attend


@dataclass(frozen=True)
class GegluConfig:
    """Sizes of a GEGLU model; a value that no model can have is a UserError that names its field.

    Defaults: the seed's small model on bytes.

    >>> GegluConfig(model_dim=64, num_heads=4).num_layers
    6
    """

    vocab_size: int = 256
    num_layers: int = 6
    model_dim: int = 192
    num_heads: int = 6  # each of model_dim / num_heads dims, an even number
    mlp_mult: float = 2  # hidden width / model_dim; the product is an integer
    rope_dims: int = 16  # rotated dims at the start of each head, even, at most the head
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    correction: Literal["none", "linear", "gelu"] = "none"  # beside each MLP, see `layers.Correction`
    correction_rank: int = 64
    dropout: float = 0.0  # rate after the attention output and the MLP down projection
    mlp_in_init: Literal["normal", "fan_in"] = "normal"  # gate and up: N(0, init_std) or N(0, 1/sqrt(in))
    init_std: float = 0.02  # every other matrix
    separate_qkv: bool = False  # q, k and v as three leaves, so that one alone can be frozen

    def __post_init__(self) -> None:  # noqa: D105
        check_sizes(self)
        head = self.model_dim // self.num_heads
        if self.rope_dims % 2 or self.rope_dims > head:
            raise UserError(f"GegluConfig.rope_dims={self.rope_dims} must be even and at most the head, {head}")


class Attention(nnx.Module):
    """Causal self-attention with partial rotary embedding."""

    def __init__(self, config: GegluConfig):
        dim = config.model_dim
        self.config = config
        if config.separate_qkv:
            self.q, self.k, self.v = (layers.Linear(dim, dim) for _ in range(3))
        else:
            self.qkv = layers.Linear(dim, 3 * dim)
        self.out = layers.Linear(dim, dim)

    def __call__(self, x_BxTxD: jax.Array, state: State | None) -> tuple[jax.Array, State | None]:
        """[B, T, D] -> [B, T, D]."""
        B, T, _ = x_BxTxD.shape
        c = self.config
        parts = (self.q, self.k, self.v) if c.separate_qkv else (self.qkv,)
        qkv = jnp.concatenate([part(x_BxTxD) for part in parts], axis=-1).reshape(B, T, 3 * c.num_heads, -1)
        qk, v = jnp.split(qkv, (2 * c.num_heads,), axis=2)
        positions = None if state is None else state.positions(T)
        q, k = jnp.split(layers.rotary(qk, layers.frequencies(c.rope_base, c.rope_dims), positions), 2, axis=2)
        attended, state = attend(q, k, v, state)
        return self.out(attended.reshape(x_BxTxD.shape)), state


class Mlp(nnx.Module):
    """`down(gelu(gate x) * up x)` with the exact (erf) GELU. Source: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, config: GegluConfig):
        dim, width = config.model_dim, mlp_width(config)
        self.gate = layers.Linear(dim, width)
        self.up = layers.Linear(dim, width)
        self.down = layers.Linear(width, dim)
        if config.correction != "none":
            self.correction = layers.Correction(config.model_dim, config.correction_rank, config.correction == "gelu")

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        return layers.corrected(self, x_BxTxD, self.down(layers.geglu(self.gate(x_BxTxD), self.up(x_BxTxD))))


class Geglu(Decoder):
    """Embedding, blocks, final norm, tied head."""

    def __init__(self, config: GegluConfig):
        norm = lambda: layers.RMSNorm(config.model_dim, config.norm_eps)  # noqa: E731
        super().__init__(config, norm(), pre_norm_blocks(config, norm, Attention, Mlp))


def _init_rules(config: GegluConfig) -> InitRules:
    fan_in = initializers.variance_scaling(1.0, "fan_in", "normal")
    normal = initializers.normal(config.init_std)
    return [
        (r".*/scale", initializers.ones),
        *layers.CORRECTION_INIT,
        (r".*/mlp/(gate|up)/kernel", fan_in if config.mlp_in_init == "fan_in" else normal),
        (r".*/(kernel|embedding)", normal),
    ]


FAMILY = Family(
    config=GegluConfig,
    module=Geglu,
    init_rules=_init_rules,
    names=TORCH_NAMES,
    # Columns of what reads the residual stream, rows of what writes to it: one sum over `tensor` a pair.
    sharding=[
        (r".*/(qkv|q|k|v|gate|up)/kernel", P("fsdp", "tensor")),
        (r".*/(out|down)/kernel", P("tensor", "fsdp")),
        (r"tok_emb/embedding", P("fsdp", None)),
    ],
    fixed={"mlp": "geglu", "tied": True},
)
