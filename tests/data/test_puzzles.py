"""Nine families: their answers follow from what is shown, their splits cannot overlap, their files come back."""

import json
import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezejax.data import puzzles
from freezejax.data.puzzles import base
from freezejax.errors import UserError

families = pytest.mark.parametrize("family", puzzles.FAMILIES)
levels = pytest.mark.parametrize("level", base.LEVELS)


def parts(puzzle):
    """Examples as pairs, and the query."""
    *shown, last = puzzle.prompt.split("\n")
    assert last.endswith(" -> ")
    return [tuple(line.split(" -> ")) for line in shown], last.removesuffix(" -> ")


@families
@levels
def test_puzzles_are_different_the_same_again_and_of_one_split_alone(family, level):
    train, test = (puzzles.draw(family, 60, seed=3, split=split, level=level) for split in ("train", "test"))
    assert len({puzzle.prompt for puzzle in train + test}) == 120
    assert puzzles.draw(family, 60, seed=3, level=level) == train
    assert puzzles.draw(family, 60, seed=4, level=level) != train
    for puzzle in train + test:
        shown, query = parts(puzzle)
        assert puzzle.family == family
        assert len(shown) == 4
        assert query not in dict(shown)
        assert puzzle.answer
        assert puzzles.answered(puzzle, puzzle.answer + "\nmore")
        assert not puzzles.answered(puzzle, puzzle.answer + "0")


@families
@levels
def test_what_is_asked_is_of_one_split_whatever_the_seed_and_the_examples(family, level, monkeypatch):
    """Nor is it, above level 1, an example of the train split, answer and all."""
    asked, told = {"train": set(), "test": set()}, set()

    def noted(name, drawn, level):
        split = original(name, drawn, level)
        asked[split].add((drawn.rule, drawn.query) if level > 1 else (*sorted(drawn.examples), drawn.query))
        if split == "train" and not base._tells(name, drawn, level):
            told.update(zip(drawn.rules, [question for question, _ in drawn.examples], strict=False))
        return split

    original = base._split
    monkeypatch.setattr(base, "_split", noted)
    for seed in range(4):
        for split in asked:
            puzzles.draw(family, 40, seed=seed, split=split, level=level, examples=2 + seed % 2)
    assert not asked["train"] & asked["test"]
    assert not told & asked["test"] or level == 1
    assert bool(told) == (family not in ("encryption", "cryptarithm_deduce", "cryptarithm_guess"))
    assert 0.05 < len(asked["test"]) / len(asked["train"]) < 0.6


@levels
def test_bits_that_two_rules_turn_alike_are_in_one_split(level):
    """Not and "xor 255" are one rule, and so are shifted and rotated where nothing falls out."""
    pairs = lambda found: {(parts(p)[1], p.answer) for p in found}  # noqa: E731
    prompts = lambda found: {(*sorted(parts(p)[0]), parts(p)[1]) for p in found}  # noqa: E731
    train, test = (puzzles.draw("bits", 150, split=split, level=level) for split in ("train", "test"))
    assert not prompts(train) & prompts(test)
    assert not pairs(train) & pairs(test) or level == 1


def test_counterpart_a_split_by_the_seed_alone_overlaps(monkeypatch):
    monkeypatch.setattr(
        base, "_split", lambda family, drawn, level: "test" if hash(drawn.examples[0]) % 5 == 0 else "train"
    )
    drawn = [puzzles.draw("numerals", 40, split=split, level=2) for split in ("train", "test")]
    splits = [{parts(p)[1] for p in each} for each in drawn]
    assert splits[0] & splits[1]


@levels
def test_numbers_follow_from_the_examples(level):
    """A second way to the answer: the rate from the largest example."""
    number = lambda text: Decimal(re.search(r"[\d.]+", text)[0])  # noqa: E731
    for family, power in (("gravity", 2), ("units", 1)):
        for puzzle in puzzles.draw(family, 40, level=level, split="test"):
            shown, query = parts(puzzle)
            x, y = max((number(x), number(y)) for x, y in shown)
            wanted = y / x**power * number(query) ** power
            assert abs(number(puzzle.answer) - wanted) <= Decimal("0.15") * (1 if level > 1 else 0)


