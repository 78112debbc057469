"""A study's figures as Markdown tables, for a README, and its picture of loss against stored bytes.

python -m experiments.markdown --summary=results/progressive/gutenberg/summary.json
python -m experiments.markdown --summary=results/selective/gutenberg/summary.json --picture=docs/images/tradeoff.svg \
    --variants=baseline,baseline_same_maps,selective_small
"""

import json
from pathlib import Path

from absl import flags

from experiments.engine import cli
from experiments.report.tables import as_markdown
from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.paths import nearest

_SUMMARY = flags.DEFINE_string("summary", None, "A summary.json.")
_PICTURE = flags.DEFINE_string("picture", None, "Write loss against stored bytes to this SVG file; prints no table.")
_VARIANTS = flags.DEFINE_list("variants", [], "Of --picture: the variants to show; default: all.")


def main() -> None:
    """Prints the table of rows and the table of contrasts, or writes the picture."""
    if not _SUMMARY.value or not Path(_SUMMARY.value).is_file():
        raise UserError(f"--summary={_SUMMARY.value}: no such file; give the summary.json of a study")
    found = json.loads(Path(_SUMMARY.value).read_text(encoding="utf-8"))
    if not _PICTURE.value:
        print(as_markdown(found))
        return
    from experiments.report import page  # matplotlib is slow to import

    names = [row["name"] for row in found["rows"]]
    for name in _VARIANTS.value:
        if name not in names:
            raise UserError(f"--variants={name}: no such variant; {nearest(name, names)}")
    path = Path(_PICTURE.value)
    with cli.writing(f"--picture={path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.picture(found, _VARIANTS.value or names))


if __name__ == "__main__":
    cli.run(main)
