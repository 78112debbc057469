"""The common form of a language model: embedding, pre-norm blocks of attention and MLP, final norm, head."""
# ruff: noqa: D107 - what a module is stands in its class docstring

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from freezejax.models import layers
from freezejax.models.state import Keys, State


class Block(nnx.Module):
    """Pre-norm block; dropout on what attention and the MLP add to the residual stream."""

    def __init__(self, norm: Callable[[], nnx.Module], attn: nnx.Module, mlp: nnx.Module, rate: float):
        self.rate = rate
        self.ln1: Any = norm()
        self.attn: Any = attn
        self.ln2: Any = norm()
        self.mlp: Any = mlp

    def __call__(
        self, x: jax.Array, state: State | None, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, State | None]:
        """[B, T, D] -> [B, T, D]."""
        attn_key, mlp_key = (layers.named(dropout_key, site) for site in ("attn", "mlp"))
        attended, state = self.attn(self.ln1(x), state)
        x = x + layers.dropout(attended, self.rate, attn_key)
        return x + layers.dropout(self.mlp(self.ln2(x)), self.rate, mlp_key), state


def pre_norm_blocks(
    config: Any, norm: Callable[[], nnx.Module], attn: Callable[[Any], nnx.Module], mlp: Callable[[Any], nnx.Module]
) -> list[nnx.Module]:
    """Blocks that are all alike, of a family's norm, attention and MLP."""
    return [Block(norm, attn(config), mlp(config), config.dropout) for _ in range(config.num_layers)]


class Decoder(nnx.Module):
    """A family's module, from its final norm and its blocks; the head is the embedding unless the config unties it."""

    def __init__(self, config: Any, norm: nnx.Module, blocks: Sequence[nnx.Module]):
        self.config = config
        self.tok_emb = layers.Embedding(config.vocab_size, config.model_dim)
        self.blocks: Any = nnx.List(blocks)
        self.ln_f: Any = norm
        if not getattr(config, "tied", True):
            self.lm_head = layers.Linear(config.model_dim, config.vocab_size)

    def embed(self, tokens_BxT: jax.Array, dtype: DTypeLike, positions_BxT: jax.Array | None = None) -> jax.Array:
        """Tokens [B, T] -> [B, T, D]."""
        return self.tok_emb(tokens_BxT, dtype)

    def block(
        self, i: int, x: jax.Array, state: State | None, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, State | None]:
        """[B, T, D] -> [B, T, D]."""
        return self.blocks[i](x, state, dropout_key)

    def keeps(self, i: int, batch: int, length: int, dtype: DTypeLike) -> Keys:
        """Room for the keys and values of block i."""
        c = self.config
        heads, dim = getattr(c, "num_kv_heads", c.num_heads), getattr(c, "head_dim", c.model_dim // c.num_heads)
        return Keys.empty(batch, length, heads, dim, dtype)

    def head(self, x: jax.Array, targets_BxT: jax.Array | None) -> jax.Array:
        """[B, T, D] -> float32 logits [B, T, V], or the targets' negative log likelihoods [B, T]."""
        if hasattr(self, "lm_head"):
            return layers.head(self.lm_head, self.ln_f(x), targets_BxT)
        return self.tok_emb.head(self.ln_f(x), targets_BxT)
