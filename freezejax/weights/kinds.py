r"""Which kernels of a model are weights of another kind, as an ordered list of rules: data, like freeze rules.

    weights=[
        {"pattern": r"blocks/\d+/mlp/(gate|up)/kernel", "kind": "map", "distribution": "rademacher"},
        {"pattern": r"blocks/.*/kernel", "kind": "lora", "rank": 16},
    ]

Rules apply from the inside out: the second puts an adapter over whatever the first has left at a kernel. Of the
rules of one kind the first that matches a kernel's whole path counts.
"""

import inspect
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from freezejax.errors import UserError
from freezejax.masks import compile_pattern
from freezejax.paths import PyTree, check_known, map_with_paths, nearest
from freezejax.roles import Role, leaves, weights
from freezejax.ties import untie
from freezejax.weights.stack import Stack

Rules = Sequence[Mapping[str, Any]]
Init = Callable[..., PyTree]
# kind -> `make(kernel or inner weight, site, **options) -> weight`; the options and their defaults are its keywords.
KINDS: dict[str, Callable[..., Any]] = {}


def is_count(value: Any) -> bool:
    """Whether an option is an integer of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_positive(value: Any) -> bool:
    """Whether an option is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def check_flag(name: str, value: Any) -> None:
    """Refuses an option that is neither true nor false."""
    if not isinstance(value, bool):
        raise UserError(f"{name}={value!r} must be true or false")


def check_rank(rank: Any, shape: tuple[int, int] | None = None) -> None:
    """Refuses a rank that is no count, or above the larger side of a kernel of this shape."""
    if not is_count(rank):
        raise UserError(f"rank={rank!r} must be an integer of at least 1")
    if shape is not None and rank > max(shape):  # not the smaller: one rule may name kernels of several sizes
        raise UserError(f"rank={rank} must be at most {max(shape)}, the larger side of the kernel")


class Site(NamedTuple):
    """Where a weight stands, and what it may be drawn from."""

    path: str  # of the kernel
    key: jax.Array  # of initial values; fold in a name
    base_key: jax.Array  # of what is drawn from the base seed


def attach(init: Init, rules: Any) -> Init:
    """A model's `init(key, base_key)` with weights of other kinds in place of the kernels that the rules name.

    A rule is a mapping: `pattern` (of whole kernel paths), `kind` (of `KINDS`) and the options of that kind. What is
    drawn from the base seed takes the second argument of the `init(key, base_key=None)` that is returned, or the key;
    the `init` that is given gets both.

    A kernel that is a stack of matrices [E, in, out] becomes a `Stack` of such weights.

    Raises:
      UserError: a rule with an unknown kind, option or value, or a pattern that matches no kernel.

    >>> ones = lambda key, base_key: {"up": {"kernel": jax.numpy.ones((3, 4))}}
    >>> init = attach(ones, [{"pattern": "up/.*", "kind": "map"}])
    >>> init(jax.random.key(0))["up"]["kernel"].map.shape
    (3, 4)
    """
    rules = () if rules is None else rules
    if isinstance(rules, str | Mapping) or not isinstance(rules, Sequence):
        raise UserError(f"weights={rules!r} must be a list of rules such as {_EXAMPLE}")
    if not rules:
        return lambda key, base_key=None: init(key, base_key)
    shapes = jax.eval_shape(init, jax.random.key(0), jax.random.key(0))
    kernels = {leaf.path: None for leaf in leaves(shapes) if leaf.role in (Role.KERNEL, Role.HEAD)}
    parsed = [_parse(f"weights[{index}]", rule, kernels) for index, rule in enumerate(rules)]

    def worked_in(params: PyTree, key: jax.Array, base: jax.Array) -> PyTree:
        at = lambda path, leaf: _at_kernel(parsed, leaf, Site(path, key, base)) if path in kernels else leaf  # noqa: E731
        return map_with_paths(at, params)

    def with_kinds(key: jax.Array, base_key: jax.Array | None = None) -> PyTree:
        base = key if base_key is None else base_key
        return worked_in(init(key, base), key, base)

    # A bad value of an option is told now, and a block to share with that is not there.
    warn_above_break_even(untie(jax.eval_shape(worked_in, shapes, jax.random.key(0), jax.random.key(0))))
    return with_kinds


