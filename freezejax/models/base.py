"""A model as pure functions over a plain nested dict of arrays, made from a family's `embed`, `block` and `head`."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Literal
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from freezejax.errors import UserError
from freezejax.models.config import make_config
from freezejax.models.family import FAMILIES, Family, InitRules, Params, make_init
from freezejax.models.layers import named
from freezejax.models.state import Past
from freezejax.paths import by_path, check_known, named_key
from freezejax.ties import moved, untie
from freezejax.weights import Rules, attach

Stream = Any  # a tree of [B, T, D]; its last leaf is the residual stream


class Model(NamedTuple):
    """A model: its family and config, `init(key) -> params` and `apply(params, tokens) -> logits`.

    `init(key, base_key=None)` takes a typed PRNG key, and the base key of the model's random maps (default: the first),
    and returns a nested dict of float32 arrays; list-like levels have int keys (path `blocks/3/mlp/up/kernel`), kernels
    are [in, out]. Every leaf is drawn from the key folded with its own path, so adding a layer changes no other leaf.

    `apply(params, tokens_BxT)` takes int32 tokens in [0, vocab_size) and returns float32 logits [B, T, V]. A token
    out of range gives NaN. Its options:

    - `targets_BxT`: returns their negative log likelihoods in nats, float32 [B, T], instead of the logits, of
      which no more than a slice is ever held where they are many;
    - `dropout_key`: without one there is no dropout;
    - `compute_dtype=jnp.bfloat16`: of activations and matmuls; norms, softmax and logits stay float32;
    - `remat=True`: the backward pass computes each block again instead of keeping what is inside;
    - `taps=[0, 3]`: returns `(result, {0: stream, 3: stream})`, the streams after these blocks;
    - `hidden`, `blocks`: see `prefix`.

    `prefix(params, tokens_BxT, *, blocks=k, compute_dtype=jnp.float32)` runs the embedding and the first k
    blocks, without dropout, and returns what the rest, `apply(..., blocks=k, hidden=...)`, needs of them: a tree of
    [B, T, D] in the compute dtype, without what the embedding gave and no block changed.

    `past(starts_B, length, dtype)` is what cached generation starts from, with room for `length` tokens, and
    `extend(params, tokens_BxT, past, *, compute_dtype=jnp.float32)` the float32 logits [B, V] after the last of some
    more tokens, and the past with them in it; see `models.generate`.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1)
    >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 5), jnp.int32)).shape
    (2, 5, 256)
    """

    family: Family
    config: Any
    init: Callable[..., Params]
    apply: Callable[..., Any]
    prefix: Callable[..., Any]
    past: Callable[..., Past]
    extend: Callable[..., tuple[jax.Array, Past]]

    @property
    def sharding(self) -> Sequence[tuple[str, PartitionSpec]]:
        """How leaves lie on a mesh, for `freezejax.sharding`: the family's rules, and of every part its own."""
        of_parts = [
            (f"{name}/{i}/(?:{pattern})", spec)
            for name, parts in self.family.parts(self.config).items()
            for i, part in enumerate(parts)
            for pattern, spec in part.sharding
        ]
        return [*of_parts, *self.family.sharding]

    def abstract_params(self) -> Params:
        """The parameters as `jax.ShapeDtypeStruct`; nothing is allocated."""
        return jax.tree.map(lambda leaf: leaf, _shapes(self.init))  # a tree of the caller's own

    def check(self, params: Params) -> None:
        """Refuses parameters that are not this model's, and names the leaf. Any float dtype will do."""
        wanted = self.abstract_params()
        found, known = by_path(params), by_path(wanted)
        for path, leaf in known.items():
            check_known(path, found, f"the parameters have no leaf {path!r}")
            shape, dtype = jnp.shape(found[path]), jnp.result_type(found[path])
            floats = [jnp.issubdtype(kind, jnp.floating) for kind in (dtype, leaf.dtype)]
            if shape != leaf.shape or (dtype != leaf.dtype and not all(floats)):
                raise UserError(f"leaf {path!r} is {dtype}{[*shape]}; the model's is {leaf.dtype}{[*leaf.shape]}")
        for path in found:
            check_known(path, known, f"the model has no place for leaf {path!r}")
        structure: Any = jax.tree.structure(wanted)
        if structure != jax.tree.structure(params):
            raise UserError("the parameters must be nested dicts as `init` returns them, with int keys for blocks")

    def frozen_blocks(self, mask: Params) -> int:
        """The largest k such that nothing that the embedding and the first k blocks read trains; 0 if there is none.

        >>> from freezejax import models
        >>> model = models.build("geglu", num_layers=3)
        >>> mask = jax.tree.map(lambda _: False, model.abstract_params())
        >>> mask["blocks"][2]["mlp"]["up"]["kernel"] = True
        >>> model.frozen_blocks(mask)
        2
        """
        trains = sum(1 << i for i, leaf in enumerate(jax.tree.leaves(mask)) if leaf)
        reads = _reads(self.init, self.apply, self.config.num_layers)
        return next((k for k in range(len(reads), 0, -1) if not reads[k - 1] & trains), 0)


