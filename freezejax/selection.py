"""Freezing everything but modules of some type, and what each rule caught."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from freezejax.errors import UserError
from freezejax.masks import Rules, check_rules, matcher
from freezejax.paths import PyTree, leaf_paths
from freezejax.roles import leaves, parameter_count

_GENERAL = {"blocks", "mixer", "attn", "mlp", "kernel", "bias", "scale", "embedding", "rest", "rows"}


def module_types(params: PyTree) -> list[str]:
    """The names of modules and leaves that may train and that rules can tell apart: parts of paths, no containers.

    >>> module_types({"blocks": {0: {"attn": {"q_proj": {"kernel": 1.0}}, "ln1": {"scale": 1.0}}}})
    ['ln1', 'q_proj']
    """
    return sorted(part for part in _learning(params) - _GENERAL if not part.isdigit())


def _learning(params: PyTree) -> set[str]:
    """Parts of the paths of leaves that learn; the counters of a router do not."""
    return {part for leaf in leaves(params) if leaf.role.learns for part in leaf.path.split("/")}


def only(params: PyTree, types: str | Sequence[str]) -> Rules:
    """Rules under which modules of these types train and everything else is frozen: `freeze-except`.

    `types` are names, or a text with commas between them; `mlp` and `attn` name all of their parts. Source: the
    freeze-except ablation of the sources, whose rows are single types.

    Raises:
      UserError: a type that the model does not have, or in which nothing learns; the message lists those there are.

    >>> params = {"blocks": {0: {"attn": {"q_proj": {"kernel": 1.0}}, "ln1": {"scale": 1.0}}}}
    >>> only(params, "q_proj")
    [('(.*/)?q_proj(/.*)?', True), ('.*', False)]
    """
    names = [name.strip() for name in types.split(",")] if isinstance(types, str) else [*types]
    parts = {part for path in leaf_paths(params) for part in path.split("/")}
    known, learning = ", ".join(module_types(params)), _learning(params)
    for name in names:
        if name not in parts or name.isdigit():
            raise UserError(f"there is no module type {name!r}; this model has {known}")
        if name not in learning:
            raise UserError(f"nothing learns in module type {name!r}; types that do: {known}")
    return [*((rf"(.*/)?{re.escape(name)}(/.*)?", True) for name in names), (".*", False)]


class Kind(NamedTuple):
    """Leaves that differ from each other in numbers alone, of which a rule decides some."""

    name: str  # their path without numbers, and without what the paths of all blocks or kernels share
    leaves: int  # that the rule decides
    alike: int  # of the whole model
    where: str  # those by their first number, "blocks 0, 1"; "" where all are decided

    @property
    def share(self) -> str:
        """How many of how many, and which; nothing of a leaf like no other.

        >>> Kind("attn/q_proj", 2, 30, "blocks 0, 1").share
        ' 2 of 30: blocks 0, 1'
        """
        if self.where:
            return f" {self.leaves} of {self.alike}: {self.where}"
        return f" all {self.alike}" if self.alike > 1 else ""


class Match(NamedTuple):
    """What a rule decides: leaves that it names and no earlier rule does."""

    pattern: str
    trains: bool
    kinds: tuple[Kind, ...]
    parameters: int
    rest: str  # where the pattern matches every leaf, what that comes to: "everything", or "the rest"

    @property
    def leaves(self) -> int:
        """How many it decides."""
        return sum(kind.leaves for kind in self.kinds)

    def __str__(self) -> str:
        """In one line; kinds that are caught alike stand together."""
        start = f"rule {self.pattern!r} {'trains' if self.trains else 'freezes'}"
        if not self.kinds:
            return f"{start} nothing: earlier rules decide all that it matches"
        if self.rest:
            return f"{start} {self.rest}: {self.leaves} lea{'f' if self.leaves == 1 else 'ves'}"
        alike: dict[str, list[str]] = {}
        for kind in self.kinds:
            alike.setdefault(kind.share, []).append(kind.name)
        return f"{start} {'; '.join(f'{_some(names)}{share}' for share, names in alike.items())}"


def matches(params: PyTree, rules: Rules) -> list[Match]:
    """What each rule decides, in order. A rule that catches 2 of 30 layers is seen at once.

    >>> import numpy as np
    >>> params = {"blocks": {i: {"up": np.ones(2), "down": np.ones(2)} for i in range(3)}}
    >>> for match in matches(params, [("blocks/[01]/up", False), (".*", True)]):
    ...     print(match)
    rule 'blocks/[01]/up' freezes up 2 of 3: blocks 0, 1
    rule '.*' trains the rest: 4 leaves
    """
    paths = leaf_paths(params)
    size_of, counts = Counter(map(_kind, paths)), dict(zip(paths, map(parameter_count, leaves(params)), strict=True))
    matched, left, told = matcher(paths, "rule"), set(paths), []
    for pattern, trains in check_rules(rules):
        caught = list(matched(pattern))
        by_kind: dict[str, list[str]] = {}
        for path in caught:
            if path in left:
                by_kind.setdefault(_kind(path), []).append(path)
        rest = "" if len(caught) < len(paths) else "everything" if len(left) == len(paths) else "the rest"
        left.difference_update(caught)
        kinds = tuple(_caught(kind, some, size_of[kind]) for kind, some in by_kind.items())
        parameters = sum(counts[path] for some in by_kind.values() for path in some)
        told.append(Match(pattern, trains, kinds, parameters, rest))
    return told


def _caught(kind: str, paths: Sequence[str], alike: int) -> Kind:
    name = kind.removeprefix("blocks/*/").removesuffix("/kernel")
    if len(paths) == alike:
        return Kind(name, alike, alike, "")
    numbered = [found for path in paths if (found := re.search(r"(?:([^/]+)/)?(?<![^/])(\d+)(?![^/])", path))]
    return Kind(name, len(paths), alike, f"{numbered[0][1] or 'numbers'} {_spans({int(n[2]) for n in numbered})}")


def _kind(path: str) -> str:
    """A leaf's path without its numbers."""
    return re.sub(r"(?<![^/])\d+(?![^/])", "*", path)


def _spans(numbers: set[int]) -> str:
    """Numbers in order, runs of three or more as one.

    >>> _spans({0, 1, 4, 5, 6, 9})
    '0, 1, 4 to 6, 9'
    """
    told: list[str] = []
    for number in sorted(numbers - {n for n in numbers if {n - 1, n + 1} <= numbers}):
        inside = number - 1 in numbers and number - 2 in numbers
        told = [*told[:-1], f"{told[-1]} to {number}"] if inside else [*told, str(number)]
    return ", ".join(told)


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
