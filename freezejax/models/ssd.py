"""The recurrence of Mamba-2 over a whole sequence, in chunks: matrix products inside, a short scan between them."""

import jax
import jax.numpy as jnp


def ssd(
    x_BxTxHxP: jax.Array,
    dt_BxTxH: jax.Array,
    a_H: jax.Array,
    b_BxTxGxN: jax.Array,
    c_BxTxGxN: jax.Array,
    state_BxHxPxN: jax.Array,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """What every head reads from its state, [B, T, H, P] in the dtype of `x`, and the state after the last token.

    State h [P, N] of a head and its output at token t: `h = exp(dt a) h + dt x b^T`, `y = h c`. Head i reads `b` and
    `c` of group i // (H / G). Steps `dt`, rates `a` < 0 and the state are float32; time is linear in T. A token of
    step 0 leaves the state as it is, and is not seen by later ones.

    Inside a chunk of L tokens this is attention without softmax, whose scores `c b^T` fade by the sum of `dt a` in
    between; what comes from earlier chunks is read from the state before the chunk. Source: Dao and Gu 2024,
    arXiv:2405.21060, section 6.

    >>> x, ones = jnp.ones((1, 3, 1, 1)), jnp.ones((1, 3, 1, 1))
    >>> half = jnp.full((1, 3, 1), jnp.log(2.0))
    >>> ssd(x, half, -jnp.ones(1), ones, ones, jnp.zeros((1, 1, 1, 1)), chunk=2)[0].ravel() / jnp.log(2.0)
    Array([1.  , 1.5 , 1.75], dtype=float32)
    """
    B, T, H, P = x_BxTxHxP.shape
    G, N = b_BxTxGxN.shape[2:]
    chunk = min(chunk, T)
    cut = lambda z: _in_chunks(z, chunk)  # noqa: E731 - [B, T, ...] to [B, K, L, ...], with tokens of step 0 at the end
    x, b, c = cut(x_BxTxHxP), cut(b_BxTxGxN), cut(c_BxTxGxN)
    dt = cut(dt_BxTxH).reshape(B, -1, chunk, G, H // G)
    # Steps and fades are float32; what enters a matrix product is of the dtype of `x`.
    narrow = lambda z: z.astype(x_BxTxHxP.dtype)  # noqa: E731
    x = x.reshape(*dt.shape, P).astype(jnp.float32) * dt[..., None]
    sums = jnp.cumsum(dt * a_H.reshape(1, 1, 1, G, H // G), axis=2)  # of dt a, from the start of the chunk
    total = sums[:, :, -1]

    scores = jnp.einsum("bkign,bkjgn->bkgij", c, b, preferred_element_type=jnp.float32)
    fading = narrow(_fading(sums, scores))
    y = jnp.einsum("bkgrij,bkjgrp->bkigrp", fading, narrow(x), preferred_element_type=jnp.float32)
    left = narrow(x * jnp.exp(total[:, :, None] - sums)[..., None])  # of every token, at the end of its chunk
    added = jnp.einsum("bkjgrp,bkjgn->bkgrpn", left, b, preferred_element_type=jnp.float32)
    last, before = _scan(state_BxHxPxN.reshape(B, G, H // G, P, N), jnp.exp(total), added)
    read = jnp.einsum("bkign,bkgrpn->bkigrp", c, narrow(before), preferred_element_type=jnp.float32)
    y = y + read * jnp.exp(sums)[..., None]
    return narrow(y.reshape(B, -1, H, P)[:, :T]), last.reshape(B, H, P, N)


def _in_chunks(z: jax.Array, chunk: int) -> jax.Array:
    B, T, *rest = z.shape
    z = jnp.pad(z, [(0, 0), (0, -T % chunk), *[(0, 0)] * len(rest)])
    return z.reshape(B, -1, chunk, *rest)


def _fading(sums_BxKxLxGxR: jax.Array, scores_BxKxGxLxL: jax.Array) -> jax.Array:
    """Scores of token i with earlier tokens j, faded by `exp(sums_i - sums_j)`: [B, K, G, R, L, L], 0 where j > i."""
    sums = sums_BxKxLxGxR.transpose(0, 1, 3, 4, 2)
    between = sums[..., :, None] - sums[..., None, :]
    seen_LxL = jnp.tri(sums.shape[-1], dtype=jnp.bool_)
    # Masked before the exponential: above the diagonal it would overflow, and its gradient be NaN.
    fades = jnp.exp(jnp.where(jnp.expand_dims(seen_LxL, range(4)), between, -jnp.inf))
    return scores_BxKxGxLxL[:, :, :, None] * fades


def _scan(state: jax.Array, fades: jax.Array, added: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last state, and the one before each chunk [B, K, G, R, P, N]."""

    def one(state: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        fade, new = chunk
        return state * fade[..., None, None] + new, state

    last, before = jax.lax.scan(one, state, (fades.swapaxes(0, 1), added.swapaxes(0, 1)))
    return last, before.swapaxes(0, 1)
