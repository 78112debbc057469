"""Puzzles of bits: one rule of shifts, rotations and gates turns each number into another."""

import functools
import random

import numpy as np

from freezejax.data.puzzles.base import Drawn, distinct

_GATES = (0b00001111, 0b01010101, 0b00110011, 0b11110000)  # of level 3; level 2 has all constants


def bits(rng: random.Random, level: int, examples: int) -> Drawn | None:
    """A number of bits under a rule; whatever rule of the level the examples allow, the answer is the same.

    Level 1: 4 bits under one operation: not, reversed, shifted or rotated by one or two. Level 2: 8 bits, and gates
    with a constant. Level 3: two operations, one after the other.
    """
    width = 4 if level == 1 else 8
    allowed = _rules(level, width)
    rule, (*shown, asked) = rng.choice(allowed), distinct(rng, range(2**width), examples + 1)
    for x in shown:
        allowed = allowed[allowed[:, x] == rule[x]]
    if len(set(allowed[:, asked].tolist())) > 1:
        return None
    text = lambda number: f"{number:0{width}b}"  # noqa: E731
    told, answer = [(text(x), text(rule[x])) for x in shown], text(rule[asked])
    # Different rules may agree: what a number becomes is held out, whatever makes it that.
    return Drawn(answer, told, text(asked), answer, [y for _, y in told])


@functools.cache
def _rules(level: int, width: int) -> np.ndarray:
    """What every rule makes of every number, uint8 [rules, numbers]."""
    full = 2**width - 1
    numbers_N = np.arange(full + 1)
    rules = [numbers_N ^ full, np.array([int(f"{x:0{width}b}"[::-1], 2) for x in numbers_N])]
    for by in range(1, 3 if level == 1 else width):
        left, right = numbers_N << by & full, numbers_N >> by
        rules += [left, right, left | numbers_N >> (width - by)]
    for constant in {1: (), 2: range(1, full + 1), 3: _GATES}[level]:
        rules += [numbers_N ^ constant, numbers_N & constant, numbers_N | constant]
    found_RxN = np.array(rules, np.uint8)
    # At level 3 each after each.
    return found_RxN if level < 3 else found_RxN[:, found_RxN].reshape(-1, full + 1)
