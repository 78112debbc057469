"""Checks shared by configs of models and weights: bad values and unknown keys, told in one line."""

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
        if not is_count(getattr(config, name)):
            raise UserError(f"{told(config, name)} must be an integer of at least 1")


def check_number(config: Any, *names: str) -> None:
    """Refuses fields that are not finite numbers above 0."""
    for name in names:
        if not is_positive(getattr(config, name)):
            raise UserError(f"{told(config, name)} must be a finite number above 0")


def is_count(value: Any) -> bool:
    """Whether a value is an integer of at least 1.

    >>> is_count(1), is_count(True), is_count(0)
    (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0.

    >>> is_positive(0.5), is_positive(float("inf"))
    (True, False)
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def told(config: Any, name: str) -> str:
    """A field and its value, as an error names it."""
    return f"{type(config).__name__}.{name}={getattr(config, name)!r}"
