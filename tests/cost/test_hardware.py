"""Times follow from FLOPs, bytes and data sheets; the longest of the three counts."""

import dataclasses

import pytest

from freezejax import FreezeSchedule, UserError, cost, models
from freezejax.training.config import TrainConfig
from tests.cost.grid import ALL, GEGLU

H100 = cost.HARDWARE["h100"]


@pytest.fixture(scope="module")
def phase():
    config = TrainConfig(steps=1, batch_size=8, seq_len=128, compute_dtype="bfloat16")
    return cost.predict(models.build(**GEGLU), config, FreezeSchedule([(0, ALL)])).phases[0]


def test_longest_of_matmuls_memory_and_links_counts(phase):
    nothing = {"argument_bytes": 0, "activation_bytes": 0, "collective_bytes": {}}
    matmuls = dataclasses.replace(phase, **nothing, matmul_flops=10**15)
    assert cost.estimate_seconds(matmuls, H100, 0.5) == pytest.approx(2e15 / 1e15, rel=0.02)
    memory = dataclasses.replace(phase, collective_bytes={}, argument_bytes=10**12, activation_bytes=0)
    assert cost.estimate_seconds(memory, H100) == pytest.approx(2e12 / 3.35e12)
    links = dataclasses.replace(phase, collective_bytes={"all-gather": 3 * 10**11, "all-reduce": 15 * 10**10})
    assert cost.estimate_seconds(links, H100) == pytest.approx(1.0)


def test_float32_takes_longer_than_bfloat16_where_the_chip_is_slower_at_it(phase):
    large = dataclasses.replace(phase, matmul_flops=10**15)
    wide = dataclasses.replace(large, compute_dtype="float32")
    assert cost.estimate_seconds(wide, H100) == 2 * cost.estimate_seconds(large, H100)


@pytest.mark.parametrize("efficiency", [0.0, -0.1, 1.1])
def test_efficiency_is_a_share(phase, efficiency):
    with pytest.raises(UserError, match="expected a share of the peak"):
        cost.estimate_seconds(phase, H100, efficiency)


@pytest.mark.parametrize("name", cost.HARDWARE)
def test_every_chip_names_its_source(name):
    chip = cost.hardware_named(name)
    assert chip.source
    assert set(chip.flops) == {"bfloat16", "float32"}
    assert chip.memory_rate > chip.link_rate > 1e9
