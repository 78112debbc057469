"""Fine-tuning parts of a base: which rows a study has, and what their runs say beside a loss.

What `freeze_except` does with puzzles and `domains` with text. A config has `types`, `pairs`, `longer`, `rates`,
`mixed`, `few` and `tune`; see experiments/configs/freeze_except.py.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.engine.fields import check_range
from experiments.engine.tasks import Minimize, Start, Task
from experiments.engine.variants import Variant
from experiments.report import equal_terms, forgetting, forgotten
from freezejax import models
from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.paths import PyTree, leaf_paths
from freezejax.roles import leaves, parameter_count
from freezejax.schedules import FreezeSchedule
from freezejax.selection import only
from freezejax.training import processes
from freezejax.training.objectives.base import Objective
from freezejax.training.objectives.few import Few

BASE, ALL = "base", "all"
EVERYTHING, NOTHING = (FreezeSchedule([(0, [(".*", trains)])]) for trains in (True, False))


class Part(NamedTuple):
    """A row: the types of module that train (None: everything), and how it differs from the config."""

    name: str
    types: tuple[str, ...] | None
    steps: float = 1.0  # times those of `config.tune`
    rate: float = 1.0  # times its learning rate
    mixed: float = 0.0  # share of what the base was trained on in the batches
    few: bool = False  # only as many parameters, chosen at random, as the type has that has fewest

    def schedule(self, params: PyTree) -> FreezeSchedule:
        """It trains, nothing else does. Raises UserError for a type that the model does not have."""
        return EVERYTHING if self.types is None else FreezeSchedule([(0, only(params, self.types))])


def parts(config: ConfigDict) -> list[Part]:
    """The single types and everything, then pairs, and each single again in every other way that the config asks for.

    >>> asked = {"types": "up,down", "pairs": "up down", "longer": 1, "rates": (1.0,), "mixed": 0.0, "few": True}
    >>> [part.name for part in parts(ConfigDict(asked))]
    ['up', 'down', 'all', 'up_and_down', 'up_few', 'down_few', 'all_few']
    """
    found = [*singles(config), *(Part("_and_".join(names), names) for names in _names(config.pairs))]
    ways: list[tuple[str, dict[str, Any]]] = []
    ways += [("longer", {"steps": config.longer})] * (config.longer > 1)
    ways += [(f"rate_{rate:g}", {"rate": rate}) for rate in config.rates if rate != 1]
    ways += [("mixed", {"mixed": config.mixed})] * (config.mixed > 0)
    ways += [("few", {"few": True})] * config.few
    return found + [part._replace(name=f"{part.name}_{way}", **how) for way, how in ways for part in singles(config)]


def singles(config: ConfigDict) -> list[Part]:
    """One row for each type, and everything."""
    return [*(Part("_and_".join(names), names) for names in _names(config.types)), Part(ALL, None)]


def _names(text: str) -> list[tuple[str, ...]]:
    """Names with a space between them, groups with a comma: "up down, out" -> [("up", "down"), ("out",)]."""
    return [tuple(group.split()) for group in text.split(",") if group.strip()]


def tuned(config: ConfigDict, part: Part) -> dict[str, Any]:
    """How a row trains, as fields of TrainConfig."""
    train, tune = config.train.to_dict(), config.tune
    rate = tune.learning_rate * part.rate
    optimizer = {**train["optimizer"], "learning_rate": rate, "adam_learning_rate": rate, "schedule": tune.schedule}
    return {
        **train,
        "steps": int(tune.steps * part.steps),
        "batch_size": tune.batch_size,
        "eval_every": int(tune.steps * part.steps),
        "checkpoint_every": 0,
        "optimizer": {**optimizer, "weight_decay": 0.0, "warmup_steps": 0, "warmdown_steps": 0},
    }


def base_row(model: Mapping[str, Any], config: ConfigDict, start: Start, minimize: Minimize) -> Variant:
    """A base that is only scored: one step in which nothing trains."""
    once = {**config.train.to_dict(), "steps": 1, "batch_size": config.tune.batch_size}
    return Variant(BASE, model, once, NOTHING, minimize=minimize, start=start)


def variants(
    config: ConfigDict,
    model: Mapping[str, Any],
    start: Start,
    minimize: Callable[[Part, int], Minimize],
    needs: Sequence[str] = (),
) -> list[Variant]:
    """A row of the study for each part; `minimize` gets how many parameters train on average, 0 = all that may."""
    for field, least in (("tune.steps", 1), ("tune.batch_size", 1), ("longer", 1), ("rates", 0)):
        check_range(config, field, least)
    if not 0 <= config.mixed < 1:
        raise UserError(f"config.mixed={config.mixed}: expected a share from 0 to below 1")
    params = models.build(**model).abstract_params()
    sizes = {part: sum(size_of(params, part).values()) for part in parts(config)}
    fewest = min(sizes.values())
    if config.few and config.train.optimizer.name == "muon":
        raise UserError("config.few: muon moves all of a matrix; use adamw, or --config.few=False")
    return [
        Variant(
            part.name,
            model,
            tuned(config, part),
            part.schedule(params),
            minimize=minimize(part, fewest if part.few else 0),
            start=start,
            needs=needs,
        )
        for part, size in sizes.items()
        if not (part.few and size == fewest)  # that is the row itself
    ]


def size_of(params: PyTree, part: Part) -> dict[str, int]:
    """Parameters of each leaf that a row trains. Takes parameters or their shapes."""
    mask = part.schedule(params).mask_at(params, 0)
    trains = zip(leaf_paths(params), leaves(params), jax.tree.leaves(mask), strict=True)
    return {path: parameter_count(leaf) for path, leaf, on in trains if on}


class Scored(NamedTuple):
    """What parameters are worth: figures, and of every item its score and its loss."""

    figures: Mapping[str, float]
    scores_N: np.ndarray
    losses_N: np.ndarray


class Scorer(Protocol):
    """An evaluation of the engine that knows of items."""

    def __call__(self, params: PyTree) -> Mapping[str, float]:
        """The figures alone."""

    def items(self, params: PyTree) -> Scored:
        """All of it."""

    def losses(self, params: PyTree) -> np.ndarray:
        """The items' losses alone, [N]."""


