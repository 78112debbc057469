"""What freezing saves of a step: time, compiled FLOPs and memory; and what the usual optax recipes save.

    python -m benchmarks.freezing --json=benchmarks/results/freezing.json
    python -m benchmarks.freezing --write_docs

The first measures and prints its tables: minutes on 2 quiet CPU cores; with --quick a toy size. The second writes the
committed JSON's tables into the pages that quote them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax

from benchmarks import command, pages
from benchmarks.running_step import EVERYTHING, GATE_UP, RunningStep, Sizes, optimizer, phase
from benchmarks.tables import table, verdict
from benchmarks.timing import compare, interleave
from freezejax import FreezeSchedule, scheduled_freeze, trainable_mask
from freezejax.masks import Rule, count_parameters
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.weights import LoraWeight
from freezejax.weights.adapter import Adapter

RESULTS = pages.RESULTS / "freezing.json"
PAGES = (pages.README, pages.PERFORMANCE)
TARGET = 0.05  # of the FLOP ratio: how far the time ratio may be above it
ALL, FROZEN = "nothing frozen", "gate and up"
ADAPTERS, SCALES, BESIDE = "all but adapters", "all but norm scales", "adapters beside their bases"
LORA = [{"pattern": r"blocks/\d+/.*/kernel", "kind": "lora", "rank": 16}]
_MOVED_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large and how often."""

    sizes: Sizes = dataclasses.field(default_factory=lambda: Sizes(num_layers=8))
    rounds: int = 21
    steps: int = 3  # of each program in a round: in training, too, a step follows one of its own kind


QUICK = Settings(Sizes(4, 32, 1, 64, 2, 32), rounds=3, steps=1)


def cases(layers: int) -> dict[str, list[Rule]]:
    """What is frozen, as rules; the first row is the reference. A prefix includes the tied embedding."""
    prefixes = {
        f"prefix of {share} %": [(rf"tok_emb/.*|blocks/({'|'.join(map(str, range(layers * share // 100)))})/.*", False)]
        for share in (25, 50, 75)
    }
    frozen: dict[str, list[Rule]] = {
        ALL: [],
        "one down projection": [(rf"blocks/{layers // 2}/mlp/down/kernel", False)],
        "all down projections": [(r"blocks/\d+/mlp/down/kernel", False)],
        FROZEN: GATE_UP[:1],
        "all attention kernels": [(r"blocks/\d+/attn/.*", False)],
        **prefixes,
    }
    return {name: [*rules, *EVERYTHING] for name, rules in frozen.items()}


def measure(settings: Settings) -> dict[str, Any]:
    """Everything, as it stands in the JSON."""
    environment = pages.environment()
    programs = {name: phase(settings.sizes, rules) for name, rules in cases(settings.sizes.num_layers).items()}
    programs[ADAPTERS], beside = adapters(settings.sizes)
    made = recipes(settings.sizes)
    moved = {name: _largest_change(program, GATE_UP) for name, program in made.items()}
    scales = phase(settings.sizes, [(r".*/scale", True), (".*", False)])
    everything = programs | made | {SCALES: scales, BESIDE: beside}
    calls = {name: lambda program=program: program.run(settings.steps) for name, program in everything.items()}
    samples = interleave(calls, settings.rounds, sample_seconds=0)
    seconds = {name: sample / settings.steps for name, sample in samples.items()}
    costs = {name: _costs(program) for name, program in everything.items()}
    rows = []
    for row in compare(seconds, ALL):
        cost, name = costs[row["name"]], row["name"]
        flop_ratio = cost["flops"] / costs[ALL]["flops"]
        rows.append({**row, **cost, "flop_ratio": flop_ratio, "excess": row["ratio"] / flop_ratio - 1})
        if name in moved:
            rows[-1]["moved"] = moved[name]
    return {
        "settings": dataclasses.asdict(settings),
        "targets": {"excess": TARGET},
        **environment,
        "phases": [row for row in rows if row["name"] in programs],
        "recipes": [row for row in rows if row["name"] in made],
        "adapters": rates({row["name"]: row for row in rows}),
    }


def adapters(sizes: Sizes) -> tuple[RunningStep, RunningStep]:
    """Adapters of rank 16 on every kernel train, and nothing else: as they are, and each product beside its base's."""
    make = lambda: phase(sizes, [(r".*/[ab]", True), (".*", False)], weights=LORA)  # noqa: E731
    with mock.patch.object(LoraWeight, "__call__", Adapter.__call__):
        beside = make()
    return make(), beside


