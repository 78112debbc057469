"""The laws of freezing over runs drawn along every axis at once: what holds for each axis alone may fail for two.

    uv run --extra dev python -m tests.campaigns.laws --runs=500 --seed=0

Run number n is drawn from (seed, n) alone: `--first=n --runs=1` makes it again. Exit code 1 where a law is broken, or
anything but a `UserError` is raised.
"""

import argparse
import collections
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from freezejax import UserError, artifact, cost
from freezejax.sharding import make_mesh
from freezejax.training.batches import TokenBatches
from freezejax.training.checkpoints import load_params, save_params
from freezejax.training.interrupts import Stopped, StopSignal
from freezejax.training.loop import train
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.plan import RunPlan
from freezejax.training.processes import to_host
from freezejax.training.state import fingerprint
from freezejax.training.sweep import sweep
from tests.campaigns.drawn import STEPS, Run, draw

TOKENS = np.where(np.arange(4000) % 4 == 0, np.random.default_rng(0).integers(0, 61, 4000), np.arange(4000) * 7 % 61)
# Of losses, relative: what another order of sums may change in a few steps.
_TOLERANCE = {"float32": 2e-3, "bfloat16": 3e-2}
# Of what XLA counts; at these widths a fifth of the FLOPs is elementwise, some of it computed twice (docs/cost.md).
_COST = {"flops": 0.04, "argument_bytes": 0.01}


class Trained:
    """What a run shows: its weights after every step, on the host, and the losses."""

    def __init__(self, run: Run, folder: Path, mesh: Any = None, stop_at: int = 0) -> None:
        self.model, self.config, self.schedule = run.build()
        self.weights: list[Any] = []
        self.losses: dict[int, float] = {}
        self.stop, self.stop_at, self.params = StopSignal(), stop_at, None
        objective = LanguageModelling(self.model, self.config.compute_dtype, self._see, self.config.remat)
        batches = TokenBatches(TOKENS.astype(np.uint16), self.config, mesh)
        try:
            found = train(
                self.model,
                objective,
                batches,
                self.config,
                self.schedule,
                folder,
                mesh=mesh,
                sinks=[self],
                stop=self.stop,
            )
            self.params = found.params
        except Stopped:
            pass

    def _see(self, params: Any) -> Mapping[str, float]:
        self.weights.append(to_host(params))
        return {}

    def begin(self, step: int) -> None:
        pass

    def write(self, record: dict[str, Any]) -> None:
        if "loss" in record:
            self.losses[record["step"]] = record["loss"]
            if record["step"] == self.stop_at:  # told at once, for every step is evaluated
                self.stop.received = 15

    def close(self) -> None:
        pass


def frozen_bits(run: Run, whole: Trained, _: Path) -> str:
    """What is frozen in a phase keeps its bits through it; something of what trains moves."""
    if run.train["ema_decay"]:
        return ""  # what is seen is then the average
    plan = RunPlan(whole.model, whole.config, whole.schedule)
    before = to_host(plan.begin().params)
    for step, after in enumerate(whole.weights):
        phase = next(phase for phase in plan.phases if phase.start <= step < phase.stop)
        moved = jax.tree.map(lambda a, b: np.asarray(a).tobytes() != np.asarray(b).tobytes(), before, after)
        pairs = list(zip(jax.tree.leaves(phase.mask), jax.tree.leaves(moved), strict=True))
        if any(changed and not trains for trains, changed in pairs):
            return f"a frozen leaf changed in step {step + 1}"
        if any(trains for trains, _ in pairs) and not any(changed for trains, changed in pairs if trains):
            rate = plan.lr_schedule(step)
            if float(rate) > 0:
                return f"nothing that trains moved in step {step + 1}"
        before = after
    return ""


def resumed(run: Run, whole: Trained, folder: Path) -> str:
    """Stopped at a step and started again, a run ends with the same bits."""
    Trained(run, folder / "stopped", stop_at=run.stop_at)
    again = Trained(run, folder / "stopped")
    if set(again.losses) != set(range(run.stop_at + 1, STEPS + 1)):
        return f"stopped after step {run.stop_at} it went on with steps {sorted(again.losses)}"
    return "" if fingerprint(again.params) == fingerprint(whole.params) else f"other bits, stopped after {run.stop_at}"


def sharded(run: Run, whole: Trained, folder: Path) -> str:
    """On a mesh of devices the losses are those of one."""
    here = Trained(run, folder / "mesh", make_mesh(*run.mesh))
    return _losses_differ(here.losses, whole.losses, _TOLERANCE[run.train["compute_dtype"]])


def traced(run: Run, whole: Trained, _: Path) -> str:
    """The step-dependent mask inside one program trains as the static phases do."""
    objective = LanguageModelling(whole.model, whole.config.compute_dtype, remat=whole.config.remat)
    batches = TokenBatches(TOKENS.astype(np.uint16), whole.config)
    devices = jax.local_devices()[:1]
    (found,) = sweep(whole.model, objective, batches, whole.config, [whole.schedule], devices=devices)
    losses = {record["step"]: record["loss"] for record in found.records if "loss" in record}
    return _losses_differ(losses, whole.losses, _TOLERANCE[run.train["compute_dtype"]])


