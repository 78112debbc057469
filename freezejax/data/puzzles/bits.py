"""Puzzles of bits: one rule of shifts, rotations and gates turns each number into another."""

import functools
import itertools
import random

from freezejax.data.puzzles.base import Drawn, distinct

_Table = tuple[int, ...]  # what a rule makes of every number
_GATES = (0b00001111, 0b01010101, 0b00110011, 0b11110000)  # of level 3; level 2 has all constants


def bits(rng: random.Random, level: int, examples: int) -> Drawn | None:
    """A number of bits under a rule; whatever rule of the level the examples allow, the answer is the same.

    Level 1: 4 bits under one operation: not, reversed, shifted or rotated by one or two. Level 2: 8 bits, and gates
    with a constant. Level 3: two operations, one after the other.
    """
    width = 4 if level == 1 else 8
    rules = _rules(level, width)
    name = rng.choice(list(rules))
    *shown, asked = distinct(rng, range(2**width), examples + 1)
    pairs = [(x, rules[name][x]) for x in shown]
    allowed = [rule for rule in rules.values() if all(rule[x] == y for x, y in pairs)]
    if len({rule[asked] for rule in allowed}) > 1:
        return None
    text = lambda number: f"{number:0{width}b}"  # noqa: E731
    return Drawn(name, [(text(x), text(y)) for x, y in pairs], text(asked), text(rules[name][asked]))


@functools.cache
def _rules(level: int, width: int) -> dict[str, _Table]:
    full = 2**width - 1
    numbers = range(full + 1)
    rules = {
        "not": tuple(x ^ full for x in numbers),
        "reversed": tuple(int(f"{x:0{width}b}"[::-1], 2) for x in numbers),
    }
    for by in range(1, 3 if level == 1 else width):
        rules[f"left {by}"] = tuple((x << by) & full for x in numbers)
        rules[f"right {by}"] = tuple(x >> by for x in numbers)
        rules[f"rotated {by}"] = tuple(((x << by) | (x >> (width - by))) & full for x in numbers)
    for constant in {1: (), 2: range(1, full + 1), 3: _GATES}[level]:
        rules[f"xor {constant}"] = tuple(x ^ constant for x in numbers)
        rules[f"and {constant}"] = tuple(x & constant for x in numbers)
        rules[f"or {constant}"] = tuple(x | constant for x in numbers)
    if level < 3:
        return rules
    pairs = itertools.product(rules.items(), repeat=2)
    return {f"{a}, {b}": tuple(second[x] for x in first) for (a, first), (b, second) in pairs}
