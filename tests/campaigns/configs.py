"""Wrong configs: a command with one field changed is refused in one line and leaves nothing, or runs to its end.

    uv run --extra dev python -m tests.campaigns.configs --configs=1000 --seed=0

Config number n is drawn from (seed, n) alone: `--first=n --configs=1` makes it again. Exit code 1 where a command ended
in anything else: a traceback, several lines, an exit code of its own, a folder left behind by what was refused, more
than a few minutes or GiB. What is accepted may run for ever (a billion steps); it is then stopped.
"""

import argparse
import collections
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from tests.experiments.forks import ROOT, Ended, Forks

# A study, and the variants of it that are run.
STUDIES = {
    "progressive": "progressive_small",
    "selective": "selective_small",
    "adapters": "lora_r1",
    "correction": "linear_r32",
    "distillation": "student_distilled",
    "ensemble": "two_halves",
    "frontier": "",
    "pretrain": "",
    "amplitude": "nothing",
    "crystallization": "rank_1_L0_attn_c_proj",
    "redundancy": "L0_attn_c_proj",
    "adaptive": "scratch_fixed_top",
    "freeze_except": "out_proj",
    "domains": "q_proj",
}
# What makes a command short, where its config has the field.
_SHORT: dict[str, Any] = {
    **{"train.steps": 12, "train.batch_size": 2, "train.seq_len": 32, "train.eval_every": 6, "train.log_every": 6},
    **{"train.checkpoint_every": 6, "tune.steps": 2, "tune.batch_size": 2, "data.val_sequences": 16},
    **{"data.eval_batch_size": 8, "base.train.steps": 4, "base.train.batch_size": 2, "base.train.seq_len": 32},
    **{"base.train.eval_every": 0, "base.train.checkpoint_every": 0, "base.data.val_sequences": 8},
    **{"puzzles.train": 20, "puzzles.test": 2, "puzzles.tune": 20},
}
_TEXTS = (
    "",
    " ",
    "x",
    "-",
    ",",
    "a,,b",
    "(",
    "(a+)+$",
    ".*",
    "é☃",
    "..",
    "/nowhere/at/all",
    "%s%n{}",
    "None",
    "9" * 99,
)
_NUMBERS = ("0", "-1", "1", "3", "1.5", "nan", "inf", "-inf", "1e308", "-1e308", "1e-320", "2147483648", str(2**63))
VALUES: dict[type, tuple[str, ...]] = {
    bool: ("maybe", "2", "", "None", "True", "False"),
    int: (*_NUMBERS, "", "x", "None"),
    float: (*_NUMBERS, "", "x", "None"),
    tuple: ("()", "(0,)", "(-1.0,)", "(float('nan'),)", "('x',)", "(1,", "7", "", "((1,),)", "(1e308, 1e308)"),
    str: (*_TEXTS, "x" * 5000, "\n", "a\tb"),
}
SECONDS, MEMORY = 300.0, 4 << 30  # that one command may take; the seconds are for a machine that does much else
REFUSED, RAN, STOPPED, VIOLATION = "refused", "ran", "stopped", "VIOLATION"


class Case(NamedTuple):
    """A command."""

    study: str
    field: str
    value: str

    def arguments(self, workdir: Path) -> list[str]:
        """Of the study, after its name."""
        known = fields_of(self.study)
        short = {name: value for name, value in _SHORT.items() if name in known}
        short |= {"variants": STUDIES[self.study]} if STUDIES[self.study] else {}
        given = {**short, self.field: self.value}
        config = f"--config=experiments/configs/{self.study}.py:tiny"
        return [config, f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in given.items())]


def fields_of(study: str) -> dict[str, type]:
    """Every field of the tiny config of a study, and its type."""
    config = importlib.import_module(f"experiments.configs.{study}").get_config("tiny")
    return {name: type(value) for name, value in flatten_dict(config.to_dict(), sep=".").items()}


def case(seed: int, number: int) -> Case:
    """Config number `number`."""
    rng = np.random.default_rng([seed, number])
    study = list(STUDIES)[number % len(STUDIES)]
    # Lists have no flag.
    fields = {name: kind for name, kind in fields_of(study).items() if kind in VALUES}
    field = list(fields)[rng.integers(len(fields))]
    values = VALUES[fields[field]]
    return Case(study, field, values[rng.integers(len(values))])


def judge(forks: Forks, chosen: Case, folder: Path) -> tuple[str, str]:
    """The outcome, and the reason if it is a violation."""
    workdir, until = folder / "run", time.monotonic() + SECONDS
    ended = forks.run(
        f"experiments.{chosen.study}", *chosen.arguments(workdir), stop_when=lambda: time.monotonic() > until
    )
    return outcome(ended, list(folder.iterdir()), list(workdir.glob("**/metrics.jsonl")))


def outcome(ended: Ended, left: list[Path], trained: list[Path]) -> tuple[str, str]:
    """What a command that ended so is, given the files that it left and those of a training that began."""
    told = ended.err.splitlines()
    if ended.peak_bytes > MEMORY:
        return VIOLATION, f"{ended.peak_bytes / 2**30:.1f} GiB of memory"
    if ended.code == 0:
        return RAN, ""
    if ended.code == -9:
        return (STOPPED, "") if trained else (VIOLATION, f"nothing trains after {SECONDS:.0f} s")
    if ended.code == 1 and len(told) == 1 and told[0].startswith("error: ") and trained:
        return STOPPED, ""  # a loss that is not finite: told when it comes
    if ended.code != 2 or len(told) != 1 or not told[0].startswith("error: ") or "Traceback" in ended.out:
        return VIOLATION, f"exit code {ended.code}: {told[-1] if told else ''}"
    if left:
        return VIOLATION, f"refused only after files were written: {told[0]}"
    return REFUSED, ""


def campaign(forks: Forks, chosen: Mapping[int, Case]) -> Iterator[tuple[int, Case, str, str]]:
    """Each case with its outcome, as it comes."""
    for number, one in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            yield number, one, *judge(forks, one, Path(folder))


def main() -> int:
    """Runs a campaign; a line for each violation, then a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first config")
    parser.add_argument("--every", action="store_true", help="print every case, not the violations alone")
    given = parser.parse_args()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        environment.setdefault("FREEZEJAX_CACHE", f"{folder}/cache")
        chosen = {n: case(given.seed, n) for n in range(given.first, given.first + given.configs)}
        with Forks(environment, Path(folder)) as forks:
            for number, one, found, reason in campaign(forks, chosen):
                counts[one.study, found] += 1
                if reason or given.every:
                    told = f"{one.study} --config.{one.field}={one.value[:60]!r} {reason[:300]}"
                    print(f"{found} {number}: {told}", flush=True)
    outcomes = (REFUSED, RAN, STOPPED, VIOLATION)
    print(f"{'study':16}" + "".join(f"{name:>12}" for name in outcomes))
    for study in (*STUDIES, "total"):
        row = [sum(n for (s, o), n in counts.items() if o == name and study in (s, "total")) for name in outcomes]
        print(f"{study:16}" + "".join(f"{count:12,}" for count in row))
    wrong = sum(n for (_, name), n in counts.items() if name == VIOLATION)
    print(f"{given.configs:,} configs, seed {given.seed}: {wrong} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
