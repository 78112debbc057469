"""Fronts of loss against stored bytes, of several runs of `experiments.frontier`: a picture, or tables in Markdown.

    python -m experiments.fronts --cells=results/frontier/geglu_gutenberg/frontier.json

With --at and --narrow_bpb it says what the fronts predict for a larger file, from what a narrow model trained whole is
known to reach there.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.engine import cli
from experiments.report import fronts, trend
from freezejax.atomic import write_atomically
from freezejax.errors import UserError


def main(cells: Sequence[str], picture: str | None, at: int | None = None, narrow_bpb: float | None = None) -> None:
    """Prints sentences and tables of the frontier.json files `cells`, or writes the picture, or what they predict."""
    if (at is None) != (narrow_bpb is None):
        raise UserError("--at and --narrow_bpb belong together: give both, or neither")
    if not cells:
        raise UserError("--cells is missing: give the frontier.json files of finished studies")
    found = []
    for name in cells:
        if not Path(name).is_file():
            raise UserError(f"--cells={name}: no such file; give the frontier.json of a finished study")
        cell = json.loads(Path(name).read_text(encoding="utf-8"))
        if "budgets" not in cell:
            raise UserError(f"--cells={name}: not a frontier.json")
        found.append(cell)
    if at is not None and narrow_bpb is not None:
        print(trend.as_markdown(trend.lines(found, at, narrow_bpb)))
        return
    if not picture:
        print(fronts.as_markdown(found))
        return
    path = Path(picture)
    with cli.writing(f"--picture={path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, fronts.picture(found))


if __name__ == "__main__":
    flags.DEFINE_list("cells", [], "The frontier.json files, one per stack and text.")
    flags.DEFINE_string("picture", None, "Write the fronts to this SVG file; prints no table.")
    flags.DEFINE_integer("at", None, "Bytes of a file to predict bits per byte for.", lower_bound=1)
    flags.DEFINE_float("narrow_bpb", None, "Bits per byte that a narrow model, trained whole, reaches with --at bytes.")
    given = flags.FLAGS
    cli.run(lambda: main(given.cells, given.picture, given.at, given.narrow_bpb))
