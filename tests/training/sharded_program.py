"""Run by test_sharded.py in a process of its own: runs of the real loop on 8 simulated devices. Prints JSON."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from freezejax import sharding
from freezejax.aot.hlo import collectives
from freezejax.data import ByteTable
from freezejax.sharding import Layout, make_mesh
from freezejax.training.batches import TokenBatches
from freezejax.training.checkpoints import load_params, save_params
from freezejax.training.evaluation import make_evaluator
from freezejax.training.interrupts import Stopped, StopSignal
from freezejax.training.loop import train
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.plan import RunPlan
from freezejax.training.processes import to_host
from freezejax.training.state import fingerprint
from freezejax.weights import maps_of
from tests.training.sharded_cases import ALL, CASES, GATE_UP, RESUMED, VOCAB, Case

TOKENS = np.where(np.arange(4000) % 4 == 0, np.random.default_rng(0).integers(0, 61, 4000), np.arange(4000) * 7 % 61)


class Records:
    """Losses of every step and figures of every evaluation; asks for a stop after `stop_at` updates."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop, self.stop_at = StopSignal(), stop_at
        self.losses: dict[int, float] = {}
        self.evaluations: dict[int, float] = {}

    def begin(self, step: int) -> None:
        self.begun = step
        self._ask(step)

    def write(self, record: dict[str, Any]) -> None:
        if "loss" in record:
            self.losses[record["step"]] = record["loss"]
            self._ask(record["step"])
        elif "val_ce" in record:
            self.evaluations[record["step"]] = record["val_ce"]

    def _ask(self, step: int) -> None:
        if step + 1 == self.stop_at:
            self.stop.received = 15

    def close(self) -> None:
        pass


def run(case: Case, mesh: Mesh | None, directory: Path, stop_at: int | None = None) -> tuple[Records, Any]:
    """`(records, final parameters)`; no parameters where it was stopped."""
    model, config, schedule = case.build()
    layout = None if mesh is None else Layout(mesh, model.abstract_params(), model.sharding)
    table = ByteTable(np.ones(VOCAB, np.int64), np.zeros(VOCAB, bool), np.zeros(VOCAB, bool))
    held_out = TOKENS[: 24 * 16 + 1].astype(np.uint16)
    dtype = config.compute_dtype
    score = make_evaluator(model.apply, held_out, table, batch_size=16, seq_len=16, compute_dtype=dtype, layout=layout)
    records = Records(stop_at)
    try:
        found = train(
            model,
            LanguageModelling(model, dtype, lambda params: score(params)._asdict()),
            TokenBatches(TOKENS.astype(np.uint16), config, mesh),
            config,
            schedule,
            directory,
            mesh=mesh,
            sinks=[records],
            stop=records.stop,
        )
    except Stopped:
        return records, None
    return records, found.params


def largest_difference(one: Any, other: Any) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.float64(a) - np.float64(b)).max()) for a, b in pairs)


def differences(found: tuple[Records, Any], expected: tuple[Records, Any]) -> dict[str, float]:
    """Of losses (over the steps that were run), evaluations and final parameters."""
    (records, params), (wanted, wanted_params) = found, expected
    return {
        "losses": largest_difference(records.losses, {step: wanted.losses[step] for step in records.losses}),
        "evaluations": largest_difference(
            records.evaluations, {step: wanted.evaluations[step] for step in records.evaluations}
        ),
        "params": largest_difference(params, wanted_params),
    }


def law_10(directory: Path) -> dict[str, Any]:
    """Every case on its meshes against one device."""
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        alone = run(case, None, directory / name)
        found[name] = {
            "steps": sorted(alone[0].losses),
            "change": alone[0].losses[5] - alone[0].losses[1],
            "meshes": {},
        }
        for sizes in case.meshes:
            here = run(case, make_mesh(*sizes), directory / name / str(sizes))
            found[name]["meshes"][str(sizes)] = differences(here, alone)
    return found


def law_9(directory: Path) -> dict[str, Any]:
    """Stopped on one mesh one step after a freeze, with a thaw to come, and continued on others."""
    first = make_mesh(8, 1, 1)
    whole = run(RESUMED, first, directory / "whole")
    stopped, _ = run(RESUMED, first, directory / "stopped", stop_at=3)
    found: dict[str, Any] = {"steps before": sorted(stopped.losses)}
    for name, mesh in {
        "(8, 1, 1)": first,
        "(1, 8, 1)": make_mesh(1, 8, 1),
        "one device": None,
    }.items():
        shutil.copytree(directory / "stopped", directory / name)
        resumed = run(RESUMED, mesh, directory / name)
        equal = fingerprint(resumed[1]) == fingerprint(whole[1])
        steps = sorted(resumed[0].losses)
        found[name] = {"steps": steps, "same bits": equal, "differences": differences(resumed, whole)}
        found[name]["final"], found[name]["saved"] = (
            shares(resumed[1]),
            saved_and_loaded(resumed[1], directory / "params"),
        )
    return found


def saved_and_loaded(params: Any, folder: Path) -> bool:
    """Whether weights saved as they lie come back whole on one device, and gathered on the host, with the same bits."""
    save_params(folder, params)
    loaded = load_params(folder, jax.eval_shape(lambda: jax.tree.map(jnp.zeros_like, params)))
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(loaded))
    return fingerprint(loaded) == fingerprint(to_host(params)) == fingerprint(params)


