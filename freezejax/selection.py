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
    """The names of modules and leaves that rules can tell apart: every part of a path that is no number or container.

    >>> module_types({"blocks": {0: {"attn": {"q_proj": {"kernel": 1.0}}, "ln1": {"scale": 1.0}}}})
    ['ln1', 'q_proj']
    """
    parts = {part for path in leaf_paths(params) for part in path.split("/")}
    return sorted(part for part in parts - _GENERAL if not part.isdigit())


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
    learn = {part for leaf in leaves(params) if leaf.role.learns for part in leaf.path.split("/")}
    for name in names:
        if name not in parts or name.isdigit():
            raise UserError(f"there is no module type {name!r}; this model has {', '.join(module_types(params))}")
        if name not in learn:
            known = [kind for kind in module_types(params) if kind in learn]
            raise UserError(f"nothing learns in module type {name!r}; types that do: {', '.join(known)}")
    return [*((rf"(.*/)?{re.escape(name)}(/.*)?", True) for name in names), (".*", False)]


class Match(NamedTuple):
    """What a rule decides: leaves that it names and no earlier rule does."""

    pattern: str
    trains: bool
    leaves: int
    alike: int  # leaves of the whole model that differ from one of these in numbers alone, these among them
    parameters: int

    def __str__(self) -> str:
        """In one line."""
        what = "trains" if self.trains else "freezes"
        return f"rule {self.pattern!r} {what} {self.leaves} of {self.alike} leaves of its kind"


def matches(params: PyTree, rules: Rules) -> list[Match]:
    """What each rule decides, in order. A rule that catches 2 of 30 layers is seen at once.

    >>> import numpy as np
    >>> params = {"blocks": {i: {"up": np.ones(2), "down": np.ones(2)} for i in range(3)}}
    >>> print(matches(params, [("blocks/[01]/up", False), (".*", True)])[0])
    rule 'blocks/[01]/up' freezes 2 of 3 leaves of its kind
    """
    found, kinds = leaves(params), [_kind(path) for path in leaf_paths(params)]
    paths, size_of = leaf_paths(params), Counter(kinds)
    matched, left, told = matcher(paths, "rule"), set(paths), []
    counts = dict(zip(paths, map(parameter_count, found), strict=True))
    for pattern, trains in check_rules(rules):
        decided = [path for path in matched(pattern) if path in left]
        left -= set(decided)
        alike = sum(size_of[kind] for kind in {_kind(path) for path in decided})
        told.append(Match(pattern, trains, len(decided), alike, sum(counts[path] for path in decided)))
    return told


def partial_matches(params: PyTree, rules: Rules) -> list[Match]:
    """Those of `matches` that catch some leaves of a kind and leave others; not the last rule, which takes the rest."""
    return [match for match in matches(params, rules)[:-1] if match.leaves < match.alike]


def _kind(path: str) -> str:
    """A leaf's path without its numbers."""
    return re.sub(r"(?<![^/])\d+(?![^/])", "*", path)
