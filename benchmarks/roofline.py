"""What a frozen weight costs per layer and pass on an H100: an estimate from data-sheet rates, nothing is measured."""

from collections.abc import Sequence
from typing import Any

HBM = 3.35e12  # bytes per second
BF16 = 989e12  # dense matmul, FLOP per second
INTEGER = 132 * 64 * 1.755e9  # 32-bit integer operations per second: multiprocessors x lanes x clock
NVLINK = 450e9  # bytes per second into one GPU
INFINIBAND = 50e9  # 400 Gb/s per GPU

_WORD_OPERATIONS = 75  # threefry2x32: 20 rounds of add, rotate, xor, and the key schedule
_UNPACK_OPERATIONS = 3  # shift, mask, place: per weight
_WEIGHTS_PER_WORD = {"rademacher": 32, "normal": 4, "normal_f32": 1}
# In bfloat16 a drawn map goes to memory as float32 levels, comes back, goes out as bfloat16 and comes back once more.
_DRAWN_BYTES = 4 + 4 + 2 + 2


def picoseconds() -> dict[str, float]:
    """Per weight and pass; the matmul, per weight and token.

    >>> round(picoseconds()["all-gather, NVLink"], 1)
    4.4
    """
    drawn = {
        f"draw {name}": 1e12 * (_WORD_OPERATIONS / each + _UNPACK_OPERATIONS) / INTEGER
        for name, each in _WEIGHTS_PER_WORD.items()
    }
    return {
        "matmul, per token": 1e12 * 2 / BF16,
        "read": 1e12 * 2 / HBM,
        "all-gather, NVLink": 1e12 * 2 / NVLINK,
        "all-gather, InfiniBand": 1e12 * 2 / INFINIBAND,
        **drawn,
        "write and read a drawn map": 1e12 * _DRAWN_BYTES / HBM,
    }


def estimate(counts: Sequence[int]) -> list[dict[str, Any]]:
    """Time of a bfloat16 layer relative to one whose weight is stored on every device; nothing overlaps.

    A pass takes `max(read, tokens x matmul)`, and before that: nothing where the weight is stored, its all-gather
    under FSDP, or drawing, writing and reading where it is a map (each device then draws the whole map).

    >>> round(estimate([16384])[0]["stored, FSDP over InfiniBand"], 2)
    2.21
    """
    cost = picoseconds()
    before = {
        "stored": 0.0,
        "stored, FSDP over NVLink": cost["all-gather, NVLink"],
        "stored, FSDP over InfiniBand": cost["all-gather, InfiniBand"],
        **{name: cost[f"draw {name}"] + cost["write and read a drawn map"] for name in ("rademacher", "normal")},
    }
    rows = []
    for tokens in counts:
        product = max(cost["read"], tokens * cost["matmul, per token"])
        rows.append({"tokens": tokens, **{name: (extra + product) / product for name, extra in before.items()}})
    return rows
