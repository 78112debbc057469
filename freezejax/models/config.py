"""Configs of all families: unknown keys and values that no model can have, told in one line."""

import dataclasses
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from freezejax.errors import UserError
from freezejax.paths import check_known
from freezejax.weights.kinds import is_count, is_positive


def make_config[T](cls: type[T], values: Mapping[str, Any]) -> T:
    """Builds the config dataclass `cls` from a mapping, refusing keys that it does not declare."""
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        check_known(name, known, f"{cls.__name__} has no field {name!r}")
    return cls(**values)


# Above these nothing is a size: arrays are counted in int32, and every block is a part of the program.
_LARGEST = {"num_layers": 2_000}
_LARGEST_OTHER = 2**31 - 1
# What a field must be by its declared type.
_BY_TYPE: Mapping[Any, tuple[Callable[[Any], bool], str]] = {
    int: (is_count, "an integer of at least 1"),
    float: (is_positive, "a finite number above 0"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    str: (lambda value: isinstance(value, str), "text"),
}


def check_fields(config: Any, may_be_zero: Collection[str] = ()) -> None:
    """Refuses a config with a field, by its declared type, or a dropout rate that no model can have."""
    rate, told = config.dropout, type(config).__name__
    for name, declared in typing.get_type_hints(type(config)).items():
        value, choices = getattr(config, name), typing.get_args(declared)
        is_right, wanted = _BY_TYPE.get(declared, (choices.__contains__, " or ".join(map(repr, choices))))
        zero = name in may_be_zero and value == 0 and not isinstance(value, bool)
        if name != "dropout" and not (zero or is_right(value)):
            raise UserError(f"{told}.{name}={value!r} must be {wanted}{' or 0' if name in may_be_zero else ''}")
        if declared is int and value > (most := _LARGEST.get(name, _LARGEST_OTHER)):
            raise UserError(f"{told}.{name}={value!r} must be at most {most:,}")
    if isinstance(rate, bool) or (rate != 0 and not (is_positive(rate) and rate < 1)):
        raise UserError(f"{told}.dropout={rate!r} must be a number in [0, 1)")


def check_sizes(config: Any) -> None:
    """Refuses a config that `check_fields` does, or with a head or MLP width that no model can have."""
    check_fields(config)
    dim, heads, told = config.model_dim, config.num_heads, type(config).__name__
    if (head := getattr(config, "head_dim", None)) is None:
        if dim % heads:
            raise UserError(f"{told}.num_heads={heads} must divide model_dim={dim}")
        if dim // heads % 2:  # rotary embedding pairs dimensions
            raise UserError(f"{told}.num_heads={heads} gives heads of {dim // heads} dims, which must be even")
    elif head % 2:
        raise UserError(f"{told}.head_dim={head} must be even")
    width = config.mlp_mult * dim
    if abs(width - mlp_width(config)) > 1e-6 or width < 0.5:
        wanted = f"must give an integer width, mlp_mult * model_dim is {width:g}"
        raise UserError(f"{told}.mlp_mult={config.mlp_mult!r} {wanted}")
    if width > _LARGEST_OTHER:
        raise UserError(f"{told}.mlp_mult={config.mlp_mult!r} gives a width of {width:g}, at most {_LARGEST_OTHER:,}")


def mlp_width(config: Any) -> int:
    """Hidden width `mlp_mult * model_dim`; `mlp_mult` may be a fraction as long as this is an integer."""
    return round(config.mlp_mult * config.model_dim)
