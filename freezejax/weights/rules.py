"""Which kernels of a model are random maps or carry adapters, as ordered rules: data, like freeze rules."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from freezejax.errors import UserError
from freezejax.fields import check_number, check_positive, make_config
from freezejax.masks import compile_pattern
from freezejax.paths import leaf_paths, map_with_paths, nearest
from freezejax.weights import MapWeight, RandomMap
from freezejax.weights.lora import LoraWeight

Params = dict[Any, Any]
Rules = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class MapRule:
    r"""Kernels that are random maps. The first rule whose pattern matches a kernel's whole path wins.

    >>> MapRule(r"blocks/\d+/mlp/(gate|up)/kernel", distribution="rademacher").scale
    'fan_in'
    """

    pattern: str  # regular expression of leaf paths that end in /kernel
    distribution: str = "normal"  # see RandomMap
    scale: str | float | None = "fan_in"
    trained: bool = False  # the kernel starts as this map and is stored and trained: the control

    def __post_init__(self) -> None:  # noqa: D105
        _check_pattern(self)
        if not isinstance(self.trained, bool):
            raise UserError(f"MapRule.trained={self.trained!r} must be true or false")


@dataclasses.dataclass(frozen=True)
class LoraRule:
    """Kernels that carry a low-rank adapter; the first match wins.

    >>> LoraRule("blocks/.*/kernel", rank=8).alpha is None
    True
    """

    pattern: str
    rank: int = 16
    alpha: float | None = None  # None = rank

    def __post_init__(self) -> None:  # noqa: D105
        _check_pattern(self)
        check_positive(self, "rank")
        if self.alpha is not None:
            check_number(self, "alpha")


def attach(init: Callable[..., Params], maps: Rules, lora: Rules) -> Callable[..., Params]:
    """A model's `init` with random maps and adapters in place of the kernels that the rules name.

    `init(key, root)` then draws the maps from `root`; `apply` takes the tree it returns.

    Raises:
      UserError: a rule with an unknown key or a bad value, or a pattern that matches no kernel.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1, maps=[{"pattern": "blocks/0/mlp/up/kernel"}])
    >>> jax.eval_shape(model.init, jax.random.key(0))["blocks"][0]["mlp"]["up"]["kernel"].map.shape
    (192, 384)
    """
    if not maps and not lora:
        return init
    map_rules, lora_rules = _parse(MapRule, maps, "maps"), _parse(LoraRule, lora, "lora")
    shapes = jax.eval_shape(init, jax.random.key(0))
    kernels = [path for path in leaf_paths(shapes) if path.endswith("/kernel")]
    find_map, find_lora = _first_match(map_rules, kernels, "maps"), _first_match(lora_rules, kernels, "lora")

    def with_kinds(key: jax.Array, root: jax.Array | None = None) -> Params:
        root = key if root is None else root

        def kind(path: str, leaf: jax.Array) -> Any:
            weight: Any = leaf
            if (rule := find_map(path)) is not None:
                found = RandomMap(leaf.shape, rule.distribution, rule.scale, path)  # type: ignore[arg-type]
                weight = found.materialize(root) if rule.trained else MapWeight.create(found, root)
            if (adapter := find_lora(path)) is not None:
                weight = LoraWeight.create(weight, key, path, leaf.shape, rank=adapter.rank, alpha=adapter.alpha)  # type: ignore[arg-type]
            return weight

        return map_with_paths(kind, init(key))

    jax.eval_shape(with_kinds, jax.random.key(0))  # a rule's bad value is told now
    return with_kinds


def _check_pattern(rule: MapRule | LoraRule) -> None:
    if not isinstance(rule.pattern, str):
        wanted = "must be a regular expression of kernel paths"
        raise UserError(f"{type(rule).__name__}.pattern={rule.pattern!r} {wanted}")


def _parse[T](kind: type[T], rules: Any, field: str) -> list[T]:
    if isinstance(rules, str | Mapping) or not isinstance(rules, Sequence):
        raise UserError(f"{field}={rules!r} must be a list of rules such as {{'pattern': '.*/kernel'}}")
    for rule in rules:
        if not hasattr(rule, "keys"):
            raise UserError(f"{field}: rule {rule!r} must be a mapping such as {{'pattern': '.*/kernel'}}")
    return [make_config(kind, {"pattern": None, **{str(name): rule[name] for name in rule}}) for rule in rules]


def _first_match(rules: Sequence[Any], kernels: Sequence[str], field: str) -> Callable[[str], Any]:
    for rule in rules:
        pattern = compile_pattern(rule.pattern)
        if not any(pattern.fullmatch(path) for path in kernels):
            raise UserError(f"{field}: pattern {rule.pattern!r} matches no kernel; {nearest(rule.pattern, kernels)}")

    def find(path: str) -> Any:
        matching = (rule for rule in rules if path in kernels and re.fullmatch(rule.pattern, path))
        return next(matching, None)

    return find
