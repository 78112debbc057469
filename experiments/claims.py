"""Every figure of the papers that a study has judged, ours beside it: one table of several summaries, as Markdown.

python -m experiments.claims --summaries=results/progressive/gutenberg/summary.json
"""

import collections
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.engine import cli
from experiments.report.claimed import Claim
from experiments.report.table import DASH, Column, markdown, with_ci
from freezejax.errors import UserError

COLUMNS = [
    Column("source", lambda claim: claim.source, kind="words"),
    Column("claims", lambda claim: claim.claim, kind="words"),
    Column("we measured", lambda claim: claim.ours),
    Column("verdict", lambda claim: claim.verdict, kind="words"),
    Column("of", lambda claim: claim.measured, kind="words"),
]


def claims_of(summary: Mapping[str, Any]) -> Iterator[Claim]:
    """The judged rows and contrasts of a study; a contrast that says the same as a row stands once."""
    if "items" in summary:
        yield from _of_parts(summary)
        return
    if "claims" in summary:
        yield from (Claim(**claim) for claim in summary["claims"])
        return
    study, text = summary["experiment"], summary["data"]["source"]
    baseline, seen = summary["rows"][0]["name"] if summary["rows"] else "", set()
    for item in (item for item in [*summary["rows"], *summary["contrasts"]] if "paper" in item):
        name, reference = item.get("name") or item["variant"], item.get("reference", baseline)
        reference = item.get("judged", {}).get("reference", reference)
        effect = item.get("judged", item)
        pct = effect["delta_pct"] if "delta_pct" in effect else effect["effect_pct"]
        ci95 = effect["delta_pct_ci95"] if "delta_pct" in effect else effect["effect_pct_ci95"]
        if (name, reference) not in seen:
            seen.add((name, reference))
            paper, verdict = item["paper"], item.get("verdict", DASH)
            measured = f"{name} against {reference} ({study}, {text})"
            yield Claim(paper["source"], paper["claim"], with_ci(pct, ci95, 1, " %"), verdict, measured)


def _of_parts(found: Mapping[str, Any]) -> Iterator[Claim]:
    """Of the forgetting.json of `freeze_except`: changes in percentage points, over all families or of the target."""
    for row in found["rows"]:
        for claim in row["claims"]:
            change = row["change" if claim["what"] == "overall" else "gain"]
            told = f"{row['name']} alone, {claim['what']}: {claim['points']:+.1f} points ({claim['over']})"
            ours = with_ci(change["mean"], change["ci95"], 1, " points")
            measured = f"{row['name']} against base (freeze_except, {found['items']:,} puzzles)"
            yield Claim(claim["source"], told, ours, claim["verdict"], measured)


def as_markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    """How many of each verdict, then all claims by their source."""
    found = sorted((claim for summary in summaries for claim in claims_of(summary)), key=lambda claim: claim.source)
    counts = collections.Counter(claim.verdict for claim in found)
    told = ", ".join(
        f"{count} {'not judged' if verdict == DASH else verdict}" for verdict, count in sorted(counts.items())
    )
    return f"{len(found)} figures: {told}.\n\n{markdown(COLUMNS, found)}"


def main(paths: Sequence[str]) -> None:
    """Prints the table."""
    if not paths:
        raise UserError("--summaries is missing: give the summary.json files of finished studies, comma separated")
    found = []
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"--summaries={path}: no such file; give the summary.json of a study")
        found.append(json.loads(Path(path).read_text(encoding="utf-8")))
        if not {"contrasts", "items", "claims"} & found[-1].keys():
            raise UserError(
                f"--summaries={path}: not the summary.json of a study, nor a forgetting.json or claims.json"
            )
    print(as_markdown(found))


if __name__ == "__main__":
    flags.DEFINE_list(
        "summaries",
        [],
        "The summary.json and claims.json of finished studies, and the forgetting.json of freeze_except.",
    )
    cli.run(lambda: main(flags.FLAGS.summaries))
