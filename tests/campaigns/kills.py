"""SIGKILL at any moment, and the same command again: the same bits in the end, no step missing or doubled.

    uv run --extra dev python -m tests.campaigns.kills --kills=100 --seed=0

Every study runs once without a kill; then as often as it takes with kills, the moments of which are drawn from (seed,
study): any moment at all, or one of those that are too short to be hit by chance. Then one study whose mesh changes
with every kill. Exit code 1 where anything differs.
"""

import argparse
import collections
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from freezejax.atomic import SCRATCH
from tests.campaigns.configs import STUDIES, Case
from tests.experiments.forks import ROOT, Ended, Forks

SECONDS = 600.0  # that a command may take
_TOLERANCE = 1e-3  # of losses, relative, between meshes


class Mesh(NamedTuple):
    """Devices that a command sees, and the fields of `config.train.mesh`."""

    devices: int
    sizes: dict[str, int]


MESHES = (Mesh(1, {}), Mesh(8, {"data": 8}), Mesh(8, {"data": 2, "fsdp": 2, "tensor": 2}))


class Moment(NamedTuple):
    """When to kill: once `comes` of the workdir, and the seconds since the start over those of a whole run."""

    name: str
    comes: Callable[[Path, float], bool]


def moments(rng: np.random.Generator) -> Iterator[Moment]:
    """Moments without end: half of them by the clock, half by what happens."""
    while True:
        share = float(rng.uniform(0.0, 0.9))
        yield Moment("any time", lambda _, elapsed, share=share: elapsed > share)
        for name in rng.permutation(list(_EVENTS)):
            after = int(rng.integers(1, 4))
            yield Moment(name, _nth(_EVENTS[name], after))


def _nth(happens: Callable[[Path], Any], after: int) -> Callable[[Path, float], bool]:
    """Whether something was seen to change so often."""
    seen: list[Any] = []

    def comes(workdir: Path, _: float) -> bool:
        found = happens(workdir)
        if found and (not seen or found != seen[-1]):
            seen.append(found)
        return len(seen) >= after

    return comes


def _names(workdir: Path, pattern: str) -> list[str]:
    return sorted(map(str, workdir.glob(pattern)))


# What is looked at: something happens when it changes.
_EVENTS: dict[str, Callable[[Path], Any]] = {
    "in a save": lambda workdir: _names(workdir, "**/checkpoints/*tmp*"),
    "after a save": lambda workdir: _names(workdir, "**/checkpoints/[0-9]*"),
    "at the end of a training": lambda workdir: _names(workdir, "**/params*"),
    "in packing": lambda workdir: _names(workdir, "**/*.fz*") + _names(workdir, "**/.*.fz*"),
    "between two runs": lambda workdir: _names(workdir, "**/result.json"),
    "while a file is written": lambda workdir: [name for name in _names(workdir, "**/.*") if SCRATCH.search(name)],
    "at a phase": lambda workdir: [path.read_bytes().count(b'"rules"') for path in workdir.glob("**/metrics.jsonl")],
}


class Left(NamedTuple):
    """What a finished study says: of each run the SHA-256 of its weights, and its records."""

    weights: dict[str, str]
    records: dict[str, list[dict[str, Any]]]


def left(workdir: Path) -> Left:
    """Reads it."""
    results = {str(p.parent.relative_to(workdir)): json.loads(p.read_text()) for p in workdir.glob("**/result.json")}
    records = {
        run: [_timeless(json.loads(line)) for line in (workdir / run / "metrics.jsonl").read_text().splitlines()]
        for run in results
    }
    return Left({run: result["params_sha256"] for run, result in results.items()}, records)


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "tokens_per_second"}


def same_bits(one: Left, two: Left) -> str:
    """The first difference; "" if there is none."""
    if one.weights.keys() != two.weights.keys():
        return f"runs {sorted(one.weights.keys() ^ two.weights.keys())} are in one alone"
    for run in one.weights:
        if one.records[run] != two.records[run]:
            steps = [[record["step"] for record in found.records[run]] for found in (one, two)]
            return f"{run}: other records, of steps {steps[0]} and {steps[1]}"
        if one.weights[run] != two.weights[run]:
            return f"{run}: other weights"
    return ""


