"""Numbers of a config that no library checks: in one line what is wrong, before anything is made of them."""

import math
import operator
from typing import Any

from ml_collections import ConfigDict

from freezejax.errors import UserError


def check_range(config: ConfigDict, field: str, least: float, most: float = math.inf, count: int = 1) -> None:
    """Refuses a field that is not a number from `least` to `most`, or `count` or more of them where it is a tuple.

    Raises:
      UserError: names the field, its value and what would be right.

    >>> check_range(ConfigDict({"mix": {"steps": 0}}), "mix.steps", 1)
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: config.mix.steps=0: expected 1 or more
    >>> check_range(ConfigDict({"lengths": (40, 160)}), "lengths", 1, 100)
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: config.lengths=(40, 160): expected numbers from 1 to 100
    """
    value = operator.attrgetter(field)(config)
    several = isinstance(value, tuple | list)
    numbers = list(value) if several else [value]
    if len(numbers) < (count if several else 1) or not all(_lies_in(number, least, most) for number in numbers):
        bounds = f"{least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
        many = f"{count} or more numbers, " if count > 1 else "numbers " if several else ""
        raise UserError(f"config.{field}={value!r}: expected {many}{bounds}")


def _lies_in(number: Any, least: float, most: float) -> bool:
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return is_number and math.isfinite(number) and least <= number <= most
