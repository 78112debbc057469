"""Puzzles of texts in which every letter stands for another."""

import random
import string

from freezejax.data.puzzles.base import Drawn

_WORDS = (  # noqa: SIM905 - sixty words in quotes are not easier to read
    "anchor basket candle dragon engine forest garden hammer island jacket kitten lantern marble needle orange "
    "pencil quartz rabbit saddle temple umbrella violin window yellow zebra bridge castle desert eagle flute grape "
    "honey iron jungle kettle lemon mirror noble ocean piano queen river stone tiger under village water turtle "
    "watches winter silver follow gentle hidden little purple sudden tender wooden "
).split()


def encryption(rng: random.Random, level: int, examples: int) -> Drawn | None:
    """A text of letters that stand for others, one for one; every letter of the query is in the examples.

    Level 1: two of four letters. Level 2: a word of three to five of twelve letters. Level 3: two English words.
    """
    letters = string.ascii_lowercase[: (4, 12, 26)[level - 1]]
    mapped = rng.sample(letters, len(letters))
    table = str.maketrans(letters, "".join(mapped))
    plain = [_text(rng, level, letters) for _ in range(examples + 1)]
    *shown, asked = plain
    if asked in shown or not set(asked) - {" "} <= set("".join(shown)):
        return None
    rule = "".join(mapped[letters.index(letter)] for letter in sorted(set(asked) - {" "}))
    return Drawn(rule, [(text.translate(table), text) for text in shown], asked.translate(table), asked)


def _text(rng: random.Random, level: int, letters: str) -> str:
    if level == 3:
        return " ".join(rng.sample(_WORDS, 2))
    return "".join(rng.choice(letters) for _ in range(2 if level == 1 else rng.randint(3, 5)))
