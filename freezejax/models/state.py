"""What cached generation keeps of earlier tokens, block by block."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from freezejax.models import attention


class State(NamedTuple):
    """What a block is given beside its stream when tokens come after others; None in training.

    Rows may begin with padding, so that prompts of several lengths end together.
    """

    length: jax.Array  # int32, how many tokens came before, padding among them
    starts_B: jax.Array  # int32, how many of a row's first tokens are padding
    kept: Any  # the block's own, see `attend`

    def positions(self, tokens: int) -> jax.Array:
        """Places of the next tokens in their rows, int32 [B, T]; that of padding is 0."""
        places_BxT = (self.length + jnp.arange(tokens, dtype=jnp.int32))[None] - self.starts_B[:, None]
        return jnp.maximum(places_BxT, 0)


class Past(NamedTuple):
    """What a model keeps of the tokens so far."""

    length: jax.Array
    starts_B: jax.Array
    kept: list[Any]  # of every block

    def of(self, kept: Any) -> State:
        """What a block is given."""
        return State(self.length, self.starts_B, kept)


class Keys(NamedTuple):
    """Keys and values of all tokens of a block so far; room for S."""

    k_BxSxKxD: jax.Array
    v_BxSxKxD: jax.Array

    @classmethod
    def empty(cls, batch: int, length: int, heads: int, dim: int, dtype: DTypeLike) -> "Keys":
        """Zeros."""
        zeros = jnp.zeros((batch, length, heads, dim), dtype)
        return cls(zeros, zeros)


def attend(
    q_BxTxHxD: jax.Array, k_BxTxKxD: jax.Array, v_BxTxKxD: jax.Array, state: State | None
) -> tuple[jax.Array, State | None]:
    """Causal attention, of tokens alone or, with a state, after those that it has kept: output [B, T, H, D] and state.

    >>> x = jax.random.normal(jax.random.key(0), (1, 3, 2, 4))
    >>> state = State(jnp.int32(0), jnp.zeros(1, jnp.int32), Keys.empty(1, 8, 2, 4, jnp.float32))
    >>> bool(jnp.allclose(attend(x, x, x, state)[0], attend(x, x, x, None)[0], atol=1e-6))
    True
    """
    if state is None:
        return attention.causal_attention(q_BxTxHxD, k_BxTxKxD, v_BxTxKxD), None
    B, T, H, D = q_BxTxHxD.shape
    put = lambda all_, new: jax.lax.dynamic_update_slice_in_dim(all_, new.astype(all_.dtype), state.length, axis=1)  # noqa: E731
    kept = Keys(put(state.kept.k_BxSxKxD, k_BxTxKxD), put(state.kept.v_BxSxKxD, v_BxTxKxD))
    S, K = kept.k_BxSxKxD.shape[1:3]
    q_BxTxKxGxD = (q_BxTxHxD * D**-0.5).reshape(B, T, K, H // K, D)
    scores = jnp.einsum("btkgd,bskd->bkgts", q_BxTxKxGxD, kept.k_BxSxKxD, preferred_element_type=jnp.float32)
    place_S = jnp.arange(S, dtype=jnp.int32)
    until_TxS = place_S[None] <= (state.length + jnp.arange(T, dtype=jnp.int32))[:, None]
    seen_BxTxS = until_TxS[None] & (place_S[None] >= state.starts_B[:, None])[:, None]
    # Finite, as padding sees nothing at all: its rows are read by nobody, but must not be NaN.
    scores = jnp.where(seen_BxTxS[:, None, None], scores, -1e30)
    shares = jax.nn.softmax(scores, axis=-1).astype(v_BxTxKxD.dtype)
    out = jnp.einsum("bkgts,bskd->btkgd", shares, kept.v_BxSxKxD, preferred_element_type=jnp.float32)
    return out.reshape(B, T, H, D).astype(v_BxTxKxD.dtype), state._replace(kept=kept)