def first_states() -> dict[str, Any]:
    """Fresh weights on a mesh beside those of one device: bits, and whether any was made outside a program."""
    found = {}
    for name, case in CASES.items():
        model, config, schedule = case.build()
        in_a_program: list[bool] = []

        def init(key: Any, root: Any = None, *, init: Any = model.init, seen: list[bool] = in_a_program) -> Any:
            made = init(key, root)
            seen.append(all(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(made)))
            return made

        state = RunPlan(model._replace(init=init), config, schedule, make_mesh(*case.meshes[0])).begin()
        alone = RunPlan(model, config, schedule).begin()
        found[name] = {"same bits": fingerprint(state) == fingerprint(alone), "in a program": in_a_program}
    return found


def storage() -> dict[str, Any]:
    """What one device holds of a state, and what a step does to the buffers that it is given."""
    model, config, schedule = Case({"num_layers": 2}, {"ema_decay": 0.9}, ((0, [GATE_UP, ALL]),)).build()
    plan = RunPlan(model, config, schedule, make_mesh(1, 8, 1))
    state = plan.begin()
    step_state, frozen = state.split(plan.phases[0].mask)
    batch = {name: np.zeros((16, 16), np.int32) for name in ("inputs", "targets")}
    placed = jax.device_put(batch, plan.layout.batch)
    before = pointers(frozen)
    sizes = {"params": shares(step_state[0]), "frozen": shares(frozen), "moments and mean": shares(step_state[1:])}
    state_bytes = sum(map(shard_bytes, jax.tree.leaves(step_state)))
    program = plan.lower(0).compile()
    after, _ = program(step_state, frozen, plan.key(), np.int32(0), placed)
    return {
        "before": sizes,
        "after": {"params": shares(after.trainable), "moments and mean": shares(after[1:])},
        "donated": all(leaf.is_deleted() for leaf in jax.tree.leaves(step_state) if leaf.size > 1),
        "frozen stay": not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen)) and pointers(frozen) == before,
        "frozen returned": len(jax.tree.leaves(after)) - len(jax.tree.leaves(step_state)),
        "aliased": program.memory_analysis().alias_size_in_bytes,
        "step state": state_bytes,
        "stored maps": [shard_bytes(leaf) * 8 / leaf.nbytes for leaf in stored_maps()],
    }


def stored_maps() -> list[jax.Array]:
    case = CASES["geglu, maps drawn once under adapters"]
    plan = RunPlan(*case.build(), make_mesh(2, 2, 2))
    held = plan.held(plan.begin().split(plan.phases[0].mask)[1])
    return [weight.levels for weight in maps_of(held)]


def experts() -> dict[str, Any]:
    """Whether any program gathers the kernels of experts, which over `expert` or over `fsdp` are in shards."""
    shape, found = (4, 32, 16), {}
    for sizes in ((2, 1, 1, 4), (2, 4, 1, 1)):
        plan = RunPlan(*CASES["nemotron_h, experts on devices of their own"].build(), make_mesh(*sizes))
        kernel = plan.begin().params["blocks"][1]["mixer"]["experts"]["up_proj"]["kernel"]
        text = plan.lower(0).compile().as_text()
        gathers = [one.shape for one in collectives(text) if one.kind == "all-gather"]
        found[str(sizes)] = {"share": kernel.nbytes / shard_bytes(kernel), "gathers": shape in gathers}
    return found


def shard_bytes(leaf: jax.Array) -> int:
    return max(shard.data.nbytes for shard in leaf.addressable_shards)


def shares(tree: Any) -> dict[str, int]:
    """Bytes of a tree, and of its part on one device."""
    leaves = jax.tree.leaves(tree)
    return {"all": sum(leaf.nbytes for leaf in leaves), "device": sum(map(shard_bytes, leaves))}


def pointers(tree: Any) -> list[int]:
    shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
    return [shard.data.unsafe_buffer_pointer() for shard in shards]


def counterparts(directory: Path) -> dict[str, Any]:
    """The differences that law 10 would show, were the gradient of a kernel that of one shard of the rows."""
    case = CASES["geglu, AdamW"]
    alone = run(case, None, directory / "counterpart")

    def rows_of_one_shard(stored: Any, saved: Any, grad: jax.Array) -> Any:
        x_grad, _ = sharding._sharded_backward(stored, saved, grad)
        own = grad.shape[0] // 8
        _, kernel_grad = sharding._sharded_backward(stored, (saved[0][:own], saved[1]), grad[:own])
        return x_grad, kernel_grad

    kept = sharding._sharded_matmul
    unsummed = jax.custom_vjp(kept.fun, nondiff_argnums=(2,))
    unsummed.defvjp(sharding._sharded_forward, rows_of_one_shard)
    found = {}
    with mock.patch.object(sharding, "_sharded_matmul", unsummed):
        found["not summed"] = differences(run(case, make_mesh(8, 1, 1), directory / "unsummed"), alone)
    return found


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_disable_most_optimizations", True)  # of LLVM: compiling is nearly all of the time
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", f"{folder}/xla")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
        directory = Path(folder)
        found = {
            "law 10": law_10(directory / "10"),
            "law 9": law_9(directory / "9"),
            "storage": storage(),
            "experts": experts(),
            "first states": first_states(),
            "counterparts": counterparts(directory),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