@functools.lru_cache(maxsize=64)
def _shapes(init: Callable[..., Params]) -> Params:
    return jax.eval_shape(init, jax.random.key(0))


@functools.lru_cache(maxsize=64)
def _reads(init: Callable[..., Params], apply: Callable[..., Any], blocks: int) -> list[int]:
    """Which leaves of the parameters the stream after each block depends on, by the jaxpr: bit i stands for leaf i."""
    params, tokens = _shapes(init), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    streams = jax.make_jaxpr(lambda *args: list(apply(*args, taps=range(blocks))[1].values()), return_shape=True)
    closed, shapes = streams(params, tokens)
    depends = {variable: 1 << i for i, variable in enumerate(closed.jaxpr.invars)}

    def all_of(variables: Any) -> int:
        known = (depends.get(variable, 0) for variable in variables if not isinstance(variable, Literal))
        return functools.reduce(operator.or_, known, 0)

    for equation in closed.jaxpr.eqns:
        depends.update(dict.fromkeys(equation.outvars, all_of(equation.invars)))
    left = iter(closed.jaxpr.outvars)
    return [all_of(next(left) for _ in jax.tree.leaves(stream)) for stream in shapes]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Embedded:
    """Stands where an array is this leaf of what `embed` gave."""

    index: int


def build(family: str, *, weights: Rules = (), **config: Any) -> Model:
    """The model of a family in `FAMILIES`, such as 'geglu'; `config` are fields of its config, such as `GegluConfig`.

    `weights` says which kernels are weights of another kind, see `freezejax.weights.kinds`.

    Raises:
      UserError: an unknown family or key, a value that no model can have, or a pattern that matches no kernel.

    >>> from freezejax import models
    >>> models.build("geglu", num_layers=2, model_dim=64, num_heads=4).config.mlp_mult
    2
    """
    known = family_named(family)
    for name, kind in (("maps", "map"), ("lora", "lora")):
        if name in config:
            raise UserError(f"{name}=[{{'pattern': ...}}] is now weights=[{{'pattern': ..., 'kind': '{kind}'}}]")
    model = functional(known, make_config(known.config, config))
    return model._replace(init=attach(model.init, weights))


def family_named(name: str) -> Family:
    """The family of a name; UserError where there is none."""
    check_known(name, FAMILIES, f"there is no model family {name!r}")
    return FAMILIES[name]


