"""A training step against an equivalent PyTorch step, in turns: everything trained, and gate and up frozen.

    python -m venv torch && torch/bin/pip install torch==2.13.0 numpy
    python -m benchmarks.step --torch_python=torch/bin/python --json=benchmarks/results/step.json
    python -m benchmarks.step --write_docs

PyTorch lives in an environment and in processes of its own, `benchmarks/torch_step.py`: one with glibc's defaults, one
that keeps freed memory as freezejax does. Never do two programs run at once.
The second command takes some minutes on 2 quiet CPU cores; with --quick a toy size. The JSON holds one entry per
processor: a run replaces that of its own and keeps the others. The third writes the tables of every entry into the
pages that quote them.
"""

import dataclasses
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import command, matmuls, pages, pieces
from benchmarks.matmuls import Run
from benchmarks.running_step import EVERYTHING, GATE_UP, Sizes, phase
from benchmarks.tables import table, verdict
from benchmarks.timing import compare, interleave
from experiments.engine import accelerators
from freezejax import trainable_mask
from freezejax.errors import UserError
from freezejax.models.importers import state_to_torch, torch_names
from freezejax.paths import leaf_paths

RESULTS = pages.RESULTS / "step.json"
PAGES = (pages.README, pages.PERFORMANCE)
TARGET, WISH = 1.0, 0.8  # times the fastest PyTorch step
TOLERANCE = 1e-4  # of the losses of both sides
CASES = {"everything trained": EVERYTHING, "gate and up frozen": GATE_UP}
KEPT = ", freed memory kept"
SIDES = ("freezejax", "torch", "torch.compile", f"torch{KEPT}", f"torch.compile{KEPT}")
_CHILD = Path(__file__).with_name("torch_step.py")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large and how often."""

    sizes: Sizes = dataclasses.field(default_factory=Sizes)
    rounds: int = 25
    steps: int = 2  # of each program in a round
    checked_steps: int = 6  # whose losses are compared before anything is timed
    compiled: bool = True  # also through torch.compile


QUICK = Settings(Sizes(2, 32, 1, 64, 2, 32), rounds=3, steps=1, checked_steps=3, compiled=False)


def measure(settings: Settings, torch_python: str) -> dict[str, Any]:
    """Everything, as it stands in the JSON under the name of this processor.

    Raises:
      UserError: PyTorch cannot be started, or the two sides do not compute the same losses.
    """
    environment = pages.environment()
    with (
        torch_process(torch_python, settings) as (version, defaults),
        torch_process(torch_python, settings, keep=True) as (_, kept),
    ):
        programs: dict[tuple[str, str], Run]
        programs = {(case, "freezejax"): phase(settings.sizes, rules).run for case, rules in CASES.items()}
        programs |= {(case, side): run for (case, side), run in defaults.items() if case in CASES}
        programs |= {(case, side + KEPT): run for (case, side), run in kept.items() if case in CASES}
        differences = check_losses(programs, settings.checked_steps)
        calls = {key: lambda run=run: run(settings.steps) for key, run in programs.items()}
        seconds = interleave(calls, settings.rounds, sample_seconds=0)  # type: ignore[arg-type]
        products = matmuls.products(settings.sizes)
        theirs = {product.name: kept[product.name, "torch"] for product in products}  # no page faults, as in ours
        rates = matmuls.time_products(products, theirs, settings.rounds)
    rows = []
    for case in CASES:
        mine = {side: seconds[case, side] / settings.steps for side in SIDES if (case, side) in seconds}  # type: ignore[index]
        best = min((side for side in mine if side != "freezejax"), key=lambda side: float(np.median(mine[side])))
        rows += [{"case": case, "reference": best, **row} for row in compare(mine, best)]
    environment["versions"]["torch"] = version
    return {
        "settings": dataclasses.asdict(settings),
        "targets": {"ratio": TARGET, "wish": WISH, "loss": TOLERANCE},
        **environment,
        "loss_difference": differences,
        "times": rows,
        "matmuls": rates,
        "pieces": pieces.time_pieces(settings.sizes, settings.rounds),
        "memory": pieces.memory_kept(settings.sizes),
    }


def check_losses(programs: Mapping[tuple[str, str], Run], steps: int) -> dict[str, float]:
    """Largest difference between our losses and PyTorch's over the first steps, by case.

    Raises:
      UserError: it is above the tolerance: the two sides are not the same computation.
    """
    losses = {key: run(steps) for key, run in programs.items()}
    found: dict[str, float] = {}
    for (case, side), values in losses.items():
        difference = float(np.abs(np.subtract(values, losses[case, "freezejax"])).max())
        if not difference <= TOLERANCE:
            raise UserError(f"{case}: the losses of {side} differ from ours by {difference:.1e}, not {TOLERANCE:.0e}")
        found[case] = max(difference, found.get(case, 0.0))
    return found


@contextmanager
def torch_process(
    python: str, settings: Settings, *, keep: bool = False
) -> Iterator[tuple[str, dict[tuple[str, str], Run]]]:
    """PyTorch's version and its programs, by case and side, in a process that waits while others run.

    With `keep` its C library keeps freed memory.

    Raises:
      UserError: `python` does not start, or has no torch.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = write_orders(Path(folder), settings)
        command = [python, str(_CHILD), folder]
        kept = (
            {f"MALLOC_{name}": str(value) for name, (_, value) in (accelerators.KEEP | accelerators.ONE_HEAP).items()}
            if keep
            else {}
        )
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        try:
            child = subprocess.Popen(command, env={**os.environ, **kept}, **pipes)
        except OSError as error:
            raise UserError(f"--torch_python={python} does not start: {error.strerror}") from error
        with child:
            yield _answer(child, python)["torch"], {name: _remote(child, python, *name) for name in names}
            child.stdin.close()  # type: ignore[union-attr]


