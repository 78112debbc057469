"""Fronts of loss against stored bytes, of several runs of `experiments.frontier`: a picture, or tables in Markdown.

python -m experiments.fronts --cells=results/frontier/geglu/frontier.json,results/frontier/golf/frontier.json
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.engine import cli
from experiments.report import fronts
from freezejax.data.atomic import write_atomically
from freezejax.errors import UserError


def main(cells: Sequence[str], picture: str | None) -> None:
    """Prints sentences and tables of the frontier.json files `cells`, or writes the picture."""
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
    cli.run(lambda: main(flags.FLAGS.cells, flags.FLAGS.picture))