def recast(params: PyTree, rules: Rules, key: jax.Array, base_key: jax.Array | None = None) -> PyTree:
    """Parameters at hand, trained ones say, with weights of other kinds in place of the kernels that the rules name.

    As `attach` of an initial draw: a model built with these `weights` computes with what is returned.

    >>> params = {"up": {"kernel": jax.numpy.outer(jax.numpy.arange(3.0), jax.numpy.ones(4))}}
    >>> recast(params, [{"pattern": "up/.*", "kind": "crystal"}], jax.random.key(0))["up"]["kernel"].left.shape
    (3, 1)
    """
    return attach(lambda key, base_key: params, rules)(key, base_key)


def warn_above_break_even(params: PyTree) -> None:
    """Warns where adapters train more numbers than their kernel has: above rank mn / (m + n) nothing is saved.

    Takes parameters or their shapes.
    """
    trained, shapes = Counter[str](), {path: weight.shape for path, weight in weights(params)}
    for leaf in leaves(params):
        if leaf.role in (Role.ADAPTER, Role.GAIN) and leaf.kernel in shapes:
            trained[leaf.kernel] += leaf.value.size
    above = [path for path, count in trained.items() if count > math.prod(shapes[path])]
    if above:
        shape, more = shapes[above[0]], f" and {len(above) - 1} more" if above[1:] else ""
        *_, m, n = shape  # of each matrix, where it is a stack of them
        warnings.warn(
            f"weights: what is trained beside kernel {above[0]!r}{more}, {trained[above[0]]:,} numbers, is more than "
            f"the kernel's own {math.prod(shape):,}: a low rank saves something below {m * n / (m + n):.0f}",
            stacklevel=3,
        )


class _Rule(NamedTuple):
    where: str  # how an error names it
    pattern: re.Pattern[str]
    kind: str
    options: dict[str, Any]


def _at_kernel(rules: Sequence[_Rule], kernel: Any, site: Site) -> Any:
    rules = [rule for rule in rules if rule.pattern.fullmatch(site.path)]
    if rules and len(kernel.shape) > 2:  # of each matrix by itself
        parts = (site._replace(path=f"{site.path}/{i}") for i in range(kernel.shape[0]))
        return Stack(tuple(_at_matrix(rules, kernel[i], part) for i, part in enumerate(parts)))
    return _at_matrix(rules, kernel, site)


def _at_matrix(rules: Sequence[_Rule], kernel: Any, site: Site) -> Any:
    seen: set[str] = set()
    for rule in rules:
        if rule.kind not in seen:
            seen.add(rule.kind)
            try:
                kernel = KINDS[rule.kind](kernel, site, **rule.options)
            except UserError as error:
                raise UserError(f"{rule.where}, kernel {site.path!r}: {error}") from None
    return kernel


_EXAMPLE = "{'pattern': '.*/kernel', 'kind': 'map'}"


def _parse(where: str, rule: Any, kernels: Iterable[str]) -> _Rule:
    if not hasattr(rule, "keys"):
        raise UserError(f"{where}={rule!r} must be a mapping such as {_EXAMPLE}")
    options = {str(name): rule[name] for name in rule}
    pattern, kind = options.pop("pattern", None), options.pop("kind", None)
    expected = f"expected one of {', '.join(KINDS)}"
    if kind is None:
        raise UserError(f"{where}: kind is missing: {expected}")
    check_known(str(kind), KINDS, f"{where}: kind={kind!r}: {expected}")
    where = f"{where} (kind {kind})"
    known = [name for name, p in inspect.signature(KINDS[kind]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        check_known(name, known, f"{where} has no option {name!r}")
    if not isinstance(pattern, str):
        raise UserError(f"{where}: pattern={pattern!r} must be a regular expression of kernel paths")
    compiled = compile_pattern(pattern)
    if not any(map(compiled.fullmatch, kernels)):
        raise UserError(f"{where}: pattern {pattern!r} matches no kernel; {nearest(pattern, kernels)}")
    return _Rule(where, compiled, kind, options)
