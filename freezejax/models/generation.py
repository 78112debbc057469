"""Text from a model, token by token, with what its blocks keep of earlier ones."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from freezejax.errors import UserError
from freezejax.models.base import Model
from freezejax.models.family import Params


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    key: jax.Array | None = None,
    stop: int | None = None,
    length: int = 0,
    compute_dtype: DTypeLike = jnp.float32,
) -> list[list[int]]:
    """The tokens that a model puts after each prompt, of which there may be several lengths.

    Args:
      prompts: token ids, at least one in each.
      tokens: how many at most.
      temperature: 0 takes the most likely token, above 0 one is drawn by the logits over it, with `key`.
      top_k: draw from so many of the likeliest; 0 = from all.
      stop: a token that ends a text; it is not returned.
      length: prompts are padded to so many tokens at least; calls of one length, and as many prompts, are one program.

    Raises:
      UserError: an empty prompt, a token that the model does not have, no key, or a family that keeps nothing.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1, model_dim=32, num_heads=2)
    >>> [len(found) for found in generate(model, model.init(jax.random.key(0)), [[1, 2, 3], [4]], tokens=5)]
    [5, 5]
    """
    if temperature > 0 and key is None:
        raise UserError("generate: a temperature above 0 needs a key")
    if temperature < 0 or top_k < 0 or tokens < 1:
        raise UserError(f"generate: {temperature=}, {top_k=} and {tokens=}: expected at least 0, 0 and 1")
    tokens_BxT, starts_B = left_padded(prompts, model.config.vocab_size, length)
    room = getattr(model.config, "positions", math.inf)
    if (longest := tokens_BxT.shape[1] + tokens) > room:
        raise UserError(f"generate: {longest} tokens with the longest prompt; this model has positions for {room}")
    drawn_BxN = _generate(
        params,
        tokens_BxT,
        starts_B,
        jax.random.key(0) if key is None else key,
        jnp.float32(temperature),
        jnp.int32(-1 if stop is None else stop),
        model=_Static(model),
        count=tokens,
        sampled=temperature > 0,
        top_k=min(top_k, model.config.vocab_size),
        dtype=jnp.dtype(compute_dtype),
    )
    found = np.asarray(drawn_BxN).tolist()
    return [row[: row.index(stop)] if stop in row else row for row in found]


def left_padded(prompts: Sequence[Sequence[int]], vocab_size: int, length: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Prompts that end together, int32 [B, T], and how much padding each begins with, int32 [B].

    >>> left_padded([[5, 6], [7]], 10)
    (array([[5, 6], [0, 7]], dtype=int32), array([0, 1], dtype=int32))
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise UserError("generate: expected prompts of at least one token each")
    longest = max(length, *map(len, prompts))
    starts_B = np.array([longest - len(prompt) for prompt in prompts], np.int32)
    tokens_BxT = np.array([[0] * start + list(row) for start, row in zip(starts_B, prompts, strict=True)], np.int32)
    if tokens_BxT.min() < 0 or tokens_BxT.max() >= vocab_size:
        raise UserError(f"generate: a prompt has a token outside of the vocabulary, 0 to {vocab_size - 1}")
    return tokens_BxT, starts_B


class _Static:
    """A model as a static argument: two of the same function are the same."""

    def __init__(self, model: Model):
        self.model = model

    def __hash__(self) -> int:
        return hash(self.model.extend)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.model.extend is other.model.extend


@functools.partial(jax.jit, static_argnames=("model", "count", "sampled", "top_k", "dtype"))
def _generate(
    params: Params,
    tokens_BxT: jax.Array,
    starts_B: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    stop: jax.Array,
    *,
    model: _Static,
    count: int,
    sampled: bool,
    top_k: int,
    dtype: Any,
) -> jax.Array:
    """Int32 [B, count]; after `stop` a row repeats it."""
    length = tokens_BxT.shape[1] + count
    extend = functools.partial(model.model.extend, params, compute_dtype=dtype)

    def choose(logits_BxV: jax.Array, i: jax.Array) -> jax.Array:
        if not sampled:
            return logits_BxV.argmax(-1).astype(jnp.int32)
        if top_k:
            least_Bx1 = jax.lax.top_k(logits_BxV, top_k)[0][:, -1:]
            logits_BxV = jnp.where(logits_BxV < least_Bx1, -jnp.inf, logits_BxV)
        return jax.random.categorical(jax.random.fold_in(key, i), logits_BxV / temperature).astype(jnp.int32)

    def one(carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
        past, token_B = carry
        logits_BxV, past = extend(token_B[:, None], past)
        token_B = jnp.where(token_B == stop, stop, choose(logits_BxV, i))
        return (past, token_B), token_B

    logits_BxV, past = extend(tokens_BxT, model.model.past(starts_B, length, dtype))
    first_B = choose(logits_BxV, jnp.int32(0))
    _, rest_NxB = jax.lax.scan(one, (past, first_B), jnp.arange(1, count, dtype=jnp.int32))
    return jnp.concatenate([first_B[:, None], rest_NxB.T], axis=1)
