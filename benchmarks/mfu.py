"""Time of a training step at the paper's sizes, and the share of the device's peak that it reaches (MFU).

    python -m benchmarks.mfu --json=runs/gpu/mfu.json

One device, bfloat16, 64 x 512 tokens, everything trained and gate and up frozen. The FLOPs are those of the matmuls of
the step as `freezejax.cost` predicts them, so those that freezing saves do not count; the peak is the data sheet's.
--quick takes a toy size; --hardware names the data sheet where the device is not known.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import pages
from benchmarks.running_step import EVERYTHING, GATE_UP, Sizes, phase
from benchmarks.tables import table
from benchmarks.timing import compare, interleave
from experiments.engine import accelerators, cli
from freezejax import FreezeSchedule, cost
from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.training.config import TrainConfig

CASES = {"everything trained": EVERYTHING, "gate and up frozen": GATE_UP}


@dataclasses.dataclass(frozen=True)
class HalfSizes(Sizes):
    """The same in bfloat16."""

    @property
    def config(self) -> TrainConfig:
        """AdamW and bfloat16."""
        return dataclasses.replace(super().config, compute_dtype="bfloat16")


SIZES = {
    "small": HalfSizes(6, 192, 6, 1024, 64, 512),
    "medium": HalfSizes(8, 256, 4, 1024, 64, 512),
    "large": HalfSizes(12, 384, 6, 1024, 64, 512),
}
QUICK = {"toy": HalfSizes(2, 32, 1, 64, 2, 32)}


def main() -> None:
    """Measures, prints a table, writes the JSON."""
    accelerators.announce()
    found = measure(QUICK if flags.FLAGS.quick else SIZES, hardware(flags.FLAGS.hardware), flags.FLAGS.rounds)
    print(table([_shown(row) for row in found["rows"]]))
    if flags.FLAGS.json:
        write_atomically(Path(flags.FLAGS.json), json.dumps(found, indent=1) + "\n")


def hardware(name: str) -> cost.Hardware:
    """The data sheet of a name, or of this device.

    Raises:
      UserError: there is none.
    """
    kind = jax.devices()[0].device_kind
    known = [key for key in cost.HARDWARE if key in kind.lower()]
    if not name and not known:
        raise UserError(f"no data sheet for {kind!r}; give one: --hardware={'|'.join(cost.HARDWARE)}")
    return cost.hardware_named(name or known[0])


def measure(sizes: Mapping[str, Sizes], peak: cost.Hardware, rounds: int, steps: int = 10) -> dict[str, Any]:
    """Everything, as it stands in the JSON."""
    rows = []
    for name, size in sizes.items():
        programs = {case: phase(size, rules) for case, rules in CASES.items()}
        calls = {case: lambda program=program: program.run(steps) for case, program in programs.items()}
        seconds = {case: np.asarray(each) / steps for case, each in interleave(calls, rounds, 0).items()}
        for row in compare(seconds, "everything trained"):
            plan = FreezeSchedule([(0, CASES[row["name"]])])
            flops = cost.predict(size.model(), size.config, plan).phases[0].matmul_flops
            share = flops / (1e-3 * row["ms_median"] * peak.flops[size.config.compute_dtype])
            rows.append({"size": name, **row, "matmul_flops": flops, "mfu": share})
    return {
        "sizes": {name: dataclasses.asdict(size) for name, size in sizes.items()},
        "hardware": peak.name,
        "steps_per_sample": steps,
        "rounds": rounds,
        **pages.environment(),
        "rows": rows,
    }


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "model": row["size"],
        "trained": row["name"],
        "step, median ms": f"{row['ms_median']:.2f}",
        "times everything trained": f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})",
        "matmul GFLOP": f"{row['matmul_flops'] / 1e9:.1f}",
        "share of the peak": f"{row['mfu']:.1%}",
    }


if __name__ == "__main__":
    flags.DEFINE_string("json", None, "Also write everything measured to this JSON file.")
    flags.DEFINE_bool("quick", False, "A toy size: whether it runs, not what it costs.")
    flags.DEFINE_string("hardware", "", "Data sheet of the peak, such as h100; else by the name of the device.")
    flags.DEFINE_integer("rounds", 20, "Samples of each program.", lower_bound=2)
    accelerators.define_flags()
    cli.run(main)
