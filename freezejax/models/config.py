"""Checks shared by the model configs: bad values and unknown keys, told in one line."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from freezejax.errors import UserError
from freezejax.paths import nearest


def make_config[T](cls: type[T], values: Mapping[str, Any]) -> T:
    """Builds the config dataclass `cls` from a mapping, refusing keys that it does not declare.

    Raises:
      UserError: an unknown key (named with the nearest known ones), or a value the config refuses.

    >>> from freezejax.models.geglu import GegluConfig
    >>> make_config(GegluConfig, {"num_layer": 2})
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: GegluConfig has no field 'num_layer'; nearest: num_layers
    """
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise UserError(f"{cls.__name__} has no field {name!r}; {nearest(name, known, count=1)}")
    return cls(**values)


def check_positive(config: Any, *names: str) -> None:
    """Refuses fields that are not integers of at least 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{_field(config, name)} must be an integer of at least 1")


def check_number(config: Any, *names: str) -> None:
    """Refuses fields that are not finite numbers above 0."""
    for name in names:
        value = getattr(config, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:
            raise UserError(f"{_field(config, name)} must be a finite number above 0")


def check_dropout(config: Any) -> None:
    """Refuses a dropout rate outside [0, 1)."""
    rate = config.dropout
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < 1:
        raise UserError(f"{_field(config, 'dropout')} must be a number in [0, 1)")


def check_heads(config: Any) -> None:
    """Refuses a width that the heads do not divide, or an odd head (rotary embedding pairs dimensions)."""
    dim, heads = config.model_dim, config.num_heads
    if dim % heads:
        raise UserError(f"{_field(config, 'num_heads')} must divide model_dim={dim}")
    if dim // heads % 2:
        raise UserError(f"{_field(config, 'num_heads')} gives heads of {dim // heads} dims, which must be even")


def mlp_width(config: Any) -> int:
    """Hidden width `mlp_mult * model_dim`; `mlp_mult` may be a fraction as long as this is an integer.

    Raises:
      UserError: the product is not an integer of at least 1.

    >>> from freezejax.models.geglu import GegluConfig
    >>> mlp_width(GegluConfig(model_dim=192, num_heads=6, mlp_mult=1.5))
    288
    """
    check_number(config, "mlp_mult")
    width = config.mlp_mult * config.model_dim
    if abs(width - round(width)) > 1e-6 or width < 0.5:
        wanted = f"must give an integer width, mlp_mult * model_dim is {width:g}"
        raise UserError(f"{_field(config, 'mlp_mult')} {wanted}")
    return round(width)


def _field(config: Any, name: str) -> str:
    return f"{type(config).__name__}.{name}={getattr(config, name)!r}"
