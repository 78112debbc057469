"""Compiles every phase of a study for a machine that is not attached: whether it fits, what is sent, what it costs.

    python -m experiments.preflight --config=experiments/configs/progressive.py:h100x8 --topology=h100:1x1x8

The real H100 and TPU compilers run on a CPU: `uv pip install '.[preflight]'`. Nothing is trained and nothing read but
the tokenizer; --config.model.vocab_size=N saves that too. Exit code 0 if everything fits, 1 if something does not, 2
for bad input. docs/preflight.md explains every column.
"""

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.bases import Base
from experiments.engine import cli
from experiments.engine.matching import abstract_params
from experiments.engine.study import load_corpus
from experiments.engine.variants import Study, Variant
from freezejax import aot, cost, models
from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.paths import nearest
from freezejax.sharding import make_mesh
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan

LARGEST = "largest"
_KINDS = ("all-gather", "reduce-scatter", "all-reduce")  # other kinds are summed up
_HEAD = "fits   GiB  compile s      GFLOP  gather MB  scatter MB  reduce MB  other MB   step ms  program"


class Phase(NamedTuple):
    """One phase of one variant, lowered, with what a step of it is predicted to take."""

    variant: str
    start: int  # steps
    stop: int
    lowered: jax.stages.Lowered
    flops: float  # one step, one device
    step_seconds: float


class Row(NamedTuple):
    """One compiled program and the phases that run it."""

    phases: Sequence[Phase]
    program: aot.CompiledProgram

    @property
    def names(self) -> str:
        """The first phase, and how many more there are."""
        first, more = self.phases[0], len(self.phases) - 1
        return f"{first.variant}, steps {first.start} to {first.stop}" + (f" (and {more} more)" if more else "")


class Cost(NamedTuple):
    """Time and money of the runs of one variant, by estimate."""

    variant: str
    runs: int
    seconds: float  # one run
    dollars: float | None  # one run; None without a price


def main() -> None:
    """Compiles, prints, and ends with the exit code."""
    values = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")
    config, topology = values.config, aot.load(values.topology)
    mesh = make_mesh(**config.train.mesh, devices=topology.devices)
    variants = chosen(make_study(config), values.variant or config.variants)
    phases = [phase for variant in variants for phase in lower(variant, mesh, topology, values.efficiency)]
    groups = distinct(phases)
    print_head(topology, mesh, f"{len(variants)} variants, {len(phases)} phases, {len(groups)} distinct programs")
    rows = []
    for group in groups:
        rows.append(Row(group, aot.compile_for(group[0].lowered, topology)))
        print_row(rows[-1])
    price = None if values.price_per_hour is None else values.price_per_hour * mesh.size / 3600
    runs = {variant.name: config.seeds * (config.base_seeds if variant.base_seeds else 1) for variant in variants}
    costs = [cost_of(rows, name, count, price) for name, count in runs.items()]
    print_end(rows, costs, values.efficiency)
    everything = {
        "topology": topology.name,
        "mesh": dict(mesh.shape),
        "limit_bytes": topology.chip.limit,
        "efficiency": values.efficiency,
        "programs": [as_json(*row) for row in rows],
        "variants": [cost._asdict() for cost in costs],
        "fits": all(row.program.fits for row in rows),
    }
    if values.json:
        with cli.writing(f"--json={values.json}"):
            write_atomically(Path(values.json), json.dumps(everything, indent=1) + "\n")
    sys.exit(0 if everything["fits"] else 1)


def make_study(config: ConfigDict) -> Study:
    """The study that a config is of."""
    try:
        make = importlib.import_module(f"experiments.{config.experiment}").make_study
    except (ImportError, AttributeError):
        raise UserError(f"config.experiment={config.experiment!r}: no study is named so") from None
    sizes = config.model if "model" in config else config.base.model
    path = config.base.path if "base" in config else ""
    pretrained = path or sizes is not config.get("model")  # of one that is to be made the shapes alone are asked for
    base = {"base": Base(Path(path) if path else None, config.data.tokenizer)} if pretrained else {}
    study: Study = make(config, sizes.vocab_size or load_corpus(config).tokenizer.vocab_size, **base)
    return study


def chosen(study: Study, wanted: str) -> Sequence[Variant]:
    """The named variants (comma separated; empty = all); `largest` is the one with the most weights."""
    if not wanted:
        return study.variants
    names, known = [name.strip() for name in wanted.split(",")], [variant.name for variant in study.variants]
    for name in names:
        if name not in (*known, LARGEST):
            raise UserError(f"--variant: no variant is named {name!r}; {nearest(name, [*known, LARGEST])}")
    if LARGEST in names:
        names.append(max(study.variants, key=_weights).name)
    return [variant for variant in study.variants if variant.name in names]


def _weights(variant: Variant) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(variant.model)))


