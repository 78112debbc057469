"""Puzzles of numbers: Roman numerals, falling bodies, lengths in another unit."""

import random
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal

from freezejax.data.puzzles.base import Drawn, distinct, with_examples

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
    return Drawn("roman", [(str(number), roman(number)) for number in shown], str(asked), roman(asked))


def gravity(rng: random.Random, level: int, examples: int) -> Drawn | None:
    """How far a body falls in a time, `g t^2 / 2`, where g is to be found: in whole numbers, or one or two decimals."""
    rates = _grid(2, 24, level)[:: 2 if level == 1 else 1]  # even, so that whole numbers give whole numbers
    times = _grid(1, 9 if level == 1 else 5, level)
    return _measured(rng, level, examples, rates, times, lambda g, t: g * t * t / 2, "{} s", "{} m")


def units(rng: random.Random, level: int, examples: int) -> Drawn | None:
    """A length in another unit, `factor x length`, where the factor is to be found."""
    rates, lengths = _grid(2, 9, 1) if level == 1 else _grid(Decimal("0.2"), 5, level), _grid(1, 9 * level, level)
    return _measured(rng, level, examples, rates, lengths, lambda factor, x: factor * x, "{} m", "{}")


def _grid(low: Decimal | int, high: int, level: int) -> list[Decimal]:
    """All numbers of `level - 1` decimals between two."""
    step = Decimal(1).scaleb(1 - level)
    return [low + i * step for i in range(int((high - low) / step) + 1)]


def _measured(
    rng: random.Random,
    level: int,
    examples: int,
    rates: list[Decimal],
    inputs: list[Decimal],
    formula: Callable[[Decimal, Decimal], Decimal],
    given: str,
    found: str,
) -> Drawn | None:
    """A puzzle of a rate; None where rates that the examples allow give several answers."""
    rate, (*shown, asked) = rng.choice(rates), distinct(rng, inputs, examples + 1)
    rounded = lambda rate, x: formula(rate, x).quantize(Decimal(1).scaleb(1 - level), ROUND_HALF_UP)  # noqa: E731
    pairs = [(x, rounded(rate, x)) for x in shown]
    allowed = [other for other in rates if all(rounded(other, x) == y for x, y in pairs)]
    if len({rounded(other, asked) for other in allowed}) > 1:
        return None
    told = [(given.format(x), found.format(y)) for x, y in pairs]
    rule = f"{rate}" if level > 1 else with_examples(f"{rate}", shown)
    return Drawn(rule, told, given.format(asked), found.format(rounded(rate, asked)))
