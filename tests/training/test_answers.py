"""Puzzles in training: answers alone are learned and scored, every puzzle comes once an epoch, stopped or not."""

import jax
import numpy as np
import pytest

from freezejax import FreezeSchedule, UserError, models
from freezejax.data import ByteTokenizer, puzzles
from freezejax.training.answers import AnswerBatches, by_family, encoded, make_scorer
from freezejax.training.config import OptimizerConfig, TrainConfig
from freezejax.training.loop import train
from freezejax.training.objectives.language_modelling import LanguageModelling

TOKENIZER, SEQ_LEN = ByteTokenizer(), 64
MIXED = [*puzzles.draw("numerals", 5, examples=2), *puzzles.draw("units", 6, examples=2)]
CONFIG = TrainConfig(steps=4, batch_size=4, seq_len=SEQ_LEN)


@pytest.fixture(scope="module")
def model():
    return models.build("geglu", num_layers=1, model_dim=32, num_heads=2)


def test_what_weighs_is_the_answer_and_its_end():
    rows = encoded(MIXED, TOKENIZER, SEQ_LEN)
    for i, puzzle in enumerate(MIXED):
        chosen = rows["targets"][i][rows["weights"][i] > 0]
        assert TOKENIZER.decode(chosen) == puzzle.answer + "\n"
        length = len(puzzle.prompt) + len(puzzle.answer)
        assert TOKENIZER.decode(rows["inputs"][i][:length]) == puzzle.prompt + puzzle.answer


def test_what_examples_show_weighs_too_where_that_is_asked_for():
    rows = encoded(MIXED, TOKENIZER, SEQ_LEN, shown=True)
    for i, puzzle in enumerate(MIXED):
        chosen = TOKENIZER.decode(rows["targets"][i][rows["weights"][i] > 0])
        shown = [line.split(" -> ")[1] for line in puzzle.prompt.splitlines()[:-1]]
        assert chosen == "".join(f"{answer}\n" for answer in [*shown, puzzle.answer])
    plain = encoded(MIXED, TOKENIZER, SEQ_LEN)
    assert all(np.array_equal(plain[name], rows[name]) for name in ("inputs", "targets"))


def test_the_prompt_has_no_part_in_the_loss(model):
    params, rows = model.init(jax.random.key(0)), encoded(MIXED[:4], TOKENIZER, SEQ_LEN)
    objective = LanguageModelling(model)
    loss = jax.jit(lambda batch: objective.loss(params, objective.prepare(batch), jax.random.key(0))[0])
    other = {**rows, "targets": np.where(rows["weights"] > 0, rows["targets"], 7)}
    assert loss(rows) == loss(other)
    assert loss(rows) != loss({**other, "weights": np.ones_like(rows["weights"])})  # the counterpart


def test_every_puzzle_comes_once_an_epoch_in_an_order_of_the_seed_alone():
    whole = AnswerBatches(MIXED, TOKENIZER, CONFIG)
    order = [tuple(row) for _ in range(11) for row in next(whole)["inputs"].tolist()]
    assert all(len(set(order[at : at + 11])) == 11 for at in (0, 11, 22, 33))
    assert order[:11] != order[11:22]
    again = AnswerBatches(MIXED, TOKENIZER, CONFIG)
    again.set_state({"batches": 3})
    assert [tuple(row) for row in next(again)["inputs"].tolist()] == order[12:16]
    assert again.get_state() == {"batches": 4}


def test_scores_are_those_of_the_whole_forward_pass_and_of_greedy_text(model):
    params = model.init(jax.random.key(0))
    scorer = make_scorer(model, MIXED, TOKENIZER, seq_len=SEQ_LEN, batch_size=4)
    found = scorer.scores(params)
    np.testing.assert_array_equal(scorer.nats(params), found.nats_N)
    texts = [puzzle.prompt + puzzle.answer + "\n" for puzzle in MIXED]
    tokens = np.stack([TOKENIZER.encode(text.ljust(SEQ_LEN)) for text in texts])
    logits = np.asarray(jax.jit(lambda params, x: jax.nn.log_softmax(model.apply(params, x)))(params, tokens))
    for i, puzzle in enumerate(MIXED):
        answer = range(len(puzzle.prompt), len(texts[i]))
        wanted = -sum(logits[i, at - 1, tokens[i, at]] for at in answer)
        assert found.nats_N[i] == pytest.approx(wanted, rel=1e-4)
        assert found.tokens_N[i] == len(puzzle.answer) + 1
    figures = by_family(MIXED, found)
    assert list(figures) == ["numerals", "units"]
    assert figures["units"][0] == pytest.approx(found.nats_N[5:].sum() / found.tokens_N[5:].sum())


def test_a_model_that_learned_its_puzzles_answers_them(model, tmp_path):
    few = MIXED[:4]
    config = TrainConfig(
        steps=150, batch_size=4, seq_len=SEQ_LEN, optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant")
    )
    score = make_scorer(model, few, TOKENIZER, seq_len=SEQ_LEN, batch_size=4).scores
    assert not score(model.init(jax.random.key(0))).right_N.any()
    batches, everything = AnswerBatches(few, TOKENIZER, config), FreezeSchedule([(0, [(".*", True)])])
    with jax.numpy_dtype_promotion("standard"):  # for optax
        learned = train(model, LanguageModelling(model), batches, config, everything, tmp_path).params
    found = score(learned)
    assert found.right_N.all()
    assert (found.nats_N / found.tokens_N < 0.1).all()


def test_what_cannot_be_is_told(model):
    with pytest.raises(UserError, match=r"a puzzle of numerals has \d+ tokens; seq_len=8 takes 9"):
        encoded(MIXED, TOKENIZER, 8)
    with pytest.raises(UserError, match="11 puzzles are too few for batches of 12"):
        AnswerBatches(MIXED, TOKENIZER, TrainConfig(steps=1, batch_size=12, seq_len=SEQ_LEN))
    with pytest.raises(UserError, match="no puzzles to score on"):
        make_scorer(model, [], TOKENIZER, seq_len=8)

    class Folding(ByteTokenizer):
        name = "folding"

        def encode(self, text):
            return super().encode(text.replace("\n", " "))

    with pytest.raises(UserError, match="the tokenizer folding has no token for a line's end"):
        encoded(MIXED, Folding(), SEQ_LEN)
