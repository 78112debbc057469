"""Damaged files: each is refused in one line, or gives exactly what it says.

    uv run --extra dev python -m tests.campaigns.files --files=10000 --seed=0            # artifacts, shards, checksums
    uv run --extra dev python -m tests.campaigns.files --files=10000 --seed=0 --folders  # models of others, tokenizers

File number n is drawn from (seed, n) alone: `--first=n --files=1` makes it again. Exit code 1 where anything else
happened: another exception, more than a few seconds, more memory than a file may ask for, another content.
"""

import argparse
import collections
import contextlib
import functools
import json
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from freezejax.artifact import store
from tests.campaigns import folders
from tests.campaigns.judges import Judge, Subject, subjects

SECONDS, MEMORY = 120, 1 << 30  # that one file may take; the seconds are for a machine that does much else


class Hang(BaseException):
    """Not an `Exception`: nothing on the way may take it for something else."""


class Finding(NamedTuple):
    """A file that broke the law."""

    number: int
    kind: str
    reason: str


def campaign(
    chosen: list[Subject], files: int, seed: int, first: int = 0
) -> tuple[collections.Counter[tuple[str, str]], list[Finding]]:
    """Counts per (kind, outcome), and every violation."""
    kinds = [(subject, name) for subject in chosen for name in subject.kinds]
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    findings = []
    with _quick_builds():
        for number in range(first, first + files):
            subject, name = kinds[number % len(kinds)]
            rng, kind = np.random.default_rng([seed, number]), f"{subject.name}: {name}"
            one, two = (subject.originals[rng.integers(len(subject.originals))] for _ in range(2))
            content = subject.kinds[name](rng, one, two)
            outcome, reason = _outcome(subject.judge, content)
            counts[kind, outcome] += 1
            if reason:
                findings.append(Finding(number, kind, reason))
    return counts, findings


@contextlib.contextmanager
def _quick_builds() -> Iterator[None]:
    """Models of one config are built once: most files name one of few, and building takes most of the time."""
    build = store._build
    cached = functools.lru_cache(maxsize=64)(lambda text: build(json.loads(text)))
    store._build = lambda config: cached(json.dumps(config))
    try:
        yield
    finally:
        store._build = build


def _outcome(judge: Judge, content: bytes) -> tuple[str, str]:
    """The outcome, and the reason if it is a violation."""
    try:
        with _time_limit(SECONDS), _memory_limit(MEMORY):
            return judge(content), ""
    except Hang:
        return "VIOLATION", f"no end after {SECONDS} s"
    except AssertionError as error:
        return "VIOLATION", str(error)
    except Exception as error:
        return "VIOLATION", f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _memory_limit(more: int) -> Iterator[None]:
    """At most `more` bytes of address space above what the process has; on Linux alone."""
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(status.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--folders", action="store_true", help="files of other programs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chosen = (folders.subjects if arguments.folders else subjects)(Path(folder) / "files")
        counts, findings = campaign(chosen, arguments.files, arguments.seed, arguments.first)
    outcomes = sorted({outcome for _, outcome in counts})
    print(f"{'kind':32}" + "".join(f"{outcome:>14}" for outcome in outcomes))
    for kind in [*dict.fromkeys(kind for kind, _ in counts), "total"]:
        row = [sum(n for (k, o), n in counts.items() if o == outcome and kind in (k, "total")) for outcome in outcomes]
        print(f"{kind:32}" + "".join(f"{n:14,}" for n in row))
    for number, kind, reason in findings[:50]:
        print(f"VIOLATION file {number} ({kind}): {reason[:300]}")
    print(f"{sum(counts.values()):,} files, seed {arguments.seed}: {len(findings)} violations")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
