"""A few kills of the campaign in one study; and it does find what is planted."""

import json

import numpy as np
import pytest

from tests.campaigns import kills
from tests.campaigns.kills import Left


def test_a_killed_study_ends_with_the_same_bits(forks, tmp_path):
    ran = kills.Campaign(forks, tmp_path)
    assert ran.study("progressive", 3) == ""
    assert 1 <= ran.kills.total() <= 3  # on a fast machine some moments never come


RUN = Left({"runs/a": "11"}, {"runs/a": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]})


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (RUN._replace(weights={"runs/a": "12"}), "runs/a: other weights"),
        (RUN._replace(weights={}), "are in one alone"),
        (RUN._replace(records={"runs/a": [*RUN.records["runs/a"], RUN.records["runs/a"][1]]}), r"steps [1, 2] and"),
        (RUN._replace(records={"runs/a": [{"step": 1, "loss": 2.1}, {"step": 2, "loss": 1.0}]}), "other records"),
    ],
)
def test_a_difference_is_told(other, told):
    assert kills.same_bits(RUN, RUN) == kills.same_figures(RUN, RUN) == ""
    assert told in kills.same_bits(RUN, other)


def test_on_another_mesh_losses_may_differ_by_rounding_alone():
    near, far = (
        RUN._replace(records={"runs/a": [{"step": 1, "loss": loss}, {"step": 2, "loss": 1.0}]})
        for loss in (2.0001, 2.01)
    )
    assert kills.same_figures(RUN, near) == ""
    assert "loss=2.01, not 2.0" in kills.same_figures(RUN, far)


def test_moments_come_when_what_they_wait_for_happens(tmp_path):
    drawn = [moment for moment, _ in zip(kills.moments(np.random.default_rng(0)), range(16), strict=False)]
    assert {moment.name for moment in drawn} == {"any time", *kills._EVENTS}
    by_clock = next(moment for moment in drawn if moment.name == "any time")
    assert not by_clock.comes(tmp_path, 0.0)
    assert by_clock.comes(tmp_path, 1.0)
    once = kills.Moment("", kills._nth(kills._EVENTS["between two runs"], 2))
    for number in range(2):
        assert not once.comes(tmp_path, 0.0)
        (tmp_path / f"runs{number}").mkdir()
        (tmp_path / f"runs{number}" / "result.json").write_text(json.dumps({}))
    assert once.comes(tmp_path, 0.0)
