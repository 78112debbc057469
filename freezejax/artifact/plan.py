"""Which leaves of a model an artifact stores, and with which codec: decided from paths and shapes alone."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from freezejax.artifact.codecs import CODECS, row_shape
from freezejax.artifact.packing import bits_of, packed_size
from freezejax.errors import UserError
from freezejax.paths import PyTree, leaf_paths, nearest
from freezejax.weights import release

SMALL = 4096  # tensors of at most this many elements stay float16: their scales would cost as much as they save
ROOT_WORDS = 2  # uint32 words of a threefry key

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
        """Whether it lies in the one section of small tensors."""
        return is_small(self.shape)

    @property
    def rows(self) -> int:
        """Number of scales."""
        return 0 if self.codec == "float16" else row_shape(self.path, self.shape)[0]

    @property
    def packed_bytes(self) -> int:
        """Bytes of its codes before entropy coding."""
        return packed_size(self.size, bits_of(self.codec))


def is_small(shape: tuple[int, ...]) -> bool:
    """Fewer than two dims, or at most `SMALL` elements.

    >>> is_small((4096,)), is_small((64, 64)), is_small((64, 65))
    (True, True, False)
    """
    return len(shape) < 2 or math.prod(shape) <= SMALL


def plan(params: PyTree, codec: CodecRules) -> list[Tensor]:
    """The stored leaves in flattening order; roots (uint32) and drawn maps are not among them.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`s.
      codec: a codec for everything, or ordered `(regex, codec)`; `re.fullmatch` on the path, first match wins.

    Raises:
      UserError: an unknown codec, a bad regex, a leaf that no rule covers or that is neither float nor a root.

    >>> plan({"w": np.zeros((64, 128)), "scale": np.zeros(64)}, "int6")
    [Tensor(path='scale', shape=(64,), codec='float16'), Tensor(path='w', shape=(64, 128), codec='int6')]
    """
    rules = codec_rules(codec)
    return [
        Tensor(path, tuple(leaf.shape), "float16" if is_small(leaf.shape) else _find(path, rules))
        for path, leaf in stored_leaves(params)
    ]


def codec_rules(codec: CodecRules) -> list[tuple[str, str]]:
    """The rules in their long form, checked.

    >>> codec_rules("int6")
    [('.*', 'int6')]
    >>> codec_rules("int7")
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: there is no codec 'int7'; nearest: int8, int6, int5
    """
    rules = [(".*", codec)] if isinstance(codec, str) else _pairs(codec)
    for pattern, name in rules:
        if name not in CODECS:
            raise UserError(f"there is no codec {name!r}; {nearest(str(name), CODECS)}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"codec rule {pattern!r} is no regular expression: {error}") from None
    return rules


def _pairs(codec: Any) -> list[tuple[str, str]]:
    def pair(rule: Any) -> tuple[str, str]:
        match rule:
            case [str(pattern), str(name)]:
                return pattern, name
        raise UserError(f"codec rule {rule!r}: write (pattern, codec), such as ('.*', 'int6')")

    if not isinstance(codec, Sequence):
        raise UserError(f"codec={codec!r}: give a codec, such as 'int6', or a list of (pattern, codec)")
    return [pair(rule) for rule in codec]


def stored_leaves(params: PyTree) -> list[tuple[str, Any]]:
    """`(path, leaf)` of every float leaf whose bytes a file must hold: no root, and no map that was drawn.

    Raises:
      UserError: a leaf that is neither float nor a root.
    """
    params = release(params)
    leaves = [pair for pair in zip(leaf_paths(params), jax.tree.leaves(params), strict=True) if not is_root(pair[1])]
    for path, leaf in leaves:
        kind = getattr(leaf, "dtype", None)
        if kind is None or not jnp.issubdtype(kind, jnp.floating):
            raise UserError(f"leaf {path!r} is {kind or type(leaf).__name__}: an artifact stores float weights")
    return leaves


def is_root(leaf: Any) -> bool:
    """Whether a leaf is a root seed: key data, uint32 [2]."""
    return getattr(leaf, "dtype", None) == jnp.uint32 and tuple(leaf.shape) == (ROOT_WORDS,)


def root_of(params: PyTree) -> tuple[int, int] | None:
    """The words of the one root seed of a tree; None where nothing is seeded.

    Raises:
      UserError: two leaves have different roots.

    >>> root_of({"a": np.array([0, 7], np.uint32), "b": np.zeros(3, np.float32)})
    (0, 7)
    """
    leaves = zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
    roots = {path: tuple(np.asarray(leaf).tolist()) for path, leaf in leaves if is_root(leaf)}
    if not roots:
        return None
    first = next(iter(roots))
    for path, words in roots.items():
        if words != roots[first]:
            raise UserError(f"root {path!r} is {words}, but {first!r} is {roots[first]}: a model has one root seed")
    return roots[first]


def _find(path: str, rules: list[tuple[str, str]]) -> str:
    for pattern, codec in rules:
        if re.fullmatch(pattern, path):
            return codec
    raise UserError(f"no codec rule covers leaf {path!r}; {nearest(path, [pattern for pattern, _ in rules], count=1)}")
