"""Laws 9 and 10 on 8 simulated devices: a mesh, or a change of mesh, changes a run by rounding errors alone."""

import pytest

from tests.training import sharded_program
from tests.training.sharded_cases import CASES

LOSSES, PARAMS = 1e-5, 1e-4  # largest differences in float32; Adam divides a rounding error by its own size
BFLOAT16_LOSSES, BFLOAT16_PARAMS = 1e-3, 5e-3


@pytest.fixture(scope="module")
def found(run_alone):
    return run_alone(sharded_program)


def is_close(found, losses=LOSSES, params=PARAMS):
    return found["losses"] < losses and found["evaluations"] < losses and found["params"] < params


@pytest.mark.parametrize("name", CASES)
def test_every_loss_evaluation_and_weight_is_that_of_one_device(name, found):
    case = found["law 10"][name]
    assert case["steps"] == [1, 2, 3, 4, 5]
    assert abs(case["change"]) > 100 * LOSSES  # it did train
    assert len(case["meshes"]) == len(CASES[name].meshes)
    bounds = (BFLOAT16_LOSSES, BFLOAT16_PARAMS) if "bfloat16" in name else (LOSSES, PARAMS)
    for mesh, differences in case["meshes"].items():
        assert is_close(differences, *bounds), (mesh, differences)


def test_counterpart_a_gradient_of_one_shard_alone_is_seen(found):
    differences = found["counterparts"]["not summed"]
    assert differences["losses"] > 100 * LOSSES
    assert differences["evaluations"] > 100 * LOSSES
    assert differences["params"] > 10 * PARAMS
    assert differences["losses"] > BFLOAT16_LOSSES


def test_a_run_stopped_after_a_freeze_goes_on_on_any_mesh(found):
    runs = found["law 9"]
    assert runs["steps before"] == [1, 2, 3]
    for mesh, resumed in [item for item in runs.items() if item[0] != "steps before"]:
        assert resumed["steps"] == [4, 5, 6], mesh
        assert is_close(resumed["differences"]), (mesh, resumed)
    assert runs["(8, 1, 1)"]["same bits"]
    assert not runs["one device"]["same bits"]  # the float tolerance is needed


def test_final_weights_stay_in_shards_and_are_saved_so(found):
    """Over fsdp=8 a device holds an eighth of all but the vectors, to the end."""
    runs = {mesh: run for mesh, run in found["law 9"].items() if mesh != "steps before"}
    assert all(run["saved"] for run in runs.values())
    final = runs["(1, 8, 1)"]["final"]
    assert final["device"] < final["all"] / 6
    assert runs["one device"]["final"]["device"] == final["all"]  # the counterpart


@pytest.mark.parametrize("name", CASES)
def test_every_device_makes_its_shard_of_the_first_state_with_the_bits_of_one_device(name, found):
    first = found["first states"][name]
    assert first["same bits"]
    assert all(first["in a program"])


def test_weights_moments_and_mean_are_divided_over_the_devices(found):
    """Over fsdp=8 all but the vectors: scales and counts are on every device."""
    storage = found["storage"]
    for when, kinds in (
        ("before", ("params", "frozen", "moments and mean")),
        ("after", ("params", "moments and mean")),
    ):
        for kind in kinds:
            share = storage[when][kind]
            assert share["all"] / 8 <= share["device"] < share["all"] / 6, (when, kind, share)
    assert storage["after"]["params"] == storage["before"]["params"]
    assert storage["stored maps"] == [2.0] * len(storage["stored maps"])  # over fsdp=2 and tensor=2, alike along data
    assert storage["stored maps"]


def test_what_trains_is_donated_and_what_is_frozen_stays_where_it_is(found):
    storage = found["storage"]
    assert storage["donated"]
    assert storage["frozen stay"]
    assert storage["frozen returned"] == 0
    assert storage["aliased"] == storage["step state"]


def test_experts_stay_on_their_devices_over_expert_and_are_gathered_over_fsdp(found):
    assert found["experts"]["(2, 1, 1, 4)"] == {"share": 4.0, "gathers": False}
    assert found["experts"]["(2, 4, 1, 1)"] == {"share": 4.0, "gathers": True}  # the counterpart
