"""How many UTF-8 bytes each target token stands for, and bits per byte.

The rule is the one of the public Parameter Golf evaluation (openai/parameter-golf, `train_gpt.py`), so a
figure computed here may stand beside a figure of its leaderboard. Sums are kept in float64 and int64.
"""

import math
from typing import NamedTuple

import numpy as np

from freezejax.errors import UserError


class ByteTable(NamedTuple):
    """What each of the V tokens of a vocabulary contributes to the byte count.

    Attributes:
        base_V: int64, UTF-8 bytes of the token without its leading space; 0 for a control token.
        leading_space_V: bool, whether the token starts with a space.
        boundary_V: bool, whether the token is control, unknown or unused: no text, and a following
            token's leading space is not text either.
    """

    base_V: np.ndarray
    leading_space_V: np.ndarray
    boundary_V: np.ndarray


def byte_counts(table: ByteTable, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The bytes of every target: `base[target] + (leading_space[target] & ~boundary[input])`.

    Args:
        table: of the tokenizer that made the tokens.
        inputs: int, any shape; the token before each target.
        targets: int, the shape of `inputs`, which the int64 counts have too.

    >>> table = ByteTable(np.array([0, 5]), np.array([False, True]), np.array([True, False]))
    >>> byte_counts(table, np.array([0, 1]), np.array([1, 1]))  # token 0 is a document start
    array([5, 6])
    """
    inputs, targets = np.asarray(inputs), np.asarray(targets)
    space = table.leading_space_V[targets] & ~table.boundary_V[inputs]
    return table.base_V[targets].astype(np.int64) + space.astype(np.int64)


def bits_per_byte(sum_nats: float, n_bytes: int) -> float:
    """A loss in nats, summed over targets, in bits per byte: `n_bytes` is the sum of their `byte_counts`.

    Raises:
        UserError: there are no bytes.

    >>> bits_per_byte(math.log(2.0) * 8, 4)
    2.0
    """
    if n_bytes <= 0:
        raise UserError(f"n_bytes={n_bytes}: bits per byte needs at least one byte of text")
    return float(sum_nats) / math.log(2.0) / int(n_bytes)
