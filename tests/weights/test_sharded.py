"""Law 6 on meshes: each device draws its shard, no collective touches a map, and the bits are those of one device."""

import functools
import hashlib

import jax
import numpy as np
import pytest

from freezejax import RandomMap
from tests.weights import sharded_program
from tests.weights.sharded_program import ALIGNED, CASES, PATH, SEED

CASE_NAMES = [f"{case[0]} {case[1]}" for case in CASES]


@pytest.fixture(scope="module")
def found(run_alone):
    return run_alone(sharded_program)


@functools.cache
def bits_on_one_device(distribution, shape):
    assert jax.device_count() == 1
    w = jax.jit(RandomMap(shape, distribution, name=PATH).materialize)(jax.random.key(SEED))
    return hashlib.sha256(np.asarray(w).tobytes()).hexdigest()


@pytest.mark.parametrize("case", range(len(CASES)), ids=CASE_NAMES)
def test_equal_bits_on_one_device_and_on_every_mesh(case, found):
    _, shape, specs, distributions = CASES[case]
    hashes = found["materialize"][CASE_NAMES[case]]["sha256"]
    assert len(hashes) == len(specs) * len(distributions)
    for name, sha256 in hashes.items():
        assert sha256 == bits_on_one_device(name.split(" ")[0], shape), name


@pytest.mark.parametrize("case", CASE_NAMES)
def test_drawing_a_map_needs_no_collective(case, found):
    assert found["materialize"][case]["collectives"] == []


def test_no_device_makes_more_than_its_shard(found):
    program = found["materialize"][f"(2, 2, 2) {ALIGNED}"]
    assert program["largest"] == program["size"] // 2  # the least divided of the specs
    assert found["held"] == [program["size"] // 4] * 8


def touches_maps(program):
    """Collectives of integers (keys, words), or as large as the map or a shard of it."""
    sizes = [program["size"] // parts for parts in (1, 2, 4, 8)]
    return [(dtype, size) for dtype, size, _ in program["collectives"] if dtype != "f32" or size in sizes]


def test_training_through_a_map_moves_activations_and_trained_gradients_only(found):
    for name, program in found["train"].items():
        assert program["collectives"], name  # the batch is split, so the trained gradient is summed
        assert not touches_maps(program), name
        assert program["largest"] == program["size"] // 2, name
        assert program["error"] < 1e-5, name


COUNTERPARTS = {
    "rbg": lambda program: program["largest"] == program["size"],  # the whole matrix on every device
    "rademacher, end only": touches_maps,
    "hadamard, end only": touches_maps,
    "no layout inside": touches_maps,
}


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_counterparts_draw_too_much_or_exchange_it(name, found):
    assert COUNTERPARTS[name](found["counterparts"][name])
