"""Which run a folder of checkpoints belongs to: what may not change between one start of a run and the next."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from freezejax.data.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.paths import leaf_paths
from freezejax.training.plan import RunPlan

NAME = "run.json"  # in the folder of the checkpoints
# How a run is carried out, not what it computes. Its length is not among them: rates and fractions follow from it.
MAY_CHANGE = ("mesh", "log_every", "eval_every", "checkpoint_every", "draw_maps", "remat", "prefix_cache_gib")


def origin(plan: RunPlan) -> dict[str, Any]:
    """What a run is, as JSON: the fields of its config and its model's, its leaves, and what trains when."""
    config = {name: value for name, value in dataclasses.asdict(plan.config).items() if name not in MAY_CHANGE}
    leaves = zip(leaf_paths(plan.abstract_params), jax.tree.leaves(plan.abstract_params), strict=True)
    found = {
        **flatten_dict({"train": config, "model": dataclasses.asdict(plan.model.config)}, sep="."),
        **{f"leaf {path}": f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves},
        "the schedule": [[phase.start, phase.stop, _digest(phase.mask)] for phase in plan.phases],
    }
    return json.loads(json.dumps(found, default=str))


def claim(folder: Path, plan: RunPlan, *, fresh: bool) -> None:
    """Says in a fresh folder which run its checkpoints will be of; refuses one with the checkpoints of another run.

    It names a field that differs. A folder that does not say whose its checkpoints are is taken.
    """
    file, now = folder / NAME, origin(plan)
    if fresh:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(now, indent=1))
    if fresh or not file.exists():
        return
    try:
        known = dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError:
        raise UserError(f"{file} cannot be read as JSON; train in another directory") from None
    for name in [*now, *known]:
        there, here = known.get(name, "absent"), now.get(name, "absent")
        if there != here:
            differs = "another" if name == "the schedule" else f"{there} there, {here} here"
            wrong = f"this directory belongs to another run: {name} is {differs}"
            raise UserError(f"{folder.parent}: {wrong}; train in a fresh directory")


def _digest(mask: Any) -> str:
    return hashlib.sha256(bytes(map(bool, jax.tree.leaves(mask)))).hexdigest()[:16]
