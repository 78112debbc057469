"""Checks of configs of models and weights: bad values and unknown keys, told in one line."""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from freezejax.errors import UserError
from freezejax.paths import check_known


def make_config[T](cls: type[T], values: Mapping[str, Any]) -> T:
    """Builds the config dataclass `cls` from a mapping, refusing keys that it does not declare.

    >>> from freezejax.models.geglu import GegluConfig
    >>> make_config(GegluConfig, {"num_layer": 2})
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: GegluConfig has no field 'num_layer'; nearest: num_layers
    """
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        check_known(name, known, f"{cls.__name__} has no field {name!r}")
    return cls(**values)


def is_count(value: Any) -> bool:
    """Whether a value is an integer of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


# What a field must be by its declared type.
_BY_TYPE: Mapping[Any, tuple[Callable[[Any], bool], str]] = {
    int: (is_count, "an integer of at least 1"),
    float: (is_positive, "a finite number above 0"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
}


def check_declared(config: Any, skipped: Sequence[str] = ()) -> None:
    """Refuses fields of a config that are not what their declared type says: int, float, bool or a Literal."""
    for name, declared in typing.get_type_hints(type(config)).items():
        value, choices = getattr(config, name), typing.get_args(declared)
        is_right, wanted = _BY_TYPE.get(declared, (choices.__contains__, " or ".join(map(repr, choices))))
        if name not in skipped and not is_right(value):
            raise UserError(f"{told(config, name)} must be {wanted}")


def told(config: Any, name: str) -> str:
    """A field and its value, as an error names it."""
    return f"{type(config).__name__}.{name}={getattr(config, name)!r}"
