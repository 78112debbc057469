"""What a puzzle is, and how families of them are drawn into splits that cannot overlap."""

import random
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

from freezejax.errors import UserError
from freezejax.paths import check_known, stable_hash

LEVELS = (1, 2, 3)
TEST_SHARE = 5  # one in so many puzzles is of the test split
_TRIES = 3000  # draws in a row that give nothing new: then a family has no more


class Puzzle(NamedTuple):
    """Examples of a rule and a query, one a line; `answer` is what belongs after the prompt, without the line's end."""

    family: str
    prompt: str
    answer: str


class Drawn(NamedTuple):
    """What a family draws: a rule as text, which with the query decides the answer, and what is shown of it."""

    rule: str
    examples: Sequence[tuple[str, str]]
    query: str
    answer: str
    rules: Sequence[str] = ()  # of each example, for it might be a query elsewhere; none where that hardly happens


# Draws a puzzle of a level, 1 (small models) to 3 (about what the source has), with so many examples; None where what
# came up is no puzzle.
Family = Callable[[random.Random, int, int], Drawn | None]
FAMILIES: dict[str, Family] = {}


def draw(
    family: str,
    count: int,
    *,
    seed: int = 0,
    split: Literal["train", "test"] = "train",
    level: int = 1,
    examples: int = 4,
    but: Collection[str] = (),
) -> list[Puzzle]:
    """Different puzzles of a family, the same for the same arguments.

    What is asked, rule and query together, belongs to one split by its hash, whatever the seed: no puzzle of one is in
    the other, nor with other examples, and no example of the train split is a query of the test split. At level 1
    answers are small tables, to be known by heart; there only the whole puzzle, examples in any order, is held out.

    The families are described as rule induction from a few examples with exact answers, after the NVIDIA Nemotron
    Model Reasoning Challenge (2026); none is among the generators of `reasoning-gym`, whose puzzles of like names state
    their rule.

    Args:
      family: one of `FAMILIES`.
      count: how many.
      seed: of the draw.
      split: "train" or "test".
      level: how hard, 1 to 3.
      examples: shown before the query.
      but: prompts that must not come up.

    Raises:
      UserError: an unknown family or split, a level that is none, or more puzzles than the family has.

    >>> draw("numerals", 1, level=2, examples=2)[0].answer
    'CXCVII'
    """
    check_known(family, FAMILIES, f"there is no puzzle family {family!r}")
    if split not in ("train", "test") or level not in LEVELS or count < 0 or examples < 1:
        raise UserError(
            f"puzzles: {split=}, {level=}, {count=}, {examples=}: expected 'train' or 'test', 1 to 3, at least 0 and 1"
        )
    rng, found, seen, tries = random.Random(f"{family}/{seed}/{split}/{level}"), list[Puzzle](), set(but), 0
    while len(found) < count:
        drawn = FAMILIES[family](rng, level, examples)
        tries += 1
        if tries > _TRIES:
            raise UserError(f"puzzles: {family} has no {count} different ones of level {level}; it has {len(found)}")
        if (
            drawn is None
            or _split(family, drawn, level) != split
            or (split == "train" and _tells(family, drawn, level))
        ):
            continue
        lines = [f"{question} -> {answer}\n" for question, answer in drawn.examples]
        puzzle = Puzzle(family, "".join(lines) + f"{drawn.query} -> ", drawn.answer)
        if puzzle.prompt not in seen:
            seen.add(puzzle.prompt)
            found.append(puzzle)
            tries = 0
    return found


def answered(puzzle: Puzzle, text: str) -> bool:
    """Whether a text begins with the puzzle's answer as a whole line; spaces around either do not count.

    >>> answered(Puzzle("numerals", "4 -> ", "IV"), "IV\\n5"), answered(Puzzle("numerals", "4 -> ", "IV"), "IVI")
    (True, False)
    """
    return text.partition("\n")[0].strip() == puzzle.answer.strip()


def _split(family: str, drawn: Drawn, level: int) -> str:
    with_them = f", of {sorted(drawn.examples)}" if level == 1 else ""
    return _split_of(family, drawn.rule + with_them, drawn.query)


def _tells(family: str, drawn: Drawn, level: int) -> bool:
    """Whether an example is a query of the test split, with its answer."""
    known = zip(drawn.rules, drawn.examples, strict=True) if level > 1 and drawn.rules else ()
    return any(_split_of(family, rule, question) == "test" for rule, (question, _) in known)


def _split_of(family: str, rule: str, query: str) -> str:
    return "test" if stable_hash(f"{family}: {rule}: {query}") % TEST_SHARE == 0 else "train"


def distinct[T](rng: random.Random, values: Sequence[T], count: int) -> list[T]:
    """So many different values, or all that there are, in random order."""
    return rng.sample(values, min(count, len(values)))
