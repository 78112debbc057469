"""What a newcomer does wrong around a run ends in one line that says what is wrong."""

import numpy as np
import pytest

from freezejax.errors import UserError
from freezejax.training import checkpoints
from freezejax.training.objectives.language_modelling import LanguageModelling

OTHERS = {
    r"train\.seed is 0 there, 1 here": {"seed": 1},
    r"train\.steps is 12 there, 14 here": {"steps": 14},
    r"train\.optimizer\.learning_rate is 0\.001 there, 0\.5 here": {"optimizer": {"learning_rate": 0.5}},
    r"model\.dropout is 0\.0 there, 0\.5 here": {"model": {"dropout": 0.5}},
    r"model\.model_dim is 16 there, 32 here": {"model": {"model_dim": 32}},
    r"leaf blocks/0/mlp/up/kernel/seed is absent there, uint32\[2\] here": {
        "model": {"weights": [{"pattern": ".*/up/kernel", "kind": "map"}]}
    },
}


@pytest.fixture(scope="module")
def stopped(run, entries, tmp_path_factory):
    """The folder of a run that was stopped after 3 steps."""
    directory = tmp_path_factory.mktemp("stopped")
    assert run(directory, entries["later"], stop_at=3)[0] is None
    return directory


@pytest.mark.parametrize("message", OTHERS)
def test_the_folder_of_another_run_is_refused_by_the_field_that_differs(message, run, entries, stopped):
    before = sorted(stopped.rglob("*"))
    with pytest.raises(
        UserError, match=f"this directory belongs to another run: {message}; train in a fresh"
    ) as raised:
        run(stopped, entries["later"], **OTHERS[message])
    assert "\n" not in str(raised.value)
    assert sorted(stopped.rglob("*")) == before


def test_another_schedule_is_refused(run, entries, stopped):
    with pytest.raises(UserError, match="belongs to another run: the schedule is another"):
        run(stopped, entries["never"])


def test_the_same_run_goes_on_though_it_logs_otherwise(run, entries, tmp_path):
    run(tmp_path, entries["later"], stop_at=3)
    same = [(0, [("blocks/.*|.*", True)]), *entries["later"][1:]]  # other words for the same mask
    found, recorder = run(tmp_path, same, eval_every=5, checkpoint_every=5, remat=True)
    assert found is not None
    assert recorder.begun == [3]


def test_a_folder_that_does_not_say_whose_it_is_goes_on(run, entries, tmp_path):
    run(tmp_path, entries["later"], stop_at=3)
    (tmp_path / "checkpoints" / checkpoints.ORIGIN).unlink()
    assert run(tmp_path, entries["later"])[1].begun == [3]


def test_a_folder_without_a_checkpoint_takes_another_run(run, entries, tmp_path):
    run(tmp_path, entries["never"], steps=2)
    assert run(tmp_path, entries["never"], steps=3)[0].steps == 3


def test_tokens_outside_of_the_vocabulary_are_told_before_the_first_step(run, entries, tmp_path):
    with pytest.raises(UserError, match=r"inputs hold the token \d+, and the model's vocab_size is 50"):
        run(tmp_path, entries["never"], model={"vocab_size": 50})


def test_a_target_of_no_weight_may_be_any_integer(build):
    batch = {"inputs": np.zeros((1, 2)), "targets": np.array([[1, -100]]), "weights": np.array([[1.0, 0.0]])}
    LanguageModelling(build()).check(batch)
    with pytest.raises(UserError, match="targets hold the token -100"):
        LanguageModelling(build()).check({**batch, "weights": np.ones((1, 2))})
