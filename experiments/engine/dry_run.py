"""What a study will cost, as one table: `--dry_run` prints it and ends, `--hardware=h100` adds the time."""

import dataclasses
import operator
from collections.abc import Iterator

from absl import flags
from ml_collections import ConfigDict

from experiments.engine.results import packing
from experiments.engine.variants import Study, Variant
from experiments.report.table import Column, terminal
from freezejax import cost, models
from freezejax.training.config import TrainConfig

flags.disclaim_key_flags()  # of the command, see cli.py
_MIB = 2**20
_KIND = {"variant": "name", "steps": "words"}


def define_flags() -> None:
    """Defines `--dry_run`, `--hardware` and `--efficiency`."""
    flags.DEFINE_bool("dry_run", False, "Print what every phase will cost, and exit; writes nothing.")
    flags.DEFINE_string("hardware", "", f"Of --dry_run: estimate times for {', '.join(cost.HARDWARE)}.")
    flags.DEFINE_float("efficiency", cost.EFFICIENCY, "Of --dry_run: share of the peak FLOP/s that matmuls reach.")


def print_costs(study: Study, config: ConfigDict, hardware: str = "", efficiency: float = cost.EFFICIENCY) -> None:
    """Prints one line per variant and phase; bytes and FLOPs are of one device and one step.

    A teacher's forward pass stands beside the step of its student, and is in no other figure: kept logits save it.
    `hardware` is a name in `cost.HARDWARE` to estimate times for, "" = no times; `efficiency` the share of the peak
    FLOP/s that matmuls reach. The config's artifact codec says the stored bytes.
    """
    chip = cost.hardware_named(hardware) if hardware else None
    lines = [line for variant in study.variants for line in _lines(variant, config, chip, efficiency)]
    # A phase on one device has no collectives, and those of the study may have different meshes.
    names = dict.fromkeys(name for line in lines for name in line)
    columns = [Column(name, operator.methodcaller("get", name), kind=_KIND.get(name, "number")) for name in names]
    times = "" if chip is None else f"; {chip.name} at {efficiency:.0%} of its peak"
    terminal(f"{study.name}: one step on one device, bytes in MiB{times}", columns, lines, width=240)


def _lines(
    variant: Variant, config: ConfigDict, chip: cost.Hardware | None, efficiency: float
) -> Iterator[dict[str, str]]:
    model, train = models.build(**variant.model), TrainConfig.from_mapping(variant.train)
    # -1 counts as 1, for nobody knows here what devices will be there.
    mesh = {axis: max(1, size) for axis, size in dataclasses.asdict(train.mesh).items()}
    teacher = None if variant.teacher is None else cost.forward_flops(models.build(**variant.teacher), train)
    found = cost.predict(model, train, variant.schedule, mesh=mesh, codec=packing(config)["codec"])
    for index, phase in enumerate(found.phases):
        sizes = {
            "parameters": phase.parameter_bytes,
            "gradients": phase.gradient_bytes,
            "optimizer": phase.optimizer_bytes,
            "temporaries": phase.activation_bytes,
            "arguments": phase.argument_bytes,
            **(phase.collective_bytes if phase.devices > 1 else {}),
        }
        line = {
            "variant": "" if index else variant.name,
            "steps": f"{phase.start:,} to {phase.stop:,}",
            "trains": f"{phase.trainable_share:.1%}",
            "GFLOP/step": f"{phase.flops / 1e9:,.3f}",
            **({} if teacher is None else {"teacher's": f"{teacher / 1e9:,.3f}"}),
            **{name: f"{size / _MIB:,.2f}" for name, size in sizes.items()},
            "stored kB": f"{phase.stored_bytes / 1e3:,.1f}",
        }
        if chip is not None:
            seconds = cost.estimate_seconds(phase, chip, efficiency)
            line |= {"ms/step": f"{1e3 * seconds:,.3f}", "minutes": f"{seconds * phase.steps / 60:,.2f}"}
        yield line