def rates(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How fast the parts of a step with adapters run: what it shares with one without, and what it has beside."""
    parts = {
        f"step, {ALL}": (rows[ALL]["flops"], rows[ALL]["ms_median"]),
        f"step, {SCALES} frozen": (rows[SCALES]["flops"], rows[SCALES]["ms_median"]),
    }
    for name, with_them in {"what adapters add to that": ADAPTERS, "what they add beside their bases": BESIDE}.items():
        parts[name] = tuple(rows[with_them][key] - rows[SCALES][key] for key in ("flops", "ms_median"))
    return [{"name": name, "flops": flops, "ms": ms} for name, (flops, ms) in parts.items()]


def recipes(sizes: Sizes) -> dict[str, RunningStep]:
    """Gate and up frozen the way optax's documentation and forums have it; every gradient is computed."""
    model, base = sizes.model(), optimizer(sizes.config)
    params = model.init(jax.random.key(0))
    mask = trainable_mask(params, GATE_UP)
    labels = jax.tree.map(lambda trains: "train" if trains else "freeze", mask)
    adamw = optax.chain(*_without_clip(sizes))
    clip = optax.clip_by_global_norm(sizes.config.optimizer.clip)
    schedule = FreezeSchedule([(0, GATE_UP), (10**6, EVERYTHING)])
    nothing: Callable[[Any], Any] = lambda grads: grads  # noqa: E731
    zeroed: Callable[[Any], Any] = lambda grads: jax.tree.map(  # noqa: E731
        lambda trains, g: jnp.where(trains, g, 0.0), mask, grads
    )
    forms = {
        "clip outside multi_transform": (
            optax.chain(clip, optax.multi_transform({"train": adamw, "freeze": optax.set_to_zero()}, labels)),
            nothing,
        ),
        "optax.masked": (optax.chain(clip, optax.masked(adamw, mask)), nothing),
        "traced mask": (scheduled_freeze(base, schedule), nothing),
        "zeroed gradients": (base, zeroed),
    }
    objective = LanguageModelling(model, sizes.config.compute_dtype)
    made = {}
    for name, (tx, change) in forms.items():
        step = _whole_step(lambda *args: objective.loss(*args)[0], tx, change)
        made[name] = RunningStep(step, (params, tx.init(params)), (jax.random.key(0),), sizes)
    return made


def _without_clip(sizes: Sizes) -> list[optax.GradientTransformation]:
    config = dataclasses.replace(sizes.config.optimizer, clip=0.0)
    return [optimizer(dataclasses.replace(sizes.config, optimizer=config))]


def _whole_step(
    loss: Callable[..., jax.Array], tx: optax.GradientTransformation, change: Callable[[Any], Any]
) -> Callable[..., Any]:
    def step(state: Any, key: jax.Array, index: jax.Array, batch: Any) -> Any:
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, batch, jax.random.fold_in(key, index))
        updates, opt_state = tx.update(change(grads), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": value}

    return step


def _largest_change(program: RunningStep, rules: list[Rule]) -> float:
    """By how much a few steps change any weight that should be frozen."""
    params = jax.tree.map(jnp.copy, program.state[0])
    program.run(_MOVED_STEPS)
    mask = trainable_mask(params, rules)
    changes = jax.tree.map(lambda m, a, b: 0.0 if m else float(jnp.abs(a - b).max()), mask, params, program.state[0])
    return max(jax.tree.leaves(changes))


def _costs(program: RunningStep) -> dict[str, Any]:
    compiled: Any = program.program
    memory, flops = compiled.memory_analysis(), compiled.cost_analysis()["flops"]
    sizes = {"argument_bytes": memory.argument_size_in_bytes, "temporary_bytes": memory.temp_size_in_bytes}
    weights = program.state.trainable if hasattr(program.state, "trainable") else program.state[0]
    return {"flops": flops, **sizes, "differentiated": count_parameters(weights)}


def write_tables(found: Mapping[str, Any]) -> dict[str, str]:
    """The tables by name, as they stand in the pages."""
    return {
        "phases": table([_line(row) | _judged(row) for row in found["phases"]]),
        "recipes": table([_line(row) | _moves(row) for row in _compared(found)]),
        "adapters": table([_rate(row) for row in found["adapters"]]),
        "machine": pages.sentence(found),
    }


def _compared(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    ours = [row for row in found["phases"] if row["name"] in (ALL, FROZEN)]
    return [*ours, *found["recipes"]]


def _line(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "frozen": row["name"],
        "weights with a gradient": f"{row['differentiated'] / 1e6:.2f} M",
        "arguments, MiB": f"{row['argument_bytes'] / 2**20:.1f}",
        "temporaries, MiB": f"{row['temporary_bytes'] / 2**20:.1f}",
        "GFLOP": f"{row['flops'] / 1e9:.2f}",
        "step, ms": f"{row['ms_median']:.0f}",
        "FLOPs, ratio": f"{row['flop_ratio']:.3f}",
        "time, ratio": f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})",
    }


def _rate(row: Mapping[str, Any]) -> dict[str, str]:
    gflop, seconds = row["flops"] / 1e9, row["ms"] / 1e3
    return {
        "part": row["name"],
        "GFLOP": f"{gflop:.2f}",
        "ms": f"{row['ms']:.0f}",
        "GFLOP per second": f"{gflop / seconds:.0f}",
    }


def _judged(row: Mapping[str, Any]) -> dict[str, str]:
    return {"time against FLOPs": f"{100 * row['excess']:+.0f} %: {verdict(row['excess'] <= TARGET)}"}


def _moves(row: Mapping[str, Any]) -> dict[str, str]:
    return {f"change of a frozen weight in {_MOVED_STEPS} steps": f"{row['moved']:.1e}" if row.get("moved") else "0"}


if __name__ == "__main__":
    command.run(RESULTS, PAGES, lambda quick: measure(QUICK if quick else Settings()), write_tables)
