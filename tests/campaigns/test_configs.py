"""A few wrong configs of the campaign; and it does find what is planted."""

from pathlib import Path

import pytest

from tests.campaigns import configs
from tests.campaigns.configs import REFUSED, STUDIES, VIOLATION, Case
from tests.experiments.forks import Ended

RIGHT = "error: config.seeds=0: expected 1 or more\n"


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (Case("progressive", "train.steps", "-1"), configs.REFUSED),
        (Case("correction", "data.tokenizer", "(a+)+$"), configs.REFUSED),
        (Case("progressive", "train.log_every", "3"), configs.RAN),
    ],
    ids=str,
)
def test_a_command_is_refused_in_a_line_or_runs_to_its_end(chosen, found, forks, tmp_path):
    assert configs.judge(forks, chosen, tmp_path) == (found, "")


@pytest.mark.parametrize(
    ("ended", "left", "reason"),
    [
        (Ended(1, "", "Traceback (most recent call last):\nKeyError: 'x'\n"), (), "exit code 1: KeyError: 'x'"),
        (Ended(2, "", "error: one\nerror: two\n"), (), "exit code 2: error: two"),
        (Ended(2, "", RIGHT), (Path("run"),), "refused only after files were written"),
        (Ended(2, "", RIGHT, 5 << 30), (), "5.0 GiB of memory"),
        (Ended(-9, "", ""), (), "nothing trains after 300 s"),
        (Ended(-11, "", ""), (), "exit code -11"),
    ],
)
def test_whatever_else_happens_is_a_violation(ended, left, reason):
    assert configs.outcome(Ended(2, "", RIGHT), [], []) == (REFUSED, "")
    found, told = configs.outcome(ended, list(left), [])
    assert found == VIOLATION
    assert told.startswith(reason)


def test_config_n_is_the_same_again_and_every_study_and_kind_of_field_is_drawn():
    drawn = [configs.case(0, number) for number in range(280)]
    assert drawn[7] == configs.case(0, 7) != configs.case(1, 7)
    assert {one.study for one in drawn} == set(STUDIES)
    assert {configs.fields_of(one.study)[one.field] for one in drawn} == set(configs.VALUES)
    for one in drawn:
        assert one.value in configs.VALUES[configs.fields_of(one.study)[one.field]]
        assert one.arguments(Path("w")).count(f"--config.{one.field}={one.value}") == 1
