"""Puzzles of equations whose signs, or whose digits too, stand for something else in every puzzle."""

import random
import string
from collections.abc import Callable, Mapping
from typing import Any

from freezejax.data.puzzles.base import Drawn

_SIGNS = "+-*/&%"
_SYMBOLS = string.ascii_letters + "!@#$^"
# What a sign may stand for: operands and result are texts of digits.
_MEANINGS: Mapping[str, Callable[[str, str], str]] = {
    "sum": lambda a, b: str(int(a) + int(b)),
    "difference": lambda a, b: str(abs(int(a) - int(b))),
    "product": lambda a, b: str(int(a) * int(b)),
    "joined": lambda a, b: a + b,
    "joined the other way": lambda a, b: b + a,
    "sum and one": lambda a, b: str(int(a) + int(b) + 1),
    "product and one": lambda a, b: str(int(a) * int(b) + 1),
    "sum backwards": lambda a, b: str(int(a) + int(b))[::-1],
}


def equation_deduce(rng: random.Random, level: int, examples: int) -> Drawn | None:
    """Two numbers and a sign; what the sign stands for is to be found from examples of the same sign.

    At level 1 all examples have it: to look for those that do takes small models long to learn.
    """
    return _equation(rng, level, examples, guess=False)


def equation_guess(rng: random.Random, level: int, examples: int) -> Drawn | None:
    """The same, but no example has the sign that is asked for."""
    return _equation(rng, level, examples, guess=True)


def cryptarithm_deduce(rng: random.Random, level: int, examples: int) -> Drawn | None:
    """An equation in which symbols stand for digits and signs; all that is needed occurs in the examples."""
    return _cryptarithm(rng, level, examples, guess=False)


def cryptarithm_guess(rng: random.Random, level: int, examples: int) -> Drawn | None:
    """The same, but no example has one of the symbols of the answer."""
    return _cryptarithm(rng, level, examples, guess=True)


def _drawn_equations(rng: random.Random, level: int, count: int) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """The meaning of each sign, and operand, sign, operand of each equation.

    Level 1: two signs of three meanings, one digit; then three of seven and of eight, two digits.
    """
    signs = rng.sample(_SIGNS, min(level + 1, 3))
    meanings = dict(zip(signs, rng.sample(list(_MEANINGS)[: (3, 7, 8)[level - 1]], len(signs)), strict=True))
    number = lambda: str(rng.randrange(1, 10) if level == 1 else rng.randrange(10, 100))  # noqa: E731
    return meanings, [(number(), rng.choice(signs), number()) for _ in range(count)]


def _results(meanings: Mapping[str, str], equations: list[tuple[str, str, str]]) -> list[str]:
    return [_MEANINGS[meanings[sign]](a, b) for a, sign, b in equations]


def _equation(rng: random.Random, level: int, examples: int, guess: bool) -> Drawn | None:
    meanings, equations = _drawn_equations(rng, level, examples + 1)
    *shown, (a, sign, b) = equations
    alike = [each for each in shown if each[1] == sign]
    if (a, sign, b) in shown or bool(alike) == guess or (level == 1 and alike and alike != shown):
        return None
    *results, answer = _results(meanings, equations)
    allowed = [f for f in _MEANINGS.values() if all(f(x, y) == _MEANINGS[meanings[sign]](x, y) for x, _, y in alike)]
    if not guess and len({f(a, b) for f in allowed}) > 1:
        return None
    told = [("".join(each), result) for each, result in zip(shown, results, strict=True)]
    rules = {sign: f"{sign} is {meaning}" for sign, meaning in meanings.items()}
    return Drawn(rules[sign], told, f"{a}{sign}{b}", answer, [rules[each] for _, each, _ in shown])


def _cryptarithm(rng: random.Random, level: int, examples: int, guess: bool) -> Drawn | None:
    meanings, equations = _drawn_equations(rng, level, examples + 1)
    if equations[-1] in equations[:-1]:
        return None
    table: dict[Any, Any] = str.maketrans(string.digits + _SIGNS, "".join(rng.sample(_SYMBOLS, 10 + len(_SIGNS))))
    hidden = [
        ("".join(each).translate(table), result.translate(table))
        for each, result in zip(equations, _results(meanings, equations), strict=True)
    ]
    *shown, (asked, answer) = hidden
    known = {symbol for pair in shown for side in pair for symbol in side}
    if set(asked) - known or bool(set(answer) - known) != guess:
        return None
    rule = ", ".join(f"{sign} is {meaning}" for sign, meaning in meanings.items())
    return Drawn(f"{rule}: {''.join(equations[-1])}", shown, asked, answer)
