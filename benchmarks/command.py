"""What a benchmark is as a command: it measures and prints its tables, or writes the committed ones into the pages."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import pages
from experiments.engine import accelerators, cli
from freezejax.atomic import write_atomically

flags.disclaim_key_flags()  # they are those of the benchmark
Tables = Callable[[Mapping[str, Any]], dict[str, str]]


def run(results: Path, quoting: Sequence[Path], measure: Callable[[bool], Mapping[str, Any]], tables: Tables) -> None:
    """Runs a benchmark from the command line, with --json, --quick and --write_docs.

    Args:
      results: the committed JSON; its name is that of the benchmark's blocks in the pages.
      quoting: the pages.
      measure: whether at a toy size -> everything, as it stands in the JSON.
      tables: that -> Markdown by name.
    """
    flags.DEFINE_string("json", None, "Also write everything measured to this JSON file.")
    flags.DEFINE_bool("quick", False, "A toy size: whether it runs, not what it costs.")
    flags.DEFINE_bool("write_docs", False, "Only write the committed JSON's tables into the pages.")

    accelerators.define_flags()

    def main() -> None:
        if flags.FLAGS.write_docs:
            made = tables(json.loads(results.read_text(encoding="utf-8")))
            for page in quoting:
                write_atomically(page, pages.fill(page.read_text(encoding="utf-8"), results.stem, made))
            return
        accelerators.announce()
        found = measure(flags.FLAGS.quick)
        if flags.FLAGS.quick:
            print("A toy size: it shows that the benchmark runs; the times and verdicts mean nothing.")
        for name, text in tables(found).items():
            print(f"\n{name}\n\n{text}")
        if flags.FLAGS.json:
            write_atomically(Path(flags.FLAGS.json), json.dumps(found, indent=1) + "\n")

    cli.run(main)
