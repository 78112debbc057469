"""GPT-2, as its checkpoints have it: learned positions, biases, LayerNorm, q, k and v in one matrix, a tied head.

Leaves: `tok_emb/embedding`, `pos_emb/embedding`, `ln_f/{scale,bias}`, `lm_head/kernel` where untied, and per block
`ln1/{scale,bias}`, `attn/{c_attn,c_proj}/{kernel,bias}`, `ln2/{scale,bias}`, `mlp/{c_fc,c_proj}/{kernel,bias}`.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""
# ruff: noqa: D107 - what a module is stands in its class docstring

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from freezejax.models import layers
from freezejax.models.config import check_sizes, mlp_width
from freezejax.models.decoder import Decoder, pre_norm_blocks
from freezejax.models.family import Family, Hub, InitRules
from freezejax.models.state import State, attend

_GELU = {"gelu_new": True, "gelu": False}  # by transformers' names: whether the tanh approximation


@dataclass(frozen=True)
class Gpt2Config:
    """Sizes of a GPT-2; a value that no model can have is a UserError that names its field.

    Defaults: the published smallest, 124,439,808 parameters.

    >>> Gpt2Config(num_layers=8, model_dim=256, num_heads=8).positions
    1024
    """

    vocab_size: int = 50257
    num_layers: int = 12
    model_dim: int = 768
    num_heads: int = 12
    mlp_mult: float = 4  # hidden width / model_dim; the product is an integer
    positions: int = 1024  # the longest sequence
    norm_eps: float = 1e-5
    activation: Literal["gelu_new", "gelu"] = "gelu_new"  # the tanh approximation, or exact
    tied: bool = True  # the head is the embedding
    dropout: float = 0.0  # rate after attention and the MLP
    init_std: float = 0.02  # of every matrix; what writes to the residual stream has it over sqrt(2 * num_layers)

    def __post_init__(self) -> None:  # noqa: D105
        check_sizes(self)


class Attention(nnx.Module):
    """Causal self-attention."""

    def __init__(self, config: Gpt2Config):
        self.heads = config.num_heads
        self.c_attn = layers.Linear(config.model_dim, 3 * config.model_dim, bias=True)
        self.c_proj = layers.Linear(config.model_dim, config.model_dim, bias=True)

    def __call__(self, x_BxTxD: jax.Array, state: State | None) -> tuple[jax.Array, State | None]:
        """[B, T, D] -> [B, T, D]."""
        B, T, D = x_BxTxD.shape
        q, k, v = (part.reshape(B, T, self.heads, -1) for part in jnp.split(self.c_attn(x_BxTxD), 3, axis=-1))
        attended, state = attend(q, k, v, state)
        return self.c_proj(attended.reshape(B, T, D)), state


class Mlp(nnx.Module):
    """`c_proj(gelu(c_fc x))`."""

    def __init__(self, config: Gpt2Config):
        self.approximate = _GELU[config.activation]
        self.c_fc = layers.Linear(config.model_dim, mlp_width(config), bias=True)
        self.c_proj = layers.Linear(mlp_width(config), config.model_dim, bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        return self.c_proj(jax.nn.gelu(self.c_fc(x), approximate=self.approximate))


class Gpt2(Decoder):
    """Token and position embedding, blocks, final norm, head."""

    def __init__(self, config: Gpt2Config):
        norm = lambda: layers.LayerNorm(config.model_dim, config.norm_eps)  # noqa: E731
        super().__init__(config, norm(), pre_norm_blocks(config, norm, Attention, Mlp))
        self.pos_emb = layers.Positions(config.positions, config.model_dim)

    def embed(self, tokens_BxT: jax.Array, dtype: DTypeLike, positions_BxT: jax.Array | None = None) -> jax.Array:
        """Tokens [B, T] -> [B, T, D]."""
        return super().embed(tokens_BxT, dtype) + self.pos_emb(tokens_BxT.shape[1], dtype, positions_BxT)


def _init_rules(config: Gpt2Config) -> InitRules:
    return [
        (r".*/scale", initializers.ones),
        (r".*/bias", initializers.zeros),
        (r".*/c_proj/kernel", initializers.normal(config.init_std / (2 * config.num_layers) ** 0.5)),
        (r".*/(kernel|embedding)", initializers.normal(config.init_std)),
    ]


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    dim = config["n_embd"]
    return {"mlp_mult": (config.get("n_inner") or 4 * dim) / dim, "tied": config.get("tie_word_embeddings", True)}


def _write(config: Gpt2Config) -> dict[str, Any]:
    width = mlp_width(config)
    return {"n_inner": None if width == 4 * config.model_dim else width, "tie_word_embeddings": config.tied}


FAMILY = Family(
    config=Gpt2Config,
    module=Gpt2,
    init_rules=_init_rules,
    names=[
        (r"tok_emb/embedding", r"transformer/wte/weight", False),
        (r"pos_emb/embedding", r"transformer/wpe/weight", False),
        (r"lm_head/kernel", r"lm_head/weight", True),
        (r"blocks/(\d+)/ln([12])/scale", r"transformer/h/\1/ln_\2/weight", False),
        (r"blocks/(\d+)/ln([12])/bias", r"transformer/h/\1/ln_\2/bias", False),
        (r"blocks/(.*)/kernel", r"transformer/h/\1/weight", False),  # its matrices are [in, out]
        (r"blocks/(.*)/bias", r"transformer/h/\1/bias", False),
        (r"ln_f/scale", r"transformer/ln_f/weight", False),
        (r"ln_f/bias", r"transformer/ln_f/bias", False),
    ],
    # Columns of what reads the residual stream, rows of what writes to it: one sum over `tensor` a pair.
    sharding=[
        (r".*/(c_attn|c_fc)/kernel", P("fsdp", "tensor")),
        (r".*/c_proj/kernel", P("tensor", "fsdp")),
        (r"lm_head/kernel", P("fsdp", "tensor")),
        (r"(tok|pos)_emb/embedding", P("fsdp", None)),
    ],
    hub=Hub(
        architecture="GPT2LMHeadModel",
        model_type="gpt2",
        fields={
            "vocab_size": "vocab_size",
            "n_layer": "num_layers",
            "n_embd": "model_dim",
            "n_head": "num_heads",
            "n_positions": "positions",
            "layer_norm_epsilon": "norm_eps",
            "activation_function": "activation",
        },
        fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        read=_read,
        write=_write,
        prefix="transformer.",
        ignored=r".*\.attn\.(masked_)?bias",  # the causal mask, which old checkpoints hold
    ),
)
