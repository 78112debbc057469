"""A study's figures as Markdown tables, for a README.

python -m experiments.markdown --summary=results/progressive/gutenberg/summary.json
"""

import json
from pathlib import Path

from absl import flags

from experiments.engine import cli
from experiments.report.tables import as_markdown
from freezejax.errors import UserError

_SUMMARY = flags.DEFINE_string("summary", None, "A summary.json.")


def main() -> None:
    """Prints the table of rows and the table of contrasts."""
    if not _SUMMARY.value or not Path(_SUMMARY.value).is_file():
        raise UserError(f"--summary={_SUMMARY.value}: no such file; give the summary.json of a study")
    print(as_markdown(json.loads(Path(_SUMMARY.value).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    cli.run(main)
