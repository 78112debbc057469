"""Llama, as its checkpoints have it: grouped-query attention, rotary positions with Llama 3's rescaling, SwiGLU.

Leaves: `tok_emb/embedding`, `ln_f/scale`, `lm_head/kernel` where untied, and per block `ln1/scale`,
`attn/{q,k,v,o}_proj/kernel`, `ln2/scale`, `mlp/{gate,up,down}_proj/kernel`; a `bias` beside kernels where the config
has them. Source: Touvron et al. 2023, arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783.
"""
# ruff: noqa: D107 - what a module is stands in its class docstring

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.sharding import PartitionSpec as P

from freezejax.errors import UserError
from freezejax.models import layers
from freezejax.models.config import check_sizes, mlp_width
from freezejax.models.decoder import Decoder, pre_norm_blocks
from freezejax.models.family import Family, Hub, InitRules
from freezejax.models.state import State, attend


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama; a value that no model can have is a UserError that names its field.

    Defaults: SmolLM2-135M, 134,515,008 parameters.

    >>> LlamaConfig(num_layers=2).head_dim
    64
    """

    vocab_size: int = 49152
    num_layers: int = 30
    model_dim: int = 576
    num_heads: int = 9
    num_kv_heads: int = 3  # divides num_heads
    head_dim: int = 64  # even; num_heads * head_dim need not be model_dim
    mlp_mult: float = 1536 / 576  # hidden width / model_dim; the product is an integer
    norm_eps: float = 1e-5
    rope_base: float = 100000.0
    rope_scaling: Literal["default", "linear", "llama3"] = "default"  # of frequencies, see `frequencies`
    rope_factor: float = 1.0  # by how much the slow ones are slowed down
    rope_low_freq_factor: float = 1.0  # of llama3
    rope_high_freq_factor: float = 4.0  # of llama3
    rope_original_positions: int = 8192  # of llama3: the length that was trained before rescaling
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True  # the head is the embedding
    dropout: float = 0.0  # rate after attention and the MLP
    init_std: float = 0.02  # of every matrix

    def __post_init__(self) -> None:  # noqa: D105
        check_sizes(self)
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"LlamaConfig.num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")


def frequencies(config: LlamaConfig) -> jax.Array:
    """Radians per position of each pair of a head's dims, float32 [head_dim / 2].

    `linear`: all divided by `rope_factor`. `llama3`: those of a wavelength above `original / low` are divided, those
    below `original / high` stay, and between the two the divisor blends from one to the other.

    >>> base = LlamaConfig(head_dim=4, rope_base=100.0)
    >>> frequencies(base)
    Array([1. , 0.1], dtype=float32)
    """
    plain = layers.frequencies(config.rope_base, config.head_dim)
    if config.rope_scaling == "default":
        return plain
    slowed = plain / config.rope_factor
    if config.rope_scaling == "linear":
        return slowed
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    turns = config.rope_original_positions * plain / (2 * math.pi)  # in the length that was trained
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * plain + (1 - kept) * slowed


class Attention(nnx.Module):
    """Causal self-attention whose key/value heads each serve several query heads."""

    def __init__(self, config: LlamaConfig):
        dim, bias = config.model_dim, config.attention_bias
        self.config = config
        self.q_proj = layers.Linear(dim, config.num_heads * config.head_dim, bias)
        self.k_proj = layers.Linear(dim, config.num_kv_heads * config.head_dim, bias)
        self.v_proj = layers.Linear(dim, config.num_kv_heads * config.head_dim, bias)
        self.o_proj = layers.Linear(config.num_heads * config.head_dim, dim, bias)

    def __call__(self, x_BxTxD: jax.Array, state: State | None) -> tuple[jax.Array, State | None]:
        """[B, T, D] -> [B, T, D]."""
        B, T, _ = x_BxTxD.shape
        parts = (part(x_BxTxD) for part in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (part.reshape(B, T, -1, self.config.head_dim) for part in parts)
        positions = None if state is None else state.positions(T)
        q, k = (layers.rotary(part, frequencies(self.config), positions) for part in (q, k))
        attended, state = attend(q, k, v, state)
        return self.o_proj(attended.reshape(B, T, -1)), state


class Mlp(nnx.Module):
    """`down(silu(gate x) * up x)`. Source: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, config: LlamaConfig):
        dim, width, bias = config.model_dim, mlp_width(config), config.mlp_bias
        self.gate_proj = layers.Linear(dim, width, bias)
        self.up_proj = layers.Linear(dim, width, bias)
        self.down_proj = layers.Linear(width, dim, bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Llama(Decoder):
    """Embedding, blocks, final norm, head."""

    def __init__(self, config: LlamaConfig):
        norm = lambda: layers.RMSNorm(config.model_dim, config.norm_eps)  # noqa: E731
        super().__init__(config, norm(), pre_norm_blocks(config, norm, Attention, Mlp))


def _init_rules(config: LlamaConfig) -> InitRules:
    return [
        (r".*/scale", initializers.ones),
        (r".*/bias", initializers.zeros),
        (r".*/(kernel|embedding)", initializers.normal(config.init_std)),
    ]


_ROPE = {  # of config.json's rope_parameters, in older files rope_scaling
    "factor": "rope_factor",
    "low_freq_factor": "rope_low_freq_factor",
    "high_freq_factor": "rope_high_freq_factor",
    "original_max_position_embeddings": "rope_original_positions",
}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    return {
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or dim // heads,
        "mlp_mult": config["intermediate_size"] / dim,
        "rope_base": float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        "rope_scaling": kind,
        **{ours: rope[theirs] for theirs, ours in _ROPE.items() if kind != "default" and theirs in rope},
    }


def _write(config: LlamaConfig) -> dict[str, Any]:
    rope = {} if config.rope_scaling == "default" else {theirs: getattr(config, ours) for theirs, ours in _ROPE.items()}
    return {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": mlp_width(config),
        "rope_parameters": {"rope_theta": config.rope_base, "rope_type": config.rope_scaling, **rope},
        # What transformers before version 5 reads, which takes the base 10,000 where it is not said here.
        "rope_theta": config.rope_base,
        "rope_scaling": {"rope_type": config.rope_scaling, **rope} if rope else None,
    }


FAMILY = Family(
    config=LlamaConfig,
    module=Llama,
    init_rules=_init_rules,
    names=[
        (r"tok_emb/embedding", r"model/embed_tokens/weight", False),
        (r"lm_head/kernel", r"lm_head/weight", True),
        (r"ln_f/scale", r"model/norm/weight", False),
        (r"blocks/(\d+)/ln1/scale", r"model/layers/\1/input_layernorm/weight", False),
        (r"blocks/(\d+)/ln2/scale", r"model/layers/\1/post_attention_layernorm/weight", False),
        (r"blocks/(\d+)/attn/(.*)/kernel", r"model/layers/\1/self_attn/\2/weight", True),
        (r"blocks/(\d+)/attn/(.*)/bias", r"model/layers/\1/self_attn/\2/bias", False),
        (r"blocks/(\d+)/mlp/(.*)/kernel", r"model/layers/\1/mlp/\2/weight", True),
        (r"blocks/(\d+)/mlp/(.*)/bias", r"model/layers/\1/mlp/\2/bias", False),
    ],
    # Columns of what reads the residual stream, rows of what writes to it: one sum over `tensor` a pair.
    sharding=[
        (r".*/(q|k|v|gate|up)_proj/kernel", P("fsdp", "tensor")),
        (r".*/(o|down)_proj/kernel", P("tensor", "fsdp")),
        (r"lm_head/kernel", P("fsdp", "tensor")),
        (r"tok_emb/embedding", P("fsdp", None)),
    ],
    hub=Hub(
        architecture="LlamaForCausalLM",
        model_type="llama",
        fields={
            "vocab_size": "vocab_size",
            "num_hidden_layers": "num_layers",
            "hidden_size": "model_dim",
            "num_attention_heads": "num_heads",
            "rms_norm_eps": "norm_eps",
            "attention_bias": "attention_bias",
            "mlp_bias": "mlp_bias",
            "tie_word_embeddings": "tied",
        },
        fixed={"hidden_act": "silu"},
        read=_read,
        write=_write,
        prefix="model.",
        ignored=r".*\.rotary_emb\.inv_freq",  # computed from the config; old checkpoints hold it
    ),
)