def functional(family: Family, config: Any) -> Model:
    """The model of a family and config: the module, split once and without arrays into pure functions."""
    abstract = nnx.eval_shape(lambda: family.module(config))
    graphdef, state = nnx.split(abstract)
    init = _init(nnx.to_pure_dict(state), family.init_rules(config), family.parts(config))

    def apply(
        params: Params,
        tokens_BxT: jax.Array,
        *,
        targets_BxT: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        compute_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        taps: Sequence[int] | None = None,
        blocks: int = 0,
        hidden: Any = None,
    ) -> Any:
        module: Any = nnx.merge(graphdef, untie(params))
        stream, left = module.embed(tokens_BxT, jnp.dtype(compute_dtype)), range(config.num_layers)
        if hidden is not None:
            stream, left = _restored(hidden, stream), left[blocks:]
        if wrong := [i for i in taps or () if i not in left]:
            raise UserError(f"taps: there is no block {wrong[0]} here; blocks {left.start} to {left.stop - 1} are run")
        after = dict(zip(left, _through(module, stream, left, dropout_key, remat), strict=True))
        result = module.head([stream, *after.values()][-1], targets_BxT)
        return result if taps is None else (result, {i: after[i] for i in taps})

    def prefix(params: Params, tokens_BxT: jax.Array, *, blocks: int, compute_dtype: DTypeLike = jnp.float32) -> Any:
        module: Any = nnx.merge(graphdef, untie(params))
        embedded = module.embed(tokens_BxT, jnp.dtype(compute_dtype))
        *_, stream = [embedded, *_through(module, embedded, range(blocks))]
        return _without(stream, embedded)

    def past(starts_B: jax.Array, length: int, dtype: DTypeLike) -> Past:
        if not hasattr(abstract, "keeps"):
            raise UserError("this family does not say what its blocks keep of earlier tokens: it has no `keeps`")
        kept = [abstract.keeps(i, len(starts_B), length, jnp.dtype(dtype)) for i in range(config.num_layers)]
        return Past(jnp.int32(0), jnp.asarray(starts_B, jnp.int32), kept)

    def extend(
        params: Params, tokens_BxT: jax.Array, past: Past, *, compute_dtype: DTypeLike = jnp.float32
    ) -> tuple[jax.Array, Past]:
        module: Any = nnx.merge(graphdef, untie(params))
        places_BxT = past.of(None).positions(tokens_BxT.shape[1])
        stream, kept = module.embed(tokens_BxT, jnp.dtype(compute_dtype), places_BxT), []
        for i, own in enumerate(past.kept):
            stream, state = module.block(i, stream, past.of(own), None)
            kept.append(state.kept)
        last = jax.tree.map(lambda x_BxTxD: x_BxTxD[:, -1:], stream)
        return module.head(last, None)[:, 0], Past(past.length + tokens_BxT.shape[1], past.starts_B, kept)

    return Model(family, config, init, apply, prefix, past, extend)


def _init(shapes: Params, rules: InitRules, parts: Mapping[str, Sequence[Model]]) -> Callable[..., Params]:
    """`init(key, base_key=None) -> params`: leaves by the rules, and every part as it draws itself."""
    own = make_init({name: tree for name, tree in shapes.items() if name not in parts}, rules)

    def init(key: jax.Array, base_key: jax.Array | None = None) -> Params:
        base = key if base_key is None else base_key  # one of all parts

        def of_part(path: str, part: Model) -> Params:
            return moved(part.init(named_key(key, path), base), path)

        drawn = {name: {i: of_part(f"{name}/{i}", p) for i, p in enumerate(models)} for name, models in parts.items()}
        return {**own(key), **drawn}

    return init


def _through(
    module: Any, stream: Stream, blocks: range, dropout_key: jax.Array | None = None, remat: bool = False
) -> Iterator[Stream]:
    """The stream after each of some consecutive blocks."""
    for i in blocks:

        def block(stream: Stream, key: jax.Array | None, i: int = i) -> Stream:
            return module.block(i, stream, None, key)[0]

        stream = (jax.checkpoint(block) if remat else block)(stream, named(dropout_key, f"blocks/{i}"))
        yield stream


def _without(stream: Stream, embedded: Stream) -> Any:
    """The stream without the arrays that the embedding gave: they can be had again for next to nothing."""
    places = {id(leaf): _Embedded(i) for i, leaf in enumerate(jax.tree.leaves(embedded))}
    return jax.tree.map(lambda leaf: places.get(id(leaf), leaf), stream)


def _restored(hidden: Any, embedded: Stream) -> Stream:
    leaves = jax.tree.leaves(embedded)
    is_place = lambda node: isinstance(node, _Embedded)  # noqa: E731
    return jax.tree.map(lambda node: leaves[node.index] if is_place(node) else node, hidden, is_leaf=is_place)
