"""A model family as a record, and how its parameters are drawn."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import PartitionSpec

from freezejax.errors import UserError
from freezejax.paths import map_with_paths, named_key, nearest

Params = dict[Any, Any]
Initializer = Callable[..., jax.Array]  # (key, shape, dtype) -> array, as in jax.nn.initializers
InitRules = Sequence[tuple[str, Initializer]]
# PyTorch's names, see `Family.names`, where its modules are nested and named as here.
TORCH_NAMES = ((r"(.*)/kernel", r"\1/weight", True), (r"(.*)/embedding", r"\1/weight", False), (r"(.*)", r"\1", False))


@dataclasses.dataclass(frozen=True, eq=False)
class Hub:
    """How a family's models stand on disk where others keep them: config.json, and names that `Family.names` gives."""

    architecture: str  # of config.json's `architectures`
    model_type: str
    fields: Mapping[str, str]  # keys of config.json -> fields of our config, of the same meaning
    fixed: Mapping[str, Any]  # keys of config.json with the only value that the family has
    read: Callable[[Mapping[str, Any]], dict[str, Any]]  # config.json -> our other fields
    write: Callable[[Any], dict[str, Any]]  # our config -> config.json's other keys
    prefix: str = ""  # of all names but the head's; checkpoints of the model without a head lack it
    ignored: str = r"(?!)"  # pattern of tensors that are no parameters
    replaced: tuple[str, ...] = ()  # keys of older files, of what `fields` and `write` say under other names


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    r"""All that the project knows about a model family. A new one is a file with its record and a line in `FAMILIES`.

    The module is an `nnx.Module` of these methods:

    - `embed(tokens_BxT, dtype, positions_BxT=None) -> stream`: a tree of [B, T, D] in this dtype, whose last leaf is
      the residual stream; positions are given in cached generation;
    - `block(i, stream, state, dropout_key) -> (stream, state)`: what block i makes of the stream. `state` is
      None in training, and then handed on as it is; in cached generation it is a `State`. Without a key there is no
      dropout;
    - `head(stream, targets_BxT)`: float32 logits [B, T, V], or with targets their negative log likelihoods [B, T];
    - `keeps(i, batch, length, dtype)`, for generation alone: the empty `State.kept` of block i.

    All patterns are regular expressions of whole leaf paths; the first match wins. A config class is a frozen dataclass
    that refuses values no model can have.
    """

    config: type[Any]  # has at least `vocab_size` and `num_layers`
    module: Callable[[Any], nnx.Module]  # of a config
    init_rules: Callable[[Any], InitRules]  # of a config: initial distributions, see `make_init`
    # (our path, torch's with / for ., whether transposed there). A * in torch's stands for an index: of a leaf whose
    # first axis are so many tensors there.
    names: Sequence[tuple[str, str, bool]]
    sharding: Sequence[tuple[str, PartitionSpec]]  # how leaves lie on the mesh; whole where no pattern matches
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # keys of foreign configs, with the only value
    hub: Hub | None = None  # for `models.load_pretrained`
    # Of a config: lists of models (see `base.Model`) by the attribute of the module that holds their modules, such as
    # "members". A part's parameters, at `members/0`, are drawn and lie on a mesh as they would alone.
    parts: Callable[[Any], Mapping[str, Sequence[Any]]] = lambda config: {}


# A new family is a file with its record and a line in `freezejax/models/__init__.py`.
FAMILIES: dict[str, Family] = {}


def make_init(shapes: Params, rules: InitRules) -> Callable[..., Params]:
    """`init(key) -> params`, which draws every leaf from the first rule whose regex matches its whole path.

    A leaf gets `fold_in(key, stable_hash(path))`, so that no other leaf can change its values. A leaf of `shapes` that
    no rule covers is a UserError.
    """

    def find(path: str, _: Any) -> Initializer:
        for pattern, initializer in rules:
            if re.fullmatch(pattern, path):
                return initializer
        raise UserError(f"no initial distribution for leaf {path!r}; {nearest(path, dict(rules), count=1)}")

    drawn_by = map_with_paths(find, shapes)

    def init(key: jax.Array) -> Params:
        draw = lambda path, leaf, by: by(named_key(key, path), leaf.shape, leaf.dtype)  # noqa: E731
        return map_with_paths(draw, shapes, drawn_by)

    return init