def same_figures(one: Left, two: Left) -> str:
    """As `same_bits`, for runs on other meshes: the same steps, and losses within a tolerance."""
    for run, records in one.records.items():
        for ours, theirs in zip(records, two.records[run], strict=True):
            if ours["step"] != theirs["step"]:
                return f"{run}: a record of step {theirs['step']}, not {ours['step']}"
            for name, value in ours.items():
                if isinstance(value, float) and not np.isclose(value, theirs[name], rtol=_TOLERANCE):
                    return f"{run}, step {ours['step']}: {name}={theirs[name]}, not {value}"
    return ""


class Campaign:
    """Kills in one study after the other."""

    def __init__(self, forks: Forks, folder: Path, seed: int = 0):
        self.forks, self.folder, self.seed = forks, folder, seed
        self.kills: collections.Counter[tuple[str, str]] = collections.Counter()

    def study(self, name: str, kills: int, meshes: Sequence[Mesh] = MESHES[:1]) -> str:
        """So many kills in a study, on one mesh after the other; what is wrong at its end, or ""."""
        command = Case(name, "seeds", "2") if len(meshes) == 1 else Case(name, "train.batch_size", "8")
        title = name if len(meshes) == 1 else f"{name} on {len(meshes)} meshes"
        whole, workdir = self.folder / f"{title}, whole", self.folder / title
        start = time.monotonic()
        if error := self._to_its_end(command, whole):
            return f"without a kill: {error}"
        seconds = time.monotonic() - start
        coming = moments(np.random.default_rng([self.seed, *title.encode()]))
        compare, killed = same_bits if len(meshes) == 1 else same_figures, 0
        for moment, mesh in itertools.islice(zip(coming, itertools.cycle(meshes), strict=False), 3 * kills):
            if killed == kills:
                break
            begun = time.monotonic()
            ended = self._start(
                command,
                workdir,
                lambda m=moment, begun=begun: m.comes(workdir, (time.monotonic() - begun) / seconds),
                mesh,
            )
            if ended.code == 0:  # before the moment came: from the start again
                if error := compare(left(whole), left(workdir)):
                    return error
                shutil.rmtree(workdir)
                continue
            if ended.code != -signal.SIGKILL:
                return f"killed {moment.name}, then exit code {ended.code}: {ended.err[-500:]}"
            self.kills[title, moment.name] += 1
            killed += 1
        if error := self._to_its_end(command, workdir):
            return error
        return compare(left(whole), left(workdir))

    def _to_its_end(self, command: Case, workdir: Path) -> str:
        ended = self._start(command, workdir, lambda: False, MESHES[0])
        if ended.code != 0:
            return f"exit code {ended.code}: {ended.err[-500:]}"
        scratch = [str(path) for path in workdir.rglob(".*") if SCRATCH.search(path.name)]
        return f"left over: {scratch[:3]}" if scratch else ""

    def _start(self, command: Case, workdir: Path, comes: Callable[[], bool], mesh: Mesh) -> Ended:
        fields = [f"--config.train.mesh.{axis}={size}" for axis, size in mesh.sizes.items()]
        return self.forks.run(
            f"experiments.{command.study}",
            *(*command.arguments(workdir), *fields),
            stop_when=comes,
            limit=SECONDS,
            environment={"XLA_FLAGS": f"--xla_force_host_platform_device_count={mesh.devices}"},
        )


def main() -> int:
    """Runs a campaign; a line for each study as it ends, then how often was killed when."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="at least so many over all studies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--studies", default=",".join(STUDIES))
    given = parser.parse_args()
    names = given.studies.split(",")
    each, wrong = -(-given.kills // (len(names) + 1)), 0
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        environment.setdefault("FREEZEJAX_CACHE", f"{folder}/cache")
        with Forks(environment, Path(folder)) as forks:
            ran = Campaign(forks, Path(folder), given.seed)
            for name, meshes in [*((name, MESHES[:1]) for name in names), (names[0], MESHES)]:
                error = ran.study(name, each, meshes)
                wrong += bool(error)
                print(f"{name}, {len(meshes)} mesh(es): {error or 'the same in the end'}", flush=True)
    for (title, moment), count in sorted(ran.kills.items()):
        print(f"{title:32}{moment:32}{count:4}")
    print(f"{ran.kills.total()} kills, seed {given.seed}: {wrong} studies ended otherwise")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
