"""Nine families of puzzles in which a rule is to be found from examples; see `draw`."""

from freezejax.data.puzzles.base import FAMILIES, Puzzle, answered, draw
from freezejax.data.puzzles.bits import bits
from freezejax.data.puzzles.ciphers import encryption
from freezejax.data.puzzles.equations import cryptarithm_deduce, cryptarithm_guess, equation_deduce, equation_guess
from freezejax.data.puzzles.files import read_jsonl, write_jsonl
from freezejax.data.puzzles.numbers import gravity, numerals, units

__all__ = ["FAMILIES", "Puzzle", "answered", "draw", "read_jsonl", "write_jsonl"]

# A new family is a function and a line here.
FAMILIES.update(
    numerals=numerals,
    gravity=gravity,
    units=units,
    encryption=encryption,
    bits=bits,
    equation_deduce=equation_deduce,
    equation_guess=equation_guess,
    cryptarithm_deduce=cryptarithm_deduce,
    cryptarithm_guess=cryptarithm_guess,
)
