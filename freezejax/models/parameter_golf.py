"""The Parameter Golf baseline language model (train_gpt.py of openai/parameter-golf), any size.

Leaves: `tok_emb/embedding`, `skip_weights` (absent at one layer) and per block `resid_mix`, `attn_scale`,
`mlp_scale`, `attn/q_gain`, `attn/{c_q,c_k,c_v,proj}/kernel`, `mlp/{fc,proj}/kernel`.
"""
# ruff: noqa: D107 - what a module is stands in its class docstring

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from freezejax.errors import UserError
from freezejax.models import layers
from freezejax.models.config import check_sizes, mlp_width
from freezejax.models.family import TORCH_NAMES, Family, InitRules
from freezejax.models.state import Keys, State, attend
from freezejax.weights.linear import scaled


@dataclass(frozen=True)
class ParameterGolfConfig:
    """Sizes of a Parameter Golf model; a value that no model can have is a UserError that names its field.

    Defaults: the published baseline, 17,059,912 parameters.

    >>> ParameterGolfConfig(num_layers=3).num_kv_heads
    4
    """

    vocab_size: int = 1024
    num_layers: int = 9  # the first half push their outputs, the others pop them (U-net)
    model_dim: int = 512
    num_heads: int = 8  # each of model_dim / num_heads dims, an even number
    num_kv_heads: int = 4  # divides num_heads
    mlp_mult: float = 2  # hidden width / model_dim; the product is an integer
    rope_base: float = 10000.0
    norm_eps: float = 2.0**-23  # what torch takes when none is given: float32's machine epsilon
    logit_softcap: float = 30.0  # logits lie in (-softcap, softcap)
    qk_gain_init: float = 1.5
    tied_embed_init_std: float = 0.005
    correction: Literal["none", "linear", "gelu"] = "none"  # beside each MLP, see `layers.Correction`
    correction_rank: int = 64
    dropout: float = 0.0  # rate after the attention and MLP projections; the baseline has none

    def __post_init__(self) -> None:  # noqa: D105
        check_sizes(self)
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"ParameterGolfConfig.num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}"
            )


