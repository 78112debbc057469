"""Puzzles of numbers: Roman numerals, falling bodies, lengths in another unit."""

import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from freezejax.data.puzzles.base import Drawn, distinct

_ROMAN = [(1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL")]
_ROMAN += [(10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]


def roman(number: int) -> str:
    """A number above 0 in Roman numerals.

    >>> roman(1994)
    'MCMXCIV'
    """
    text = ""
    for value, letters in _ROMAN:
        text += letters * (number // value)
        number %= value
    return text


def numerals(rng: random.Random, level: int, examples: int) -> Drawn:
    """A number in Roman numerals: up to 39, 399 or 3999."""
    *shown, asked = distinct(rng, range(1, (40, 400, 4000)[level - 1]), examples + 1)
    told = [(str(number), roman(number)) for number in shown]
    return Drawn("roman", told, str(asked), roman(asked), ["roman"] * len(told))


def gravity(rng: random.Random, level: int, examples: int) -> Drawn | None:
    """How far a body falls in a time, `g t^2 / 2`, where g is to be found: in whole numbers, or one or two decimals."""
    rates = _grid(2, 24, level)[:: 2 if level == 1 else 1]  # even, so that whole numbers give whole numbers
    times = _grid(1, 9 if level == 1 else 5, level)
    one = 10 ** (level - 1)
    return _measured(rng, level, examples, rates, times, lambda g, t: (g * t * t + one**2) // (2 * one**2), " s", " m")


def units(rng: random.Random, level: int, examples: int) -> Drawn | None:
    """A length in another unit, `factor x length`, where the factor is to be found."""
    rates, lengths = _grid(2, 9, 1) if level == 1 else _grid(0.2, 5, level), _grid(1, 9 * level, level)
    one = 10 ** (level - 1)
    return _measured(rng, level, examples, rates, lengths, lambda f, x: (2 * f * x + one) // (2 * one), " m", "")


def _grid(low: float, high: int, level: int) -> range:
    """All numbers of `level - 1` decimals between two, in units of the last."""
    one = 10 ** (level - 1)
    return range(round(low * one), high * one + 1)


def _measured(
    rng: random.Random,
    level: int,
    examples: int,
    rates: range,
    inputs: range,
    formula: Callable[[Any, int], Any],  # rounded half up
    given: str,
    found: str,
) -> Drawn | None:
    """A puzzle of a rate; None where rates that the examples allow give several answers."""
    rate, (*shown, asked) = rng.choice(rates), distinct(rng, inputs, examples + 1)
    allowed = np.asarray(rates)
    for x in shown:
        allowed = allowed[formula(allowed, x) == formula(rate, x)]
    if len(set(formula(allowed, asked).tolist())) > 1:
        return None
    text = lambda number: str(Decimal(number).scaleb(1 - level))  # noqa: E731
    told = [(text(x) + given, text(formula(rate, x)) + found) for x in shown]
    rule = text(rate)
    return Drawn(rule, told, text(asked) + given, text(formula(rate, asked)) + found, [rule] * len(told))