def write_orders(folder: Path, settings: Settings) -> list[tuple[str, str]]:
    """Parameters, batches, operands and config for `torch_step.py`; the names of its programs."""
    sizes, model = settings.sizes, settings.sizes.model()
    params = model.init(jax.random.key(0))
    arrays: dict[str, Any] = {**state_to_torch(model, params), **sizes.batches()}
    np.savez(folder / "arrays.npz", **arrays)
    programs: dict[tuple[str, str], dict[str, Any]] = {}
    names = torch_names(model, params)
    for case, rules in CASES.items():
        mask = zip(leaf_paths(params), jax.tree.leaves(trainable_mask(params, rules)), strict=True)
        frozen = [names[path][0] for path, trains in mask if not trains]
        programs[case, "torch"] = {"frozen": frozen, "compiled": False}
        if settings.compiled:
            programs[case, "torch.compile"] = {"frozen": frozen, "compiled": True}
    orders = matmuls.write_orders(folder, matmuls.products(sizes))
    programs |= {(name, "torch"): order for name, order in orders.items()}
    config = {
        **dataclasses.asdict(model.config),
        "seq_len": sizes.seq_len,
        "threads": len(os.sched_getaffinity(0)),
        "optimizer": dataclasses.asdict(sizes.config.optimizer),
        "programs": {"/".join(name): order for name, order in programs.items()},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return list(programs)


def _remote(child: subprocess.Popen[str], python: str, case: str, side: str) -> Run:
    def run(steps: int) -> list[float]:
        assert child.stdin is not None
        child.stdin.write(json.dumps({"program": f"{case}/{side}", "steps": steps}) + "\n")
        child.stdin.flush()
        values: list[float] = _answer(child, python)["values"]
        return values

    return run


def _answer(child: subprocess.Popen[str], python: str) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise UserError(f"{python} {_CHILD.name} ended: --torch_python must be a Python that has torch and numpy")
    answer: dict[str, Any] = json.loads(line)
    return answer


def with_entry(path: str | None, measured: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The entries of a JSON by processor, with what is measured now in the place of its own processor's.

    Args:
      path: the JSON, read before anything is measured; none, or one that does not exist yet, has no entries.
      measured: measures, see `measure`.

    Raises:
      UserError: the file holds something else.
    """
    entries: Any = {}
    if path and Path(path).exists():
        try:
            entries = json.loads(Path(path).read_text(encoding="utf-8"))
            keys = [entry["machine"]["processor"] for entry in entries.values()]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            keys = None
        if keys is None or keys != list(entries):
            raise UserError(f"--json={path} is no JSON of this benchmark, with one entry per processor: name another")
    found = measured()
    return {**entries, found["machine"]["processor"]: found}


def write_tables(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The tables by name, as they stand in the pages: each with one part per processor."""
    writers: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "times": lambda found: _times(found["times"]),
        "matmuls": lambda found: matmuls.write_table(found["matmuls"]),
        "pieces": lambda found: _pieces(found["pieces"]),
        "memory": lambda found: _memory(found["memory"]),
    }
    made = {
        name: "\n\n".join(f"**{processor}**\n\n{write(found)}" for processor, found in entries.items())
        for name, write in writers.items()
    }
    return {**made, "machine": "\n\n".join(pages.sentence(found) for found in entries.values())}


def _times(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        ours = row["name"] == "freezejax"
        wish = f", 0.8: {verdict(row['ratio'] <= WISH)}" if row["ratio"] <= TARGET else ""
        lines.append(
            {
                "trained": row["case"],
                "step": row["name"],
                "median, ms": f"{row['ms_median']:.0f}",
                "least, ms": f"{row['ms_min']:.0f}",
                "times the fastest PyTorch": _ratio(row),
                "target": f"1.0: {verdict(row['ratio'] <= TARGET)}{wish}" if ours else "",
            }
        )
    return table(lines)


def _pieces(rows: Sequence[Mapping[str, Any]]) -> str:
    by_piece: dict[str, dict[str, str]] = {}
    for row in rows:
        line = by_piece.setdefault(row["piece"], {"piece, forward and backward": row["piece"]})
        line[f"{row['name']}, ms"] = f"{row['ms_median']:.2f}"
        if row["name"] == "freezejax":
            line["times jax"] = _ratio(row)
    return table(list(by_piece.values()))


def _memory(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(
        [
            {
                "freed memory": row["freed"],
                "page faults per step": f"{row['page_faults']:,.0f}",
                "CPU time per step, ms": f"{row['cpu_ms']:.0f}",
                "of it in the kernel, ms": f"{row['kernel_ms']:.0f}",
            }
            for row in rows
        ]
    )


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"


if __name__ == "__main__":
    flags.DEFINE_string("torch_python", "python", "Python of an environment that has torch and numpy.")
    command.run(
        RESULTS,
        PAGES,
        lambda quick: with_entry(
            flags.FLAGS.json, lambda: measure(QUICK if quick else Settings(), flags.FLAGS.torch_python)
        ),
        write_tables,
    )