class Attention(nnx.Module):
    """Grouped-query attention with normalised queries and keys, rotary embedding and a gain per head."""

    def __init__(self, config: ParameterGolfConfig):
        dim, head = config.model_dim, config.model_dim // config.num_heads
        self.config = config
        self.c_q = layers.Linear(dim, dim)
        self.c_k = layers.Linear(dim, config.num_kv_heads * head)
        self.c_v = layers.Linear(dim, config.num_kv_heads * head)
        self.proj = layers.Linear(dim, dim)
        self.q_gain = layers.parameter(config.num_heads)

    def __call__(self, x_BxTxD: jax.Array, state: State | None) -> tuple[jax.Array, State | None]:
        """[B, T, D] -> [B, T, D]."""
        B, T, D = x_BxTxD.shape
        c = self.config
        q, k, v = (f(x_BxTxD).reshape(B, T, -1, D // c.num_heads) for f in (self.c_q, self.c_k, self.c_v))
        q, k = (layers.rms_norm(h, c.norm_eps) for h in (q, k))
        frequency = -layers.frequencies(c.rope_base, D // c.num_heads)
        positions = None if state is None else state.positions(T)
        q, k = (layers.rotary(h, frequency, positions) for h in (q, k))
        q = q * self.q_gain[...].astype(q.dtype)[None, None, :, None]
        attended, state = attend(q, k, v, state)
        return self.proj(attended.reshape(B, T, D)), state


class Mlp(nnx.Module):
    """`proj(relu(fc x)^2)`. Source: So et al. 2021, arXiv:2109.08668."""

    def __init__(self, config: ParameterGolfConfig):
        self.fc = layers.Linear(config.model_dim, mlp_width(config))
        self.proj = layers.Linear(mlp_width(config), config.model_dim)
        if config.correction != "none":
            self.correction = layers.Correction(config.model_dim, config.correction_rank, config.correction == "gelu")

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        return layers.corrected(self, x_BxTxD, self.proj(jnp.square(jax.nn.relu(self.fc(x_BxTxD)))))


class Block(nnx.Module):
    """Mixes the embedding `x0` back in, then adds scaled attention and a scaled MLP."""

    def __init__(self, config: ParameterGolfConfig):
        dim = config.model_dim
        self.config = config
        self.attn = Attention(config)
        self.mlp = Mlp(config)
        self.attn_scale = layers.parameter(dim)
        self.mlp_scale = layers.parameter(dim)
        self.resid_mix = layers.parameter(2, dim)

    def __call__(
        self, x: jax.Array, x0: jax.Array, state: State | None, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, State | None]:
        """[B, T, D], [B, T, D] -> [B, T, D]."""
        rate, eps = self.config.dropout, self.config.norm_eps
        attn_key, mlp_key = (layers.named(dropout_key, site) for site in ("attn", "mlp"))
        mix_2xD = self.resid_mix[...]
        x = scaled(x, mix_2xD[0]) + scaled(x0, mix_2xD[1])
        attended, state = self.attn(layers.rms_norm(x, eps), state)
        x = x + layers.dropout(scaled(attended, self.attn_scale[...]), rate, attn_key)
        mapped = scaled(self.mlp(layers.rms_norm(x, eps)), self.mlp_scale[...])
        return x + layers.dropout(mapped, rate, mlp_key), state


class ParameterGolf(nnx.Module):
    """Normalised embedding, U-net of blocks, final norm, tied head, softcap.

    The stream is a list: the normalised embedding x0, what the first half of the blocks pushed and the second has not
    popped yet, and x last. In the first half x is what was pushed last, and stands there once.
    """

    def __init__(self, config: ParameterGolfConfig):
        self.config = config
        self.skips = config.num_layers // 2
        self.tok_emb = layers.Embedding(config.vocab_size, config.model_dim)
        self.blocks = nnx.List([Block(config) for _ in range(config.num_layers)])
        if self.skips:
            self.skip_weights = layers.parameter(self.skips, config.model_dim)

    def embed(self, tokens_BxT: jax.Array, dtype: DTypeLike, positions_BxT: jax.Array | None = None) -> list[jax.Array]:
        """Tokens [B, T] -> x0, which is x as well."""
        return [layers.rms_norm(self.tok_emb(tokens_BxT, dtype), self.config.norm_eps)]

    def block(
        self, i: int, stream: list[jax.Array], state: Any, dropout_key: jax.Array | None
    ) -> tuple[list[jax.Array], Any]:
        """Pushes in the first half of the blocks, pops in the second."""
        x0, x = stream[0], stream[-1]
        if i < self.skips:
            x, state = self.blocks[i](x, x0, state, dropout_key)
            return [*stream, x], state
        pushed = stream[1:] if i == self.skips else stream[1:-1]
        if pushed:  # of an odd number of layers the last has nothing to pop
            x = x + scaled(pushed.pop(), self.skip_weights[i - self.skips])
        x, state = self.blocks[i](x, x0, state, dropout_key)
        return [x0, *pushed, x], state

    def keeps(self, i: int, batch: int, length: int, dtype: DTypeLike) -> Keys:
        """Room for the keys and values of block i."""
        c = self.config
        return Keys.empty(batch, length, c.num_kv_heads, c.model_dim // c.num_heads, dtype)

    def head(self, stream: list[jax.Array], targets_BxT: jax.Array | None) -> jax.Array:
        """x [B, T, D] -> float32 logits [B, T, V], or the targets' negative log likelihoods [B, T]."""
        normed = layers.rms_norm(stream[-1], self.config.norm_eps)
        return self.tok_emb.head(normed, targets_BxT, self.config.logit_softcap)


def _init_rules(config: ParameterGolfConfig) -> InitRules:
    return [
        (r"tok_emb/embedding", initializers.normal(config.tied_embed_init_std)),
        (r"skip_weights|.*/(attn|mlp)_scale", initializers.ones),
        (r".*/resid_mix", lambda key, shape, dtype: jnp.zeros(shape, dtype).at[0].set(1)),
        (r".*/q_gain", initializers.constant(config.qk_gain_init)),
        *layers.CORRECTION_INIT,
        (r".*/proj/kernel", initializers.zeros),
        (r".*/kernel", initializers.variance_scaling(1 / 3, "fan_in", "uniform")),  # U(+-1/sqrt(in))
    ]


FAMILY = Family(
    config=ParameterGolfConfig,
    module=ParameterGolf,
    init_rules=_init_rules,
    names=TORCH_NAMES,
    # Columns of what reads the residual stream, rows of what writes to it: one sum over `tensor` a pair.
    sharding=[
        (r".*/(c_q|c_k|c_v|fc)/kernel", P("fsdp", "tensor")),
        (r".*/proj/kernel", P("tensor", "fsdp")),
        (r"tok_emb/embedding", P("fsdp", None)),
    ],
    fixed={"tie_embeddings": True},
)
