"""What each matrix of a model costs when it is frozen alone: a map of blocks by types."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

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
    far = max(0.01, max(map(abs, costs.values())))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = axes.imshow(table, cmap="RdBu_r", norm=TwoSlopeNorm(0.0, -far, far), aspect="auto")
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_yticks(range(len(blocks)), [str(block) for block in blocks])
        axes.set_ylabel("block")
        axes.grid(visible=False)
        for y, row in enumerate(table):
            for x, cost in enumerate(row):
                axes.text(x, y, f"{cost:+.2f}", ha="center", va="center", fontsize=7)
        figure.colorbar(image, label=f"loss against everything trained, {unit}")

    told = ", ".join(f"block {block} {kind} {cost:+.2f} {unit}" for (block, kind), cost in sorted(costs.items()))
    return page.alone(plots.render("matrices", f"Cost of freezing one matrix: {told}", 1.0 + 0.3 * len(blocks), draw))
