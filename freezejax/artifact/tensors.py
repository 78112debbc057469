"""Which leaves of a model an artifact stores, and with which codec: decided from roles, paths and shapes alone."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from freezejax import roles
from freezejax.artifact.codecs import BITS, CODECS, row_axis
from freezejax.errors import UserError
from freezejax.paths import PyTree, nearest
from freezejax.roles import Leaf, Role

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
        """Whether it lies in the one section of small tensors: fewer than two dims, or at most `SMALL` elements."""
        return len(self.shape) < 2 or self.size <= SMALL

    @property
    def rows(self) -> int:
        """Number of scales."""
        return 0 if self.codec == "float16" else self.shape[row_axis(self.path)]

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
    of a regex "role=adapter" means all leaves of a role, see `freezejax.roles`.

    Raises:
      UserError: an unknown codec or role, a bad regex, a leaf that no rule covers or that is not float.

    >>> stored_tensors({"w": np.zeros((64, 128)), "scale": np.zeros(64)}, "int6")
    [Tensor(path='scale', shape=(64,), codec='float16'), Tensor(path='w', shape=(64, 128), codec='int6')]
    """
    rules, found = check_codec(codec), []
    for leaf in stored_leaves(params):
        tensor = Tensor(leaf.path, tuple(leaf.value.shape), "float16")
        found.append(tensor if tensor.small else tensor._replace(codec=_find(leaf, rules)))
    return found


def check_codec(codec: CodecRules) -> list[tuple[str, str]]:
    """The rules in their long form, checked."""
    if not isinstance(codec, Sequence):
        raise UserError(f"codec={codec!r}: give a codec, such as 'int6', or a list of (pattern, codec)")
    return [_checked_rule(rule) for rule in ([(".*", codec)] if isinstance(codec, str) else codec)]


def _checked_rule(rule: Any) -> tuple[str, str]:
    match rule:
        case [str(pattern), str(name)]:
            check_known("codec", name, CODECS)
        case _:
            raise UserError(f"codec rule {rule!r}: write (pattern, codec), such as ('.*', 'int6')")
    if pattern.startswith(_ROLE) and (role := pattern.removeprefix(_ROLE)) not in list(Role):
        raise UserError(f"codec rule {pattern!r}: no such role; {nearest(role, Role, 1)}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"codec rule {pattern!r} is no regular expression: {error}") from None
    return pattern, name


def check_known(kind: str, name: Any, names: Iterable[str]) -> None:
    """Refuses what is none of the names."""
    if name not in list(names):
        raise UserError(f"there is no {kind} {name!r}; {nearest(str(name), names)}")


def _find(leaf: Leaf, rules: list[tuple[str, str]]) -> str:
    for pattern, codec in rules:
        if pattern == _ROLE + leaf.role if pattern.startswith(_ROLE) else re.fullmatch(pattern, leaf.path):
            return codec
    patterns = [pattern for pattern, _ in rules]
    raise UserError(f"no codec rule covers leaf {leaf.path!r}; {nearest(leaf.path, patterns, count=1)}")


def stored_leaves(params: PyTree) -> list[Leaf]:
    """Every leaf whose bytes a file must hold: no seed, and nothing drawn from one; a `UserError` if it is no float."""
    found = [leaf for leaf in roles.leaves(params) if not leaf.role.constant]
    for leaf in found:
        kind = getattr(leaf.value, "dtype", None)
        if kind is None or not jnp.issubdtype(kind, jnp.floating):
            shown = kind or type(leaf.value).__name__
            hint = "; of an nnx model save nnx.state(model, nnx.Not(nnx.RngState))" if "uint32" in str(shown) else ""
            raise UserError(f"leaf {leaf.path!r} is {shown}: an artifact stores float weights{hint}")
    return found


def seed_leaves(params: PyTree) -> list[Leaf]:
    """Every leaf that holds a seed."""
    return [leaf for leaf in roles.leaves(params) if leaf.role is Role.SEED]


def seed_of(params: PyTree) -> tuple[int, int] | None:
    """The words of the one base seed of a tree; None where nothing is seeded. Two seeds are a `UserError`."""
    seeds = [(leaf.path, tuple(np.asarray(leaf.value).tolist())) for leaf in seed_leaves(params)]
    first, seed = seeds[0] if seeds else ("", None)
    for path, words in seeds:
        if words != seed:
            raise UserError(f"seed {path!r} is {words}, but {first!r} is {seed}: a model has one base seed")
    return seed
