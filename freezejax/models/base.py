"""A model as two pure functions over a plain nested dict of arrays, made from a flax.nnx module."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from freezejax.errors import UserError
from freezejax.paths import map_with_paths, named_key, nearest

Params = dict[Any, Any]
Initializer = Callable[..., jax.Array]  # (key, shape, dtype) -> array, as in jax.nn.initializers
InitRules = Sequence[tuple[str, Initializer]]


class Model(NamedTuple):
    """A model: its config, `init(key) -> params` and `apply(params, tokens) -> logits`.

    `init(key, root=None)` takes a typed PRNG key, and the root key of the model's random maps if it has any
    (default: the first), and returns a nested dict of float32 arrays; list-like levels have int
    keys (`params["blocks"][3]["mlp"]["up"]["kernel"]`, path `blocks/3/mlp/up/kernel`), kernels are
    [in, out]. Every leaf is drawn from the key folded with its own path, so adding a layer changes no
    other leaf.

    `apply(params, tokens_BxT, *, dropout_key=None, compute_dtype=jnp.float32)` takes int32 tokens in
    [0, vocab_size) and returns float32 logits [B, T, V]. A token out of range gives NaN. Without a
    dropout key there is no dropout; with `compute_dtype=jnp.bfloat16` activations and matmuls are
    bfloat16, while parameters, norms, softmax and logits stay float32. With `targets_BxT` it returns their
    negative log likelihoods in nats, float32 [B, T], instead of the logits, and holds the logits once at most.

    `prefix(params, tokens_BxT, *, blocks=k, compute_dtype=jnp.float32)` runs the embedding and the first k
    blocks, without dropout, and returns what the rest needs of them: a tree of [B, T, D] in the compute
    dtype. `apply(..., blocks=k, carried=...)` runs the rest on it, and takes everything else as above.
    `frozen_blocks(mask)` is the largest such k whose weights are all frozen under a mask of bools.

    >>> from freezejax import models
    >>> model = models.build("geglu", vocab_size=11, num_layers=1, model_dim=32, num_heads=2)
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, jnp.zeros((2, 5), jnp.int32)).shape
    (2, 5, 11)
    """

    config: Any
    init: Callable[..., Params]
    apply: Callable[..., jax.Array]
    prefix: Callable[..., Any]
    frozen_blocks: Callable[[Params], int]


def functional(config: Any, make_module: Callable[[], nnx.Module], rules: InitRules) -> Model:
    """Splits the module once, without allocating its arrays, into the pure functions of a `Model`.

    Args:
      config: kept in the result.
      make_module: builds the module; its `prefix` takes `(tokens_BxT, compute_dtype, blocks)`, its `__call__`
        `(tokens_BxT, dropout_key, compute_dtype, blocks, carried)`, where `carried` is what `prefix` returned.
      rules: initial distributions, see `initialize`.

    Raises:
      UserError: a leaf that no rule covers.
    """
    graphdef, state = nnx.split(nnx.eval_shape(make_module))
    shapes: Params = nnx.to_pure_dict(state)
    map_with_paths(lambda path, _: _find(path, rules), shapes)

    def init(key: jax.Array, root: jax.Array | None = None) -> Params:
        return initialize(shapes, rules, key)

    def apply(
        params: Params,
        tokens_BxT: jax.Array,
        *,
        dropout_key: jax.Array | None = None,
        compute_dtype: DTypeLike = jnp.float32,
        blocks: int = 0,
        carried: Any = None,
        targets_BxT: jax.Array | None = None,
    ) -> jax.Array:
        module: Any = nnx.merge(graphdef, params)
        dtype = jnp.dtype(compute_dtype)
        if carried is None:
            carried = module.prefix(tokens_BxT, dtype, blocks)
        return module(tokens_BxT, dropout_key, dtype, blocks, carried, targets_BxT)

    def prefix(params: Params, tokens_BxT: jax.Array, *, blocks: int, compute_dtype: DTypeLike = jnp.float32) -> Any:
        module: Any = nnx.merge(graphdef, params)
        return module.prefix(tokens_BxT, jnp.dtype(compute_dtype), blocks)

    return Model(config, init, apply, prefix, frozen_blocks)


def frozen_blocks(mask: Params) -> int:
    """Number of leading blocks that are frozen whole, as is all that they read; 0 if the embedding trains.

    >>> block = {"mlp": {"up": {"kernel": False}}}
    >>> frozen_blocks({"tok_emb": {"embedding": False}, "blocks": {0: block, 1: block}, "ln_f": {"scale": True}})
    2
    """
    if any(jax.tree.leaves(mask["tok_emb"])):
        return 0
    blocks = mask["blocks"]
    frozen = next((i for i in range(len(blocks)) if any(jax.tree.leaves(blocks[i]))), len(blocks))
    # The second half of a U-net weighs what the first half pushed.
    return min(frozen, len(blocks) // 2) if mask.get("skip_weights", False) else frozen


def initialize(shapes: Params, rules: InitRules, key: jax.Array) -> Params:
    """Draws every leaf from the first rule whose regex matches its whole path.

    Args:
      shapes: tree of `jax.ShapeDtypeStruct`.
      rules: ordered `(regex, initializer(key, shape, dtype))`; `re.fullmatch`, first match wins.
      key: typed PRNG key; a leaf gets `fold_in(key, stable_hash(path))`.

    Raises:
      UserError: a leaf that no rule covers.

    >>> shapes = {"norm": {"scale": jax.ShapeDtypeStruct((2,), jnp.float32)}}
    >>> initialize(shapes, [(".*/scale", jax.nn.initializers.ones)], jax.random.key(0))
    {'norm': {'scale': Array([1., 1.], dtype=float32)}}
    >>> initialize(shapes, [(".*/kernel", jax.nn.initializers.ones)], jax.random.key(0))
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: no initial distribution for leaf 'norm/scale'; nearest: .*/kernel
    """
    return map_with_paths(lambda path, leaf: _find(path, rules)(named_key(key, path), leaf.shape, leaf.dtype), shapes)


def count(params: Params) -> int:
    """Number of parameters.

    >>> count({"a": jnp.zeros((2, 3)), "b": {0: jnp.zeros(4)}})
    10
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _find(path: str, rules: InitRules) -> Initializer:
    for pattern, initializer in rules:
        if re.fullmatch(pattern, path):
            return initializer
    patterns = [pattern for pattern, _ in rules]
    raise UserError(f"no initial distribution for leaf {path!r}; {nearest(path, patterns, count=1)}")
