"""Which leaves of a model an artifact stores, and with which codec: decided from roles, paths and shapes alone."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from freezejax import roles
from freezejax.artifact.codecs import BITS, CODECS, LEVELS, count_rows
from freezejax.errors import UserError
from freezejax.masks import matcher
from freezejax.paths import PyTree, check_known, nearest
from freezejax.roles import Leaf, Role
from freezejax.weights import MapWeight, RandomMap

SMALL = 4096  # tensors of at most this many elements stay float16: their scales would cost as much as they save
SEED_WORDS = 2  # uint32 words of a threefry key
_ROLE = "role="  # how a codec rule names a role instead of a path

CodecRules = str | Sequence[tuple[str, str]]


class Tensor(NamedTuple):
    """One stored leaf."""

    path: str
    shape: tuple[int, ...]
    codec: str

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def small(self) -> bool:
        """Whether it lies in the one section of small tensors, which are float16: see `stored_tensors`."""
        return len(self.shape) < 2 or (self.size <= SMALL and self.codec == "float16")

    @property
    def rows(self) -> int:
        """Number of scales."""
        if self.codec in LEVELS:
            return 1  # one step for all
        return 0 if self.codec == "float16" else count_rows(self.path, self.shape)

    @property
    def packed_bytes(self) -> int:
        """Bytes of its codes before entropy coding."""
        return packed_size(self.size, BITS.get(self.codec, 16))


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` packed codes."""
    return -(-count * bits // 8)


def stored_tensors(params: PyTree, codec: CodecRules) -> list[Tensor]:
    """The leaves of parameters, or of their shapes, in flattening order, without seeds and drawn maps.

    `codec` is one for everything, or ordered `(regex, codec)`; `re.fullmatch` on the path, first match wins. In place
    of a regex "role=adapter" means all leaves of a role, see `freezejax.roles`. Tensors of fewer than two dims stay
    float16, and so do those of at most `SMALL` elements, unless they are of few levels, or a rule of their role saves a
    quarter of their bytes.

    Raises:
      UserError: an unknown codec or role, a regex that is none or matches no leaf, a leaf without a rule or not float.

    >>> stored_tensors({"w": np.zeros((64, 128)), "scale": np.zeros(64)}, "int6")
    [Tensor(path='scale', shape=(64,), codec='float16'), Tensor(path='w', shape=(64, 128), codec='int6')]
    """
    rules, found = check_codec(codec), []
    codecs = _codecs(roles.leaves(params), rules)
    for leaf in stored_leaves(params):
        tensor = Tensor(leaf.path, tuple(leaf.value.shape), "float16")
        coded = tensor._replace(codec=codecs.get(leaf.path, "float16"))
        if not tensor.small:
            if leaf.path not in codecs:
                close = nearest(leaf.path, [pattern for pattern, _ in rules], count=1)
                raise UserError(f"no codec rule covers leaf {leaf.path!r}; {close}")
            tensor = coded
        elif len(tensor.shape) > 1 and (leaf.role is Role.CODED or (_ROLE + leaf.role, coded.codec) in rules):
            saves = coded.packed_bytes + 2 * coded.rows <= 0.75 * tensor.packed_bytes
            tensor = coded if saves else tensor
        found.append(tensor)
    return found


def _codecs(leaves: Sequence[Leaf], rules: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The codec of every leaf that a rule names: the first one's. Only a rule of a role may name none.

    What is used at few levels has its own, whatever the rules say.
    """
    matched = matcher([leaf.path for leaf in leaves], "codec rule")
    codecs = {leaf.path: f"levels{leaf.owner.levels}" for leaf in leaves if leaf.role is Role.CODED}  # type: ignore[union-attr]
    for pattern, codec in rules if leaves else ():
        of_role = [leaf.path for leaf in leaves if pattern == _ROLE + leaf.role]
        for path in of_role if pattern.startswith(_ROLE) else matched(pattern):
            codecs.setdefault(path, codec)
    return codecs


def check_codec(codec: CodecRules) -> list[tuple[str, str]]:
    """The rules in their long form, checked."""
    if not isinstance(codec, Sequence):
        raise UserError(f"codec={codec!r}: give a codec, such as 'int6', or a list of (pattern, codec)")
    return [_checked_rule(rule) for rule in ([(".*", codec)] if isinstance(codec, str) else codec)]


def _checked_rule(rule: Any) -> tuple[str, str]:
    match rule:
        case [str(pattern), str(name)]:
            check_known(name, CODECS, f"there is no codec {name!r}", count=3)
        case _:
            raise UserError(f"codec rule {rule!r}: write (pattern, codec), such as ('.*', 'int6')")
    if pattern.startswith(_ROLE):
        check_known(pattern.removeprefix(_ROLE), list(Role), f"codec rule {pattern!r}: no such role")
    return pattern, name


def stored_leaves(params: PyTree) -> list[Leaf]:
    """Every leaf whose bytes a file must hold: no seed, and nothing drawn from one; a `UserError` if it is no float."""
    found = [leaf for leaf in roles.leaves(params) if not leaf.role.constant]
    for leaf in found:
        kind = getattr(leaf.value, "dtype", None)
        if kind is None or not jnp.issubdtype(kind, jnp.floating):
            shown = kind or type(leaf.value).__name__
            keys = "; of an nnx model save nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))"
            hint = keys if "uint32" in str(shown) else ""
            raise UserError(f"leaf {leaf.path!r} is {shown}: an artifact stores float weights{hint}")
    return found


def seed_leaves(params: PyTree) -> list[Leaf]:
    """Every leaf that holds a seed."""
    return [leaf for leaf in roles.leaves(params) if leaf.role is Role.SEED]


def recipes(params: PyTree) -> dict[str, RandomMap]:
    """The recipe of every random map, by the path at which the map stands."""
    seeded = [(leaf.path.rpartition("/")[0], leaf.owner) for leaf in seed_leaves(params)]
    return {path: owner.map for path, owner in seeded if isinstance(owner, MapWeight)}


def seed_of(params: PyTree) -> tuple[int, int] | None:
    """The words of the one base seed of a tree; None where nothing is seeded. Two seeds are a `UserError`."""
    seeds = [(leaf.path, tuple(np.asarray(leaf.value).tolist())) for leaf in seed_leaves(params)]
    first, seed = seeds[0] if seeds else ("", None)
    for path, words in seeds:
        if words != seed:
            raise UserError(f"seed {path!r} is {words}, but {first!r} is {seed}: a model has one base seed")
    return seed
