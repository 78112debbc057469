"""Random maps through the loop: the same run wherever they are drawn, never in a checkpoint, no cost of training."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import FreezeSchedule, UserError, models
from freezejax.paths import leaf_paths
from freezejax.training.checkpoints import Checkpoints
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan
from freezejax.training.state import fingerprint
from freezejax.weights import count_seeded, draw_maps, maps_of

ALL = [(".*", True)]  # seeds never train
FROZEN_GAIN = [(".*/(gain|a)", False), (".*", True)]
MODES = ("per_layer", "per_step", "once")
# A square map with a gain, and one under an adapter.
MODEL = {
    "weights": [
        {"pattern": ".*/attn/out/kernel", "kind": "map"},
        {"pattern": ".*/attn/out/kernel", "kind": "gain"},
        {"pattern": ".*/down/kernel", "kind": "map", "distribution": "rademacher"},
        {"pattern": ".*/down/kernel", "kind": "lora", "rank": 2},
    ],
}
CASES = {
    "adamw, ema, accumulation": (MODES, {"ema_decay": 0.9, "accumulation": 2}),
    "muon, bfloat16": (("per_layer", "once"), {"optimizer": {"name": "muon"}, "compute_dtype": "bfloat16"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_has_the_same_bits_wherever_its_maps_are_drawn(case, run, tmp_path):
    modes, changes = CASES[case]

    def final(mode):
        fields = {"model": MODEL, "draw_maps": mode, "base_seed": 5, "steps": 5, **changes}
        return run(tmp_path / mode, [(0, ALL)], **fields)[0].params

    found = {mode: final(mode) for mode in modes}
    assert len({fingerprint(params) for params in found.values()}) == 1
    assert all(weight.levels is None for params in found.values() for weight in maps_of(params))
    params = found["per_layer"]
    seeds = {np.asarray(weight.seed).tobytes() for weight in maps_of(params)}
    assert seeds == {np.asarray(jax.random.key_data(jax.random.key(5))).tobytes()}
    block = params["blocks"][0]
    assert float(jnp.abs(block["attn"]["out"]["kernel"].gain - 1).max()) > 0  # what may train does
    assert float(jnp.abs(block["mlp"]["down"]["kernel"].b).max()) > 0


RESUMED = [(0, ALL), (4, FROZEN_GAIN)]
STATE = {"draw_maps": "once", "ema_decay": 0.8, "on_thaw": "keep", "base_seed": 5, "model": {**MODEL, "dropout": 0.1}}


def test_a_run_stopped_around_its_boundary_ends_with_the_same_bits(run, tmp_path):
    """Stored maps are drawn again by every process; a checkpoint has only their seed."""
    whole, recorder = run(tmp_path / "whole", RESUMED, **STATE)
    for stop_at in (4, 6):
        assert run(tmp_path / "parts", RESUMED, stop_at=stop_at, **STATE)[0] is None
    found, last = run(tmp_path / "parts", RESUMED, **STATE)
    assert last.begun == [6]
    assert last.losses() == recorder.losses()[6:]
    assert fingerprint(found.params) == fingerprint(whole.params)


def test_the_base_seed_moves_the_run_and_the_seed_does_not_move_the_maps(run, tmp_path):
    def seeds_and_losses(**seeds):
        model = {"weights": [{"pattern": ".*/gate/kernel", "kind": "map", "distribution": "rademacher"}]}
        found, recorder = run(tmp_path / str(seeds), [(0, ALL)], model=model, steps=2, **seeds)
        return [weight.seed.tolist() for weight in maps_of(found.params)], recorder.losses()

    start, other_base, other_seed = seeds_and_losses(), seeds_and_losses(base_seed=1), seeds_and_losses(seed=1)
    assert start[0] == other_seed[0] != other_base[0]
    assert len({losses[0] for _, losses in (start, other_base, other_seed)}) == 3


def stored_bytes(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_a_checkpoint_holds_seeds_and_no_map(run, tmp_path):
    weights = [{"pattern": ".*/kernel", "kind": "map", "distribution": "hadamard"}]
    model = {"model_dim": 64, "mlp_mult": 8, "weights": weights}
    run(tmp_path, [(0, ALL)], model=model, draw_maps="once", stop_at=2)
    assert 0 < stored_bytes(tmp_path) < 4 * (64 * 192 + 64 * 64 + 3 * 64 * 512) / 2


def test_counterpart_a_checkpoint_of_drawn_maps_is_as_large_as_they_are(build, tmp_path):
    params = build(
        model_dim=64, mlp_mult=8, weights=[{"pattern": ".*/kernel", "kind": "map", "distribution": "normal_f32"}]
    ).init(jax.random.key(0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, draw_maps(params), {})
    assert stored_bytes(tmp_path) > 0.8 * 4 * count_seeded(params)


def test_a_rule_for_seeds_that_are_not_there_is_told(run, tmp_path):
    with pytest.raises(UserError, match=r"rule '\.\*/seed' matches no leaf"):
        run(tmp_path, [(0, [(".*/seed", False), *ALL])])


# Law 5. No two sizes alike, so that a shape in a program names one matrix: down is 96 x 64.
BATCH, SEQ, DIM, HIDDEN, VOCAB = 8, 128, 64, 96, 80
SEEDED_WEIGHTS = DIM * HIDDEN


def compiled_run(mode="per_layer", **rule):
    """`(the plan of a run, its compiled step)` with the down projection as the rule says."""
    sizes = {"vocab_size": VOCAB, "num_layers": 1, "model_dim": DIM, "num_heads": 2, "mlp_mult": HIDDEN / DIM}
    model = models.build("geglu", **sizes, weights=[{"pattern": ".*/down/kernel", "kind": "map", **rule}])
    config = TrainConfig(steps=4, batch_size=BATCH, seq_len=SEQ, draw_maps=mode)
    schedule = FreezeSchedule([(0, ALL)])
    plan = RunPlan(model, config, schedule)
    return plan, plan.lower(0).compile()


@pytest.fixture(scope="module")
def programs():
    """Seeded, drawn in each layer and pass or stored; and trained from the same maps."""
    return {"per_layer": compiled_run("per_layer"), "once": compiled_run("once"), "trained": compiled_run(trained=True)}


def gradient_matmuls(program):
    """Products whose result has the shape of the down projection, or of its transpose."""
    return len(re.findall(rf"f32\[({DIM},{HIDDEN}|{HIDDEN},{DIM})\]\S* (dot|custom-call)\(", program.as_text()))


def flops(program):
    return program.cost_analysis()["flops"]


def test_a_stored_map_saves_the_matmuls_of_its_gradient(programs):
    """The programs that draw maps count the drawing, too; how many matmuls they have is told below."""
    trained, drawn = flops(programs["trained"][1]), flops(programs["once"][1])
    assert trained - drawn == pytest.approx(2 * BATCH * SEQ * SEEDED_WEIGHTS, rel=0.01)


def test_no_program_has_a_gradient_of_a_map(programs):
    found = {name: gradient_matmuls(program) for name, (_, program) in programs.items()}
    assert all(found[mode] == found["trained"] - 1 for mode in ("per_layer", "once")), found


def test_no_map_has_a_moment_an_average_or_a_gradient_buffer(programs):
    for mode in ("per_layer", "once"):
        run, program = programs[mode]
        state, _ = run.abstract_state(0).split(run.phases[0].mask)
        shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
        assert not shapes & {(HIDDEN, DIM), (2,)}
        out = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state, (jnp.float32(0),) * 2)))
        assert program.memory_analysis().output_size_in_bytes == pytest.approx(out, rel=0.01)
        assert not [path for path in leaf_paths(state) if path.endswith("/seed")]
    trained = programs["trained"][0].abstract_state(0).split(programs["trained"][0].phases[0].mask)[0]
    assert (HIDDEN, DIM) in {leaf.shape for leaf in jax.tree.leaves(trained)}


def test_stored_maps_are_arguments_and_drawn_ones_are_not(programs):
    arguments = {mode: program.memory_analysis().argument_size_in_bytes for mode, (_, program) in programs.items()}
    assert abs(arguments["once"] - arguments["per_layer"] - 4 * SEEDED_WEIGHTS) <= 8 * 4  # seeds are not read
