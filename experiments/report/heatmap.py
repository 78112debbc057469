"""What each matrix of a model costs when it is frozen alone: a map of blocks by types."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from experiments.report import page, plots

_NAME = re.compile(r"L(\d+)_(.*)")


def picture(rows: Sequence[Mapping[str, Any]], unit: str = "%") -> str:
    """An SVG that stands alone, of the rows that are named as matrices (`L4_attn_c_proj`); "" where there are none."""
    costs = {
        (int(match[1]), match[2]): row["delta_pct"]
        for row in rows
        if (match := _NAME.fullmatch(row["name"])) and row["delta_pct"] is not None
    }
    if not costs:
        return ""
    blocks = sorted({block for block, _ in costs})
    kinds = list(dict.fromkeys(kind for _, kind in costs))
    table = [[costs.get((block, kind), float("nan")) for kind in kinds] for block in blocks]
    told = ", ".join(f"block {block} {kind} {cost:+.2f} {unit}" for (block, kind), cost in sorted(costs.items()))
    cells = Cells("matrices", f"Cost of freezing one matrix: {told}", f"loss against everything trained, {unit}")
    return cells.draw(np.array(table), [str(block) for block in blocks], kinds, rows_are="block")


class Cells(NamedTuple):
    """How a table of changes is drawn: what is better is blue, what is worse red."""

    name: str
    alt: str
    label: str  # of the colours
    digits: int = 2
    better: int = -1  # 1: more is better
    least: float = 0.01  # the change of the deepest colour is this at least

    def draw(
        self, table: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, rows_are: str = "", slant: int = 0
    ) -> str:
        """An SVG that stands alone, of `table`, [rows, columns]; a cell of NaN stays empty."""
        far = max(self.least, float(np.nanmax(np.abs(table))))

        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            colors = "RdBu" if self.better > 0 else "RdBu_r"
            image = axes.imshow(table, cmap=colors, norm=TwoSlopeNorm(0.0, -far, far), aspect="auto")
            axes.set_xticks(range(len(columns)), columns, rotation=slant, ha="right" if slant else "center")
            axes.set_yticks(range(len(rows)), rows)
            axes.set_ylabel(rows_are)
            axes.grid(visible=False)
            for y, x in np.argwhere(np.isfinite(table)):
                axes.text(x, y, f"{table[y, x]:+.{self.digits}f}", ha="center", va="center", fontsize=7)
            figure.colorbar(image, label=self.label)

        return page.alone(plots.render(self.name, self.alt, 1.0 + 0.3 * len(rows), draw))
