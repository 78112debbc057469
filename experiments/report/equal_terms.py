"""Rows on equal terms: the loss elsewhere where all have moved as far, or have lowered the target's loss as far.

So "safe because of the module" is told from "safe because it hardly moved". A row's weights are followed on the
straight line from the base to where they ended, base + share x (end - base): runs measure their losses at three shares
of it. On this line a distance is exact, and no row is read where it has not been.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from experiments.report.forgetting import SHARES, Found, Items, Row, before_and_after
from experiments.report.statistics import Interval

_FINE = np.linspace(0.0, 1.0, 201)  # where a loss is looked for


def add(found: dict[str, Any], workdir: Path, rows: Sequence[Row], items: Items, singles: Sequence[str]) -> None:
    """Adds to rows of `forgetting.measure` how far they `moved`, their changes of `loss`, and those on `equal` terms.

    The places where rows are compared are those of the `singles`: the shortest way of them, and the least that one of
    them lowers the target's loss, of those that lower it beyond the noise.
    """
    base, *others = rows
    lines = {row["name"]: _Line(*before_and_after(workdir, base, row), items) for row in others}
    setting = [line for name, line in lines.items() if name in singles and line.moved]
    lower = [line.target(1.0) for line in setting if line.change(1.0, "target").high < 0]
    for row in found["rows"]:
        line = lines[row["name"]]
        row["moved"] = line.moved
        row["loss"] = {where: line.change(1.0, where)._asdict() for where in ("target", "elsewhere")}
        distance = min((each.moved for each in setting), default=np.inf)
        places = {
            "moved": distance / line.moved if line.moved >= distance else None,
            "target": line.reaches(max(lower)) if lower else None,
        }
        row["equal"] = {
            term: None if share is None else {"share": share, **line.change(share, "elsewhere")._asdict()}
            for term, share in places.items()
        }


class _Line:
    """Losses of a row's items on the way from the base, in every seed."""

    def __init__(self, base: Sequence[Found], ends: Sequence[Found], items: Items):
        self.items, self.moved = items, float(np.mean([end.moved for end in ends]))
        points_SxAxN = [[then.losses_AxN[0], *now.losses_AxN[::-1]] for then, now in zip(base, ends, strict=True)]
        # Cubic and monotone between the points: near an optimum a loss rises with the square of the way.
        self.losses_SxN = PchipInterpolator((0.0, *SHARES[::-1]), np.array(points_SxAxN), axis=1)

    def change(self, share: float, where: str) -> Interval:
        """Change of the loss on the target or elsewhere."""
        inside = self.items.in_target
        changes_SxN = self.losses_SxN(share) - self.losses_SxN(0.0)
        return self.items.changed(changes_SxN, inside if where == "target" else ~inside, 0.0)

    def target(self, share: float) -> float:
        """Loss of the target."""
        return float(self.losses_SxN(share)[:, self.items.in_target].mean())

    def reaches(self, loss: float) -> float | None:
        """The first share of the way at which the target's loss is so low."""
        return next((float(share) for share in _FINE if self.target(share) <= loss), None)