def scorer(task: Task, evaluate: Scorer, base: PyTree | None) -> Callable[[PyTree], dict[str, float]]:
    """What a run reports when it is evaluated; what its items say goes into its folder.

    Of a run that starts from a `base` also how far the weights are from it, the norm of the difference, and the losses
    on the way there.
    """

    def score(params: PyTree) -> dict[str, float]:
        figures, scores_N, losses_N = evaluate.items(params)
        losses, moved = [losses_N], {}
        if base is not None:
            start = jax.tree.map(lambda b, p: jax.device_put(b, p.sharding), base, params)
            moved = {forgetting.MOVED: float(_distance(params, start))}
            losses += [evaluate.losses(_between(start, params, share)) for share in forgetting.SHARES[1:]]
        found = forgetting.Found(scores_N, np.array(losses), moved.get(forgetting.MOVED, 0.0))
        processes.on_main(lambda: forgetting.write_items(task.directory, found))
        return {**figures, **moved}

    return score


def few_of(objective: Objective, task: Task, part: Part, count: int) -> Objective:
    """The objective with so many parameters; with all where `count` is 0."""
    sizes = size_of(task.model.abstract_params(), part)
    return Few(objective, sizes, count, task.config.seed) if count else objective


@jax.jit
def _distance(params: PyTree, before: PyTree) -> jax.Array:
    squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(jnp.float32(a) - jnp.float32(b))), params, before)
    return jnp.sqrt(sum(jax.tree.leaves(squares)))


@jax.jit
def _between(base: PyTree, params: PyTree, share: float) -> PyTree:
    """So far on the straight line from a base."""
    return jax.tree.map(lambda b, p: (b + share * (jnp.float32(p) - jnp.float32(b))).astype(p.dtype), base, params)


def tell(
    workdir: Path,
    rows: Sequence[Mapping[str, Any]],
    items: forgetting.Items,
    config: ConfigDict,
    claims: forgetting.Claims = forgetting.NO_CLAIMS,
    name: str = "forgetting",
    file: str = forgetting.ITEMS,
) -> None:
    """Writes and prints what changed in rows of a finished study, of which the base is the first."""
    if len(rows) < 2:
        print("No row beside the base: nothing to compare.")
        return
    found = forgetting.measure(workdir, rows, items, claims, file)
    if file == forgetting.ITEMS:
        equal_terms.add(found, workdir, rows, items, [part.name for part in singles(config)])
    write_atomically(workdir / f"{name}.json", json.dumps(found, indent=1) + "\n")
    write_atomically(workdir / f"{name}.md", text := forgotten.as_markdown(found))
    write_atomically(workdir / f"{name}.svg", forgotten.heat_map(found))
    write_atomically(workdir / f"{name}_gain.svg", forgotten.gain_against_decay(found))
    print(f"\n{text}\nWritten: {workdir / name}.md, .json, .svg and _gain.svg")


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    """The rows of a finished study."""
    found: list[dict[str, Any]] = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))["rows"]
    return found
