"""The Parameter Golf baseline language model (train_gpt.py of openai/parameter-golf), any size."""
# ruff: noqa: D107 - what a module is stands in its class docstring

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import DTypeLike

from freezejax.errors import UserError
from freezejax.fields import check_number, check_positive
from freezejax.models import attention, base, layers
from freezejax.models.config import check_dropout, check_heads, mlp_width


@dataclass(frozen=True)
class ParameterGolfConfig:
    """Sizes of a Parameter Golf model. Defaults: the published baseline, 17,059,912 parameters.

    Raises:
      UserError: a value that no model can have, named with its field.

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
    dropout: float = 0.0  # rate after the attention and MLP projections; the baseline has none

    def __post_init__(self) -> None:  # noqa: D105
        check_positive(self, "vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads")
        check_number(self, "rope_base", "norm_eps", "logit_softcap", "qk_gain_init", "tied_embed_init_std")
        check_heads(self)
        check_dropout(self)
        mlp_width(self)
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"ParameterGolfConfig.num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}"
            )


def build(config: ParameterGolfConfig) -> base.Model:
    """The model of a config; see `base.Model`.

    Leaves: `tok_emb/embedding`, `skip_weights` (absent at one layer) and per block `resid_mix`,
    `attn_scale`, `mlp_scale`, `attn/q_gain`, `attn/{c_q,c_k,c_v,proj}/kernel`, `mlp/{fc,proj}/kernel`.

    >>> model = build(ParameterGolfConfig())
    >>> base.count(jax.eval_shape(model.init, jax.random.key(0)))
    17059912
    """
    rules = [
        (r"tok_emb/embedding", initializers.normal(config.tied_embed_init_std)),
        (r"skip_weights|.*/(attn|mlp)_scale", initializers.ones),
        (r".*/resid_mix", _first_row_one),
        (r".*/q_gain", initializers.constant(config.qk_gain_init)),
        (r".*/proj/kernel", initializers.zeros),
        (r".*/kernel", initializers.variance_scaling(1 / 3, "fan_in", "uniform")),  # U(+-1/sqrt(in))
    ]
    return base.functional(config, lambda: ParameterGolf(config), rules)


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

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        B, T, D = x_BxTxD.shape
        c = self.config
        q, k, v = (f(x_BxTxD).reshape(B, T, -1, D // c.num_heads) for f in (self.c_q, self.c_k, self.c_v))
        q, k = (layers.rms_norm(h, c.norm_eps) for h in (q, k))
        q, k = (layers.rotary(h, c.rope_base, h.shape[-1], direction=-1) for h in (q, k))
        q = q * self.q_gain[...].astype(q.dtype)[None, None, :, None]
        return self.proj(attention.causal_attention(q, k, v).reshape(B, T, D))


class Mlp(nnx.Module):
    """`proj(relu(fc x)^2)`. Source: So et al. 2021, arXiv:2109.08668."""

    def __init__(self, config: ParameterGolfConfig):
        self.fc = layers.Linear(config.model_dim, mlp_width(config))
        self.proj = layers.Linear(mlp_width(config), config.model_dim)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        return self.proj(jnp.square(jax.nn.relu(self.fc(x_BxTxD))))


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

    def __call__(self, x: jax.Array, x0: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """[B, T, D], [B, T, D] -> [B, T, D]."""
        rate, eps = self.config.dropout, self.config.norm_eps
        attn_key, mlp_key = (layers.named(dropout_key, site) for site in ("attn", "mlp"))
        mix_2xD = self.resid_mix[...]
        x = _channels(mix_2xD[0], x) * x + _channels(mix_2xD[1], x) * x0
        attended = _channels(self.attn_scale[...], x) * self.attn(layers.rms_norm(x, eps))
        x = x + layers.dropout(attended, rate, attn_key)
        mapped = _channels(self.mlp_scale[...], x) * self.mlp(layers.rms_norm(x, eps))
        return x + layers.dropout(mapped, rate, mlp_key)


class ParameterGolf(nnx.Module):
    """Normalised embedding, U-net of blocks, final norm, tied head, softcap."""

    def __init__(self, config: ParameterGolfConfig):
        self.config = config
        self.skips = config.num_layers // 2
        self.tok_emb = layers.Embedding(config.vocab_size, config.model_dim)
        self.blocks = nnx.List([Block(config) for _ in range(config.num_layers)])
        if self.skips:
            self.skip_weights = layers.parameter(self.skips, config.model_dim)

    def prefix(self, tokens_BxT: jax.Array, dtype: DTypeLike, blocks: int) -> list[jax.Array]:
        """Tokens [B, T] -> what the first `blocks` blocks leave for the others, see `through`."""
        return self.through(tokens_BxT, None, dtype, [], range(blocks))

    def __call__(
        self,
        tokens_BxT: jax.Array,
        dropout_key: jax.Array | None,
        dtype: DTypeLike,
        blocks: int,
        carried: list[jax.Array],
        targets_BxT: jax.Array | None,
    ) -> jax.Array:
        """Tokens [B, T] and `prefix` of them -> float32 logits [B, T, V], or what they cost the targets [B, T]."""
        left = range(blocks, len(self.blocks))
        x = self.through(tokens_BxT, dropout_key, dtype, carried, left)[-1]
        normed = layers.rms_norm(x, self.config.norm_eps)
        return self.tok_emb.head(normed, targets_BxT, self.config.logit_softcap)

    def through(
        self,
        tokens_BxT: jax.Array,
        dropout_key: jax.Array | None,
        dtype: DTypeLike,
        carried: list[jax.Array],
        blocks: range,
    ) -> list[jax.Array]:
        """Runs some of the blocks on what those before them carried: the pushed [B, T, D], then x [B, T, D].

        In the first half x is the last that was pushed, and stands there once. The embedding is not carried: it
        would take as much room as x, and looking it up again is a fraction of a millisecond.
        """
        x0 = layers.rms_norm(self.tok_emb(tokens_BxT, dtype), self.config.norm_eps)
        x = carried[-1] if carried else x0
        pushed = list(carried if blocks.start <= self.skips else carried[:-1])
        for i in blocks:
            if i >= self.skips and pushed:  # of an odd number of layers the last has nothing to pop
                x = x + _channels(self.skip_weights[i - self.skips], x) * pushed.pop()
            x = self.blocks[i](x, x0, layers.named(dropout_key, f"blocks/{i}"))
            if i < self.skips:
                pushed.append(x)
        return pushed if blocks.stop <= self.skips else [*pushed, x]


def _channels(weight_D: jax.Array, x_BxTxD: jax.Array) -> jax.Array:
    return weight_D.astype(x_BxTxD.dtype)[None, None]


def _first_row_one(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return jnp.zeros(shape, dtype).at[0].set(1)