def test_numerals_are_read_back():
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    for puzzle in puzzles.draw("numerals", 200, level=3):
        found = [values[letter] for letter in puzzle.answer]
        number = sum(-v if v < w else v for v, w in zip(found, [*found[1:], 0], strict=True))
        assert number == int(parts(puzzle)[1])


@levels
def test_a_cipher_is_one_for_one_and_its_examples_tell_all(level):
    for puzzle in puzzles.draw("encryption", 60, level=level):
        shown, query = parts(puzzle)
        pairs = {pair for given, plain in shown for pair in zip(given, plain, strict=True)}
        table = dict(pairs)
        assert len(pairs) == len(table) == len(set(table.values()))
        if level == 1:  # one pair tells the others
            (by,) = {(ord(plain) - ord(given)) % 8 for given, plain in pairs}
            table = {chr(97 + i): chr(97 + (i + by) % 8) for i in range(8)}
        assert "".join(table[letter] for letter in query) == puzzle.answer


def test_what_is_to_deduce_is_shown_and_what_is_to_guess_is_not():
    sign = lambda text: re.sub(r"\d", "", text)  # noqa: E731
    for family, shown_too in (("equation_deduce", True), ("equation_guess", False)):
        for puzzle in puzzles.draw(family, 60, level=2):
            shown, query = parts(puzzle)
            assert (sign(query) in {sign(given) for given, _ in shown}) == shown_too
    for family, known in (("cryptarithm_deduce", True), ("cryptarithm_guess", False)):
        for puzzle in puzzles.draw(family, 60, level=2):
            shown, query = parts(puzzle)
            symbols = {symbol for pair in shown for side in pair for symbol in side}
            assert set(query) <= symbols
            assert (set(puzzle.answer) <= symbols) == known


def test_more_puzzles_than_there_are_and_words_that_are_none_are_told():
    with pytest.raises(UserError, match="there is no puzzle family 'numeral'; nearest: numerals"):
        puzzles.draw("numeral", 1)
    with pytest.raises(UserError, match=r"units has no 100000 different ones of level 1; it has \d+"):
        puzzles.draw("units", 100_000, examples=1)
    for wrong in ({"split": "val"}, {"level": 4}, {"examples": 0}):
        with pytest.raises(UserError, match="expected 'train' or 'test', 1 to 3, at least 0 and 1"):
            puzzles.draw("units", 1, **wrong)


def test_prompts_that_are_taken_do_not_come_up():
    first = puzzles.draw("units", 20)
    again = puzzles.draw("units", 20, but={puzzle.prompt for puzzle in first})
    assert not {puzzle.prompt for puzzle in first} & {puzzle.prompt for puzzle in again}


@settings(max_examples=20)
@given(st.sampled_from(sorted(puzzles.FAMILIES)), st.integers(0, 99))
def test_a_file_holds_what_was_written(tmp_path_factory, family, seed):
    path = tmp_path_factory.mktemp("puzzles") / "own.jsonl"
    wanted = puzzles.draw(family, 5, seed=seed)
    puzzles.write_jsonl(path, wanted)
    assert puzzles.read_jsonl(path) == wanted


def test_a_file_of_others_is_a_family_of_its_own(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": " 2", "difficulty": 3}\r\n\n{"prompt": "a\u2028b", "answer": "c"}')
    (first, second) = puzzles.read_jsonl(path)
    assert first == puzzles.Puzzle("sums", "1+1=", " 2")
    assert second.prompt == "a\u2028b"  # a line's end to Python, none to JSON
    assert puzzles.answered(first, " 2\n1+2=")  # as it was learned
    assert puzzles.answered(first, "2")
    assert not puzzles.answered(first, " 22")


BAD = {
    "not json": ("{", "line 1: not JSON"),
    "nested too deeply": ("[" * 100_000, "line 1: not JSON"),
    "a list": ("[1]", "line 1: expected an object"),
    "no answer": ('{"prompt": "a"}', "line 1: answer is None"),
    "a number": ('{"prompt": "a", "answer": 2}', "line 1: answer is 2"),
    "two lines": (json.dumps({"prompt": "a", "answer": "b\nc"}), "an answer ends with its line"),
    "empty": ("\n\n", "no puzzle in it"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_told_in_one_line(case, tmp_path):
    text, message = BAD[case]
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        puzzles.read_jsonl(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        puzzles.read_jsonl(tmp_path / "none.jsonl")
