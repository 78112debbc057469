"""What devices exchange in a step: everything trained, gate and up frozen, gate and up seeded; no accelerator needed.

    python -m benchmarks.pod --json=benchmarks/results/pod.json
    python -m benchmarks.pod --write_docs

The first compiles the plan's step for pods of H100 and TPU v5e (extra `preflight`), about 3 minutes on 2 CPU cores,
and writes what the compiled programs exchange; with --quick one layer, and with --case=NAME one pod. The second
writes the committed JSON's table into docs/performance.md.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from absl import flags

from benchmarks.tables import table
from experiments.engine import cli
from experiments.engine.matching import ALL_TRAIN, random_map
from freezejax import aot, freeze, models
from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.schedules import FreezeSchedule, Phase
from freezejax.sharding import make_mesh
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan
from freezejax.version import versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "pod.json"
PAGE = ROOT / "docs" / "performance.md"
PATTERN = r"blocks/\d+/mlp/(gate|up)/kernel"
FROZEN = FreezeSchedule([(0, [(PATTERN, False), (".*", True)])])
REDUCE = ("reduce-scatter", "all-reduce")
_PACKAGES = ("freezejax", "jax", "jaxlib", "jax-cuda12-pjrt", "libtpu")


class Case(NamedTuple):
    """A pod and the mesh over it."""

    topology: str
    data: int
    fsdp: int

    @property
    def name(self) -> str:
        """As --case takes it."""
        return f"{self.topology},data={self.data},fsdp={self.fsdp}"


CASES = (Case("h100:1x1x8", 1, 8), Case("h100:1x32x8", 1, 256), Case("h100:1x32x8", 32, 8), Case("v5e:16x16", 16, 16))


@dataclasses.dataclass(frozen=True)
class Settings:
    """The model; no kernel but those of the MLP has their shape."""

    num_layers: int = 2
    model_dim: int = 256
    num_heads: int = 4
    mlp_mult: float = 2.5
    vocab_size: int = 1024
    seq_len: int = 64
    rows: int = 2  # sequences per device


QUICK = Settings(num_layers=1)


class FrozenInOptimizer(RunPlan):
    """The usual recipe: the gradient of everything, and an optimizer that leaves some leaves alone."""

    def optimizer(self, phase: Phase) -> optax.GradientTransformation:
        """The run's optimizer, for all but gate and up."""
        mask = FROZEN.phases(self.abstract_params, self.config.steps)[0].mask
        return freeze(super().optimizer(phase), mask)


FORMS: Mapping[str, tuple[type[RunPlan], FreezeSchedule, bool]] = {  # plan, schedule, gate and up are maps
    "everything trained": (RunPlan, ALL_TRAIN, False),
    "gate and up frozen": (RunPlan, FROZEN, False),
    "gate and up seeded": (RunPlan, ALL_TRAIN, True),
    "gate and up frozen in the optimizer alone": (FrozenInOptimizer, ALL_TRAIN, False),
}


def measure(settings: Settings, cases: Sequence[Case]) -> dict[str, Any]:
    """Compiles every form for every case."""
    rows = [row for case in cases for row in _rows(settings, case)]
    return {"settings": dataclasses.asdict(settings), "versions": versions(*_PACKAGES), "rows": rows}


def _rows(settings: Settings, case: Case) -> Iterator[dict[str, Any]]:
    topology = aot.load(case.topology)
    mesh = make_mesh(case.data, case.fsdp, devices=topology.devices)
    values = dataclasses.asdict(settings)
    seq_len, rows = values.pop("seq_len"), values.pop("rows")
    config = TrainConfig(steps=2, batch_size=rows * mesh.size, seq_len=seq_len, compute_dtype="bfloat16")
    for form, (plan, schedule, seeded) in FORMS.items():
        model = models.build("geglu", **values, weights=[random_map(PATTERN)] if seeded else [])
        program = aot.compile_for(plan(model, config, schedule, mesh).lower(0), topology)
        sent = aot.sent_by_kind(program.collectives)
        yield {
            **{"topology": case.topology, "data": case.data, "fsdp": case.fsdp, "form": form},
            "gathered_bytes": sent.get("all-gather", 0),
            "reduced_bytes": sum(sent.get(kind, 0) for kind in REDUCE),
            "reduced_dtypes": sorted({found.dtype for found in program.collectives if found.kind in REDUCE}),
            "sent_bytes": sum(sent.values()),
            "mlp_kernels": _of_mlp(program.collectives, settings, case),
            "peak_bytes": program.peak,
            "compile_seconds": program.seconds,
        }


def _of_mlp(found: Sequence[aot.Collective], settings: Settings, case: Case) -> dict[str, int]:
    """How many arrays of the shape of gate, up or down, or of a shard of one, are exchanged, by kind."""
    width, hidden = settings.model_dim, round(settings.mlp_mult * settings.model_dim)
    shapes = {(width, hidden), (width // case.fsdp, hidden)}
    shapes |= {shape[::-1] for shape in shapes}
    counts: dict[str, int] = {}
    for collective in found:
        if collective.shape in shapes:
            counts[collective.kind] = counts.get(collective.kind, 0) + collective.times
    return counts


def write_table(found: Mapping[str, Any]) -> str:
    """Markdown: bytes per step and device of every form, against everything trained."""
    lines = []
    for row in found["rows"]:
        same = [other for other in found["rows"] if all(other[k] == row[k] for k in ("topology", "data", "fsdp"))]
        share = row["sent_bytes"] / same[0]["sent_bytes"]
        lines.append(
            {
                "pod": f"{row['topology']}, data={row['data']}, fsdp={row['fsdp']}",
                "step": row["form"],
                "gathered, MB": f"{row['gathered_bytes'] / 1e6:.1f}",
                "reduced, MB": f"{row['reduced_bytes'] / 1e6:.1f}",
                "sum, MB": f"{row['sent_bytes'] / 1e6:.1f}",
                "against everything trained": f"{share:.2f}",
            }
        )
    return table(lines)


def main() -> None:
    """Measures, or writes the page."""
    jax.config.update("jax_platforms", "cpu")
    values = flags.FLAGS
    if values.write_docs:
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
        write_atomically(PAGE, fill(PAGE.read_text(encoding="utf-8"), found))
        return
    cases = [case for case in CASES if values.case in ("", case.name)]
    if not cases:
        raise UserError(f"--case={values.case}: expected one of {'; '.join(case.name for case in CASES)}")
    found = measure(QUICK if values.quick else Settings(), cases)
    print(write_table(found))
    if values.json:
        write_atomically(Path(values.json), json.dumps(found, indent=1) + "\n")


def fill(page: str, found: Mapping[str, Any]) -> str:
    """The page with its table of pods written afresh."""
    block = f"<!-- table: pod -->\n{write_table(found)}\n<!-- end -->"
    return re.sub(r"<!-- table: pod -->\n.*?<!-- end -->", lambda _: block, page, flags=re.DOTALL)


if __name__ == "__main__":
    flags.DEFINE_string("json", None, "Also write everything to this JSON file.")
    flags.DEFINE_string("case", "", "One pod, TOPOLOGY,data=N,fsdp=N; empty = all.")
    flags.DEFINE_bool("quick", False, "One layer instead of two, as the tests have it.")
    flags.DEFINE_bool("write_docs", False, "Only write the committed JSON's table into docs/performance.md.")
    cli.run(main)
