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
    """A text of letters that stand for others, one for one.

    Level 1: one of eight letters, which stands for the one to three places on. From level 2 on letters stand for
    any others, and every letter of the query is in the examples: three to five of twelve, at level 3 two English words.
    """
    letters = string.ascii_lowercase[: (8, 12, 26)[level - 1]]
    if level == 1:
        by = rng.randint(1, 3)
        mapped = [*letters[by:], *letters[:by]]
    else:
        mapped = rng.sample(letters, len(letters))
    table = str.maketrans(letters, "".join(mapped))
    *shown, asked = [_text(rng, level, letters) for _ in range(examples + 1)]
    if asked in shown or not (level == 1 or set(asked) - {" "} <= set("".join(shown))):
        return None
    rule = "".join(mapped[letters.index(letter)] for letter in sorted(set(asked) - {" "}))
    return Drawn(rule, [(text.translate(table), text) for text in shown], asked.translate(table), asked)


def _text(rng: random.Random, level: int, letters: str) -> str:
    if level == 3:
        return " ".join(rng.sample(_WORDS, 2))
    return "".join(rng.choice(letters) for _ in range(1 if level == 1 else rng.randint(3, 5)))
