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
from typing import NamedTuple

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.engine import cli
from experiments.engine.variants import Study, Variant
from experiments.report.preflight_report import Row, Use, as_json, costs, ending, header, line
from freezejax import aot, cost, data, models
from freezejax.data.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.paths import nearest
from freezejax.sharding import make_mesh
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan

LARGEST = "largest"


class Phase(NamedTuple):
    """One phase of one variant, lowered, with what it is predicted to take."""

    use: Use
    lowered: jax.stages.Lowered
    flops: float  # one step, one device
    step_seconds: float


def main() -> None:
    """Compiles, prints, and ends with the exit code."""
    values = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")
    config, topology = values.config, aot.load(values.topology)
    mesh = make_mesh(**config.train.mesh, devices=topology.devices)
    variants = chosen(make_study(config), values.variant or config.variants)
    phases = [phase for variant in variants for phase in lower(variant, mesh, topology, values.efficiency)]
    groups = distinct(phases)
    print(header(topology, mesh, len(variants), len(phases), len(groups)), flush=True)
    rows = []
    for group in groups:
        program = aot.compile_for(group[0].lowered, topology)
        rows.append(Row([phase.use for phase in group], program, group[0].flops, group[0].step_seconds))
        print(line(rows[-1]), flush=True)
    runs = {variant.name: config.seeds * (config.base_seeds if variant.base_seeds else 1) for variant in variants}
    found = costs(rows, runs, mesh.size, values.price_per_hour)
    print(ending(rows, found, values.efficiency))
    if values.json:
        everything = as_json(rows, found, topology, mesh, values.efficiency)
        try:
            write_atomically(Path(values.json), json.dumps(everything, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--json={values.json}: cannot be written: {error.strerror}") from None
    sys.exit(0 if all(row.program.fits for row in rows) else 1)


def make_study(config: ConfigDict) -> Study:
    """The study that a config is of.

    Raises:
      UserError: there is no such study, or something the study refuses.
    """
    try:
        module = importlib.import_module(f"experiments.{config.experiment}")
        make = module.make_study
    except (ImportError, AttributeError):
        raise UserError(f"config.experiment={config.experiment!r}: no study is named so") from None
    vocab_size = config.model.vocab_size
    if not vocab_size:
        corpus = data.load(
            config.data.path,
            tokenizer=config.data.tokenizer,
            val_fraction=config.data.val_fraction,
            cache_dir=str(cli.cache_dir() / "data"),
        )
        vocab_size = corpus.tokenizer.vocab_size
    study: Study = make(config, vocab_size)
    return study


def chosen(study: Study, wanted: str) -> Sequence[Variant]:
    """The named variants (comma separated; empty = all); `largest` is the one with the most weights.

    Raises:
      UserError: a name that no variant has.
    """
    if not wanted:
        return study.variants
    named = {variant.name: variant for variant in study.variants}
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in named and name != LARGEST:
            raise UserError(f"--variant: no variant is named {name!r}; {nearest(name, [*named, LARGEST])}")
    largest = max(study.variants, key=lambda v: _weights(v) if LARGEST in names else 0).name
    wanted_names = {largest if name == LARGEST else name for name in names}
    return [variant for variant in study.variants if variant.name in wanted_names]


def _weights(variant: Variant) -> int:
    shapes = jax.eval_shape(models.build(**variant.model).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def lower(variant: Variant, mesh: Mesh, topology: aot.Topology, efficiency: float) -> Iterator[Phase]:
    """Every phase of a variant's run on the mesh."""
    model, train_config = models.build(**variant.model), TrainConfig.from_mapping(variant.train)
    plan = RunPlan(model, train_config, variant.schedule, mesh)
    predicted = cost.predict(model, train_config, variant.schedule, mesh=mesh.shape).phases
    for index, phase in enumerate(predicted):
        seconds = cost.estimate_seconds(phase, cost.hardware_named(topology.kind), efficiency)
        yield Phase(Use(variant.name, phase.start, phase.stop), plan.lower(index), phase.flops, seconds)


def distinct(phases: Sequence[Phase]) -> list[list[Phase]]:
    """Phases by program, each compiled once: two with the same text are the same program."""
    groups: dict[str, list[Phase]] = {}
    for phase in phases:
        digest = hashlib.sha256(phase.lowered.as_text().encode()).hexdigest()
        groups.setdefault(digest, []).append(phase)
    return list(groups.values())


if __name__ == "__main__":
    cli.define_config_flag("experiments/configs/progressive.py:h100x8")
    flags.DEFINE_string("topology", "h100:1x1x8", "Machine: h100:SLICESxHOSTSxGPUS, v5e:AxB or v5p:AxBxC.")
    flags.DEFINE_string("variant", "", f"Names, comma separated, or {LARGEST}; empty = config.variants.")
    flags.DEFINE_float("price_per_hour", None, "USD per hour of one device.", lower_bound=0)
    flags.DEFINE_float("efficiency", cost.EFFICIENCY, "Share of the devices' peak FLOP/s that the step reaches.")
    flags.DEFINE_string("json", None, "Also write everything to this file.")
    cli.run(main)