def lower(variant: Variant, mesh: Mesh, topology: aot.Topology, efficiency: float) -> Iterator[Phase]:
    """Every phase of a variant's run on the mesh."""
    model, train_config = models.build(**variant.model), TrainConfig.from_mapping(variant.train)
    plan = RunPlan(model, train_config, variant.schedule, mesh)
    predicted = cost.predict(model, train_config, variant.schedule, mesh=mesh.shape).phases
    for index, phase in enumerate(predicted):
        seconds = cost.estimate_seconds(phase, cost.hardware_named(topology.kind), efficiency)
        yield Phase(variant.name, phase.start, phase.stop, plan.lower(index), phase.flops, seconds)


def distinct(phases: Sequence[Phase]) -> list[list[Phase]]:
    """Phases by program, each compiled once: two with the same text are the same program."""
    groups: dict[str, list[Phase]] = {}
    for phase in phases:
        digest = hashlib.sha256(phase.lowered.as_text().encode()).hexdigest()
        groups.setdefault(digest, []).append(phase)
    return list(groups.values())


def cost_of(rows: Sequence[Row], variant: str, runs: int, per_second: float | None) -> Cost:
    """What the runs of a variant take; `per_second` is the price of all devices in USD, if known."""
    phases = [(phase, row.phases[0].step_seconds) for row in rows for phase in row.phases if phase.variant == variant]
    seconds = sum((phase.stop - phase.start) * step_seconds for phase, step_seconds in phases)
    return Cost(variant, runs, seconds, None if per_second is None else seconds * per_second)


def print_head(topology: aot.Topology, mesh: Mesh, counts: str) -> None:
    """What is compiled for what, and the heads of the columns."""
    shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    print(
        f"{topology.name}: {mesh.size} x {topology.devices[0].device_kind} ({shape}), "
        f"{topology.chip.limit / aot.GIB:.1f} GiB of each for the program\n"
        f"{counts}; figures are of one device and step\n\n{_HEAD}",
        flush=True,
    )


def print_row(row: Row) -> None:
    """One program: a line of the table."""
    program, phase, sent = row.program, row.phases[0], aot.sent_by_kind(row.program.collectives)
    fits = "yes" if program.fits else "NO"
    columns = [sent.get(kind, 0) for kind in _KINDS]
    gather, scatter, reduce, other = (f"{size / 1e6:.1f}" for size in (*columns, sum(sent.values()) - sum(columns)))
    print(
        f"{fits:4} {program.peak / aot.GIB:5.2f} {program.seconds:10.1f} {phase.flops / 1e9:10.1f} {gather:>10} "
        f"{scatter:>11} {reduce:>10} {other:>9} {1e3 * phase.step_seconds:9.2f}  {row.names}",
        flush=True,
    )


def print_end(rows: Sequence[Row], costs: Sequence[Cost], efficiency: float) -> None:
    """Time and money of every variant and of all, and the verdict."""
    print(f"\nTraining at {efficiency:.0%} of peak; evaluation, compilation and reading data come on top:")
    minutes = dollars = 0.0
    for name, runs, seconds, price in costs:
        print(f"  {name}: {runs} x {seconds / 60:.1f} minutes" + ("" if price is None else f", {runs} x ${price:.2f}"))
        minutes += runs * seconds / 60
        dollars += runs * (price or 0.0)
    print(f"  all: {minutes:,.1f} minutes" + ("" if price is None else f", ${dollars:,.2f}"))
    too_large = [row.names for row in rows if not row.program.fits]
    print(f"Does not fit: {'; '.join(too_large)}" if too_large else "Everything fits.")


def as_json(phases: Sequence[Phase], program: aot.CompiledProgram) -> dict[str, Any]:
    """One program, with every collective."""
    return {
        "phases": [{"variant": phase.variant, "start": phase.start, "stop": phase.stop} for phase in phases],
        "fits": program.fits,
        "peak_bytes": program.peak,
        "compile_seconds": program.seconds,
        "flops": phases[0].flops,
        "compiled_flops": program.flops,
        "step_seconds": phases[0].step_seconds,
        "sent_bytes": aot.sent_by_kind(program.collectives),
        "collectives": [collective._asdict() for collective in program.collectives],
    }


if __name__ == "__main__":
    cli.define_config_flag("experiments/configs/progressive.py:h100x8")
    flags.DEFINE_string("topology", "h100:1x1x8", "Machine: h100:SLICESxHOSTSxGPUS, v5e:AxB or v5p:AxBxC.")
    flags.DEFINE_string("variant", "", f"Names, comma separated, or {LARGEST}; empty = config.variants.")
    flags.DEFINE_float("price_per_hour", None, "USD per hour of one device.", lower_bound=0)
    flags.DEFINE_float("efficiency", cost.EFFICIENCY, "Share of the devices' peak FLOP/s that the step reaches.")
    flags.DEFINE_string("json", None, "Also write everything to this file.")
    cli.run(main)
