"""A mixture of experts for GPUs that are not attached: its sort compiles, and over `expert` no expert is sent."""

import json
import math

import pytest

from tests.aot.hybrid import EXPERTS, HIDDEN, WIDTH

HERE = EXPERTS // 4 * WIDTH * HIDDEN  # numbers of one kernel on one device, of 2 of 8 experts


@pytest.fixture(scope="module")
def found(start):
    ended = start("tests.aot.hybrid")
    assert ended.returncode == 0, ended.stderr
    return [[(kind, math.prod(shape), group) for kind, shape, group in program] for program in json.loads(ended.stdout)]


@pytest.fixture(autouse=True)
def _compiler(compiler):
    compiler("h100:1x1x8")


def test_tokens_go_to_the_experts_and_no_expert_to_the_tokens(found):
    tokens = 64 * 512 // 2  # of the 4 devices that share experts
    for program in found:
        sent = {(kind, size, group) for kind, size, group in program if kind != "all-reduce"}
        of_activations = {(kind, tokens * WIDTH, 4) for kind in ("all-gather", "reduce-scatter")}
        assert sent == of_activations | {(kind, tokens * EXPERTS, 4) for kind in ("all-gather", "reduce-scatter")}


def test_gradients_of_experts_are_summed_over_the_other_axes_alone_and_those_of_frozen_ones_not_at_all(found):
    """Sums that compilers join have the numbers of all their parts."""
    full, frozen = ([(size, group) for kind, size, group in program if kind == "all-reduce"] for program in found)
    assert sum(size for size, group in full if group == 2) == 2 * HERE  # up and down, over data
    assert not [size for size, group in frozen if group == 2]
