"""The frontier's committed picture, page and prediction are what their commands make of its cells."""

import json
import re
from pathlib import Path

from experiments.report import fronts, sides, trend
from experiments.report.table import with_ci

ROOT = Path(__file__).parents[1]


def cell_of(name):
    return json.loads((ROOT / "results" / "frontier" / name / "frontier.json").read_text(encoding="utf-8"))


def test_the_readmes_picture_and_the_page_of_the_fronts_are_what_their_commands_print():
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"experiments.fronts --cells=(\S+) --picture=(\S+)\n", text)
    cells, path = [cell_of(Path(cell).parent.name) for cell in found[1].split(",")], found[2]
    assert f"--cells={found[1]}\n" in text
    assert f"]({path})" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / path).read_text(encoding="utf-8") == fronts.picture(cells)
    assert (ROOT / "results/frontier/fronts.md").read_text(encoding="utf-8") == fronts.as_markdown(cells) + "\n"


def test_who_wins_how_often_is_counted_from_the_cells():
    """On both pages, by the rule that an interval lies wholly on one side of zero, and no winner has a larger file."""
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    named = re.search(r"experiments.fronts --cells=(\S+)\n", text)[1].split(",")
    assert {Path(cell).parent.name for cell in named} == {
        p.parent.name for p in ROOT.glob("results/frontier/*/frontier.json")
    }
    budgets = [budget for cell in named for budget in cell_of(Path(cell).parent.name)["budgets"]]
    fields = ("effect", "effect_at_flops")
    found = {field: [sides.compared(at, field) for at in budgets] for field in fields}
    won = {field: [sum(one.winner == side for one in found[field]) for side in sides.SIDES] for field in fields}
    (maps, whole), (maps_too, whole_too), count = *won.values(), len(budgets)
    unjudged = sum(one.ahead is not None and one.winner is None for one in found["effect"])
    told = " ".join(text.split()), " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"of {count} comparisons random maps win {maps} and models that train whole {whole};" in told[0]
    assert f"{unjudged} has no verdict" in told[0]
    assert f"random maps win {maps_too} of {count}, models that train whole {whole_too}." in told[0]
    assert f"random maps win {maps} of {count} comparisons and models that train whole {whole};" in told[1]
    assert f"For the same FLOPs of training as well: {maps_too} and {whole_too} of {count}." in told[1]


def test_what_the_trend_predicts_is_what_its_command_prints():
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    cell, size, narrow = re.search(r"--cells=\S+/(\w+)/frontier.json --at=(\d+) --narrow_bpb=([\d.]+)\n", text).groups()
    lines = trend.lines([cell_of(cell)], int(size), float(narrow))
    for line in lines:
        predicted = with_ci(line["bpb"].mean, line["bpb"].ci95, 4)
        for page in (text, (ROOT / "docs/preflight.md").read_text(encoding="utf-8")):
            assert predicted in page
    assert len(lines) == 2
