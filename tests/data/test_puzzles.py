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
def test_what_is_asked_is_of_one_split_whatever_the_seed_and_the_examples(family, monkeypatch):
    asked = {"train": set(), "test": set()}

    def noted(name, drawn):
        split = original(name, drawn)
        asked[split].add((drawn.rule, drawn.query))
        return split

    original = base._split
    monkeypatch.setattr(base, "_split", noted)
    for seed in range(4):
        for split in asked:
            puzzles.draw(family, 40, seed=seed, split=split, examples=2 + seed % 2)
    assert not asked["train"] & asked["test"]
    assert 0.05 < len(asked["test"]) / len(asked["train"]) < 0.6


def test_counterpart_a_split_by_the_seed_alone_overlaps(monkeypatch):
    monkeypatch.setattr(base, "_split", lambda family, drawn: "test" if hash(drawn.examples[0]) % 5 == 0 else "train")
    splits = [{parts(p)[1] for p in puzzles.draw("numerals", 20, split=split)} for split in ("train", "test")]
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
    path.write_text('{"prompt": "1+1=", "answer": "2", "difficulty": 3}\n\n')
    assert puzzles.read_jsonl(path) == [puzzles.Puzzle("sums", "1+1=", "2")]


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
