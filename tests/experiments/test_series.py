"""What policies measured while models trained, as a picture."""

import numpy as np
import pytest

from experiments.report import series

DECISIONS = [
    {"step": 2, "measured": {}, "frozen": []},
    {"step": 4, "measured": {"blocks/0/mlp/up/kernel": 4.0, "blocks/1/mlp/up/kernel": 1.0}, "frozen": []},
    {
        "step": 6,
        "measured": {"blocks/0/mlp/up/kernel": 1.0, "blocks/1/mlp/up/kernel": 2.0},
        "frozen": ["blocks/0/mlp/up/kernel"],
    },
]


def test_every_group_is_told_by_its_own_largest():
    np.testing.assert_allclose(series.table(DECISIONS), [[1.0, 0.25], [0.5, 1.0]])
    assert series.table([]).size == 0


def test_a_group_of_zeros_is_no_division_by_zero():
    zeros = [{"step": 2, "measured": {"a": 0.0}, "frozen": []}]
    np.testing.assert_array_equal(series.table(zeros), [[0.0]])


def test_the_picture_names_runs_groups_and_steps_and_marks_what_froze():
    drawn = series.picture({"scratch_gradient": DECISIONS})
    assert "scratch_gradient 2 groups at 2 steps" in drawn
    thawed = [{**decision, "frozen": []} for decision in DECISIONS]
    assert drawn != series.picture({"scratch_gradient": thawed})


@pytest.mark.parametrize("decisions", [[], [{"step": 2, "measured": {"a": 3.0}, "frozen": ["a"]}]])
def test_what_never_changes_is_not_drawn(decisions):
    assert series.picture({"scratch_low_participation": decisions}) == ""
    assert "scratch_gradient" in series.picture({"constant": decisions, "scratch_gradient": DECISIONS})