def _losses_differ(found: Mapping[int, float], wanted: Mapping[int, float], tolerance: float) -> str:
    if found.keys() != wanted.keys():
        return f"losses of steps {sorted(found)}, not {sorted(wanted)}"
    off = {step: abs(found[step] / wanted[step] - 1) for step in found}
    worst = max(off, key=lambda step: off[step])
    return "" if off[worst] <= tolerance else f"the loss of step {worst} is {found[worst]}, not {wanted[worst]}"


def saved(run: Run, whole: Trained, folder: Path) -> str:
    """Weights come back from a checkpoint with their bits; from an artifact as it says, and every time the same."""
    save_params(folder / "params", whole.params)
    if fingerprint(load_params(folder / "params", whole.model.abstract_params())) != fingerprint(whole.params):
        return "a checkpoint gives other weights"
    path = folder / "model.fjax"
    artifact.save(path, whole.params, model=run.model, codec="int8")
    apply, once, _ = artifact.load(path)
    if fingerprint(once) != fingerprint(artifact.load(path)[1]):
        return "an artifact gives other weights when it is read again"
    if fingerprint(once) != fingerprint(artifact.quantize(whole.params, "int8")):
        return "an artifact gives other weights than quantizing does"
    logits = apply(once, np.zeros((1, 4), np.int32))
    return "" if np.isfinite(np.asarray(logits, np.float64)).all() else "an artifact gives logits that are not finite"


def costs(run: Run, whole: Trained, _: Path) -> str:
    """What is predicted of every phase is what the compiled step says of itself."""
    found = cost.predict(whole.model, whole.config, whole.schedule)
    plan = RunPlan(whole.model, whole.config, whole.schedule)
    for index, phase in enumerate(found.phases):
        program: Any = plan.lower(index).compile()
        sizes = {"argument_bytes": program.memory_analysis().argument_size_in_bytes}
        # XLA counts one round of a loop, and on the CPU what it takes to make bfloat16 of float32.
        in_loops = run.train["remat"] or run.train["accumulation"] > 1 or run.model["family"] == "nemotron_h"
        if run.train["compute_dtype"] == "float32" and not in_loops:
            sizes["flops"] = program.cost_analysis()["flops"]
        for name, size in sizes.items():
            if abs(getattr(phase, name) / size - 1) > _COST[name]:
                return f"phase {index}: {name}={getattr(phase, name):,.0f}, compiled {size:,.0f}"
    return ""


LAWS: Mapping[str, Callable[[Run, Trained, Path], str]] = {
    "frozen bits": frozen_bits,
    "resume": resumed,
    "sharded": sharded,
    "traced mask": traced,
    "save and load": saved,
    "cost": costs,
}
HOLDS, REFUSED, BROKEN = "holds", "refused", "BROKEN"


def judge(run: Run, laws: Mapping[str, Callable[..., str]] = LAWS) -> dict[str, tuple[str, str]]:
    """Of each law whether it holds, and what was said."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            whole = Trained(run, Path(folder) / "whole")
        except UserError as error:
            return {"run": (REFUSED, str(error))}
        except Exception as error:
            return {"run": (BROKEN, f"{type(error).__name__}: {error}")}
        return {name: _outcome(law, run, whole, Path(folder)) for name, law in laws.items()}


def _outcome(law: Callable[[Run, Trained, Path], str], run: Run, whole: Trained, folder: Path) -> tuple[str, str]:
    try:
        told = law(run, whole, folder)
    except UserError as error:
        return REFUSED, str(error)
    except Exception as error:
        return BROKEN, f"{type(error).__name__}: {error}"
    return (BROKEN, told) if told else (HOLDS, "")


def _set_up_jax(cache: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_disable_most_optimizations", True)  # as the suite: programs that run for milliseconds
    jax.config.update("jax_compilation_cache_dir", cache)  # a run and the same run resumed have the same programs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def main() -> int:
    """Runs a campaign; a line for each broken law, then a table, and why what was refused was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    given = parser.parse_args()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as cache:
        _set_up_jax(cache)
        for number in range(given.first, given.first + given.runs):
            for law, (found, told) in judge(run := draw(given.seed, number)).items():
                counts[law, found] += 1
                if found == BROKEN:
                    print(f"BROKEN {number}, {law}: {told[:300]}\n    {json.dumps(vars(run), default=str)}", flush=True)
                if found == REFUSED:
                    reasons[f"{law}: {told[:100]}"] += 1
    print(f"{'':16}" + "".join(f"{name:>10}" for name in (HOLDS, REFUSED, BROKEN)))
    for law in ("run", *LAWS):
        print(f"{law:16}" + "".join(f"{counts[law, found]:10,}" for found in (HOLDS, REFUSED, BROKEN)))
    for reason, count in reasons.most_common(20):
        print(f"{count:5} {reason}")
    broken = sum(count for (_, found), count in counts.items() if found == BROKEN)
    print(f"{given.runs:,} runs, seed {given.seed}: {broken} laws broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
