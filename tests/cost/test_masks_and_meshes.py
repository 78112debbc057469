"""What of the backward pass a mask leaves, and that bad input is told in one line."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezejax import FreezeSchedule, UserError, cost, models
from freezejax.training.config import TrainConfig
from tests.cost.grid import ALL, GEGLU

CONFIG = TrainConfig(steps=4, batch_size=8, seq_len=64)
LEAVES = [f"blocks/{i}/{leaf}" for i in (0, 1) for leaf in ("ln1/scale", "attn/qkv/kernel", "mlp/up/kernel")]
LEAVES += ["tok_emb/embedding", "ln_f/scale"]


def predict(model, rules, config=CONFIG, **more):
    return cost.predict(models.build(**model), config, FreezeSchedule([(0, rules)]), **more).phases[0]


@settings(max_examples=6, deadline=None)
@given(st.sets(st.sampled_from(LEAVES)), st.sampled_from(LEAVES))
def test_freezing_more_never_costs_more(trainable, also_frozen):
    names = sorted(trainable)
    rules = [(name, True) for name in names] + [(".*", False)]
    fewer = [(name, True) for name in names if name != also_frozen] + [(".*", False)]
    more, less = predict(GEGLU, rules), predict(GEGLU, fewer)
    assert less.flops <= more.flops
    assert less.argument_bytes <= more.argument_bytes
    assert less.gradient_bytes <= more.gradient_bytes


@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_devices_share_the_work_and_frozen_weights_are_never_reduced(mesh):
    model = {**GEGLU, "vocab_size": 320}
    alone, spread = predict(model, ALL), predict(model, ALL, mesh=mesh)
    assert spread.devices == 8
    assert 0.99 * alone.matmul_flops <= 8 * spread.matmul_flops < 1.3 * alone.matmul_flops
    head_alone = [(".*embedding", True), (".*", False)]
    frozen = predict(model, head_alone, mesh=mesh).collective_bytes
    trained = spread.collective_bytes
    assert frozen["reduce-scatter"] < 0.5 * trained["reduce-scatter"] or mesh == {"data": 8}
    assert frozen["all-gather"] == pytest.approx(trained["all-gather"], rel=0.35)


def test_seeded_weights_are_never_gathered():
    stored = predict(GEGLU, ALL, mesh={"fsdp": 8}).collective_bytes
    every = [{"pattern": ".*/kernel", "kind": "map"}]
    seeded = predict({**GEGLU, "weights": every}, ALL, mesh={"fsdp": 8})
    embedding = 300 * 112 * 4
    assert stored["all-gather"] > 5 * embedding
    # 8 does not divide the vocabulary of 300, so the embedding is whole on every device.
    assert seeded.collective_bytes["all-gather"] == 0


def test_accumulation_draws_maps_in_every_microbatch_and_exchanges_again():
    model = {**GEGLU, "weights": [{"pattern": ".*/(gate|up)/kernel", "kind": "map"}]}

    def cost_of(draw_maps, parts, **more):
        return predict(model, ALL, dataclasses.replace(CONFIG, draw_maps=draw_maps, accumulation=parts), **more)

    whole, halves = (
        {mode: cost_of(mode, parts).flops for mode in ("per_layer", "per_step", "once")} for parts in (1, 2)
    )
    drawn = {mode: (whole[mode] - whole["once"], halves[mode] - halves["once"]) for mode in ("per_step", "per_layer")}
    assert drawn["per_step"][0] == drawn["per_step"][1] > 0
    assert 2 * drawn["per_layer"][0] == drawn["per_layer"][1] > 0
    once, again = (cost_of("per_layer", parts, mesh={"fsdp": 2}).collective_bytes for parts in (1, 2))
    scalars = 64  # those of the norm of the gradient are summed once
    assert again == {
        kind: pytest.approx(2 * size, abs=scalars if kind == "all-reduce" else 0) for kind, size in once.items()
    }
    assert min(once.values()) > 0


def test_stored_bytes_follow_the_codec():
    assert predict(GEGLU, ALL, codec="int4").stored_bytes < predict(GEGLU, ALL, codec="int8").stored_bytes


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"fdsp": 8}, "there is no axis 'fdsp'; nearest: fsdp"),
        ({"fsdp": 0}, "fsdp=0: expected an integer of at least 1"),
        (
            {"data": 3},
            "train.batch_size / train.accumulation=8: expected a multiple of 3, the parts that train.mesh splits",
        ),
    ],
    ids=["axis", "size", "batch"],
)
def test_bad_mesh_is_told(mesh, message):
    with pytest.raises(UserError, match=message):
        predict(GEGLU, ALL, mesh=mesh)
