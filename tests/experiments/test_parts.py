"""Parts of a base fine-tuned on text: which rows there are, what trains in each, and what is told of them."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from experiments import domains, parts
from experiments.bases import Base
from experiments.configs import domains as configs
from experiments.configs import progressive
from experiments.engine import lock
from experiments.engine.study import run_study
from experiments.parts import Part
from experiments.report import forgetting
from experiments.report.forgetting import ACCURACY, BITS, judged
from freezejax import UserError, models
from freezejax.data import ByteTokenizer
from freezejax.paths import leaf_paths
from freezejax.training.objectives.base import Objective
from freezejax.training.objectives.few import Few

LLAMA = {"num_layers": 1, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_mult": 2.0}
LLAMA["vocab_size"] = 256


class SumOfSquares(Objective):
    def loss(self, params, batch, key):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), {}


PARAMS = {"up": jnp.ones((40, 50)), "down": jnp.full((50, 20), 2.0), "head": jnp.ones((7,))}
SIZES = {"up": 2000, "down": 1000}


@pytest.mark.parametrize("count", [300, 1500])
def test_of_a_few_parameters_about_so_many_train_and_the_others_keep_every_bit(count):
    few, tx = Few(SumOfSquares(), SIZES, count, seed=3), optax.adamw(1e-2, weight_decay=0.0)

    @jax.jit
    def step(params, state, objective_of=few):
        gradient = jax.grad(lambda p: objective_of.loss(p, {}, jax.random.key(0))[0])(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        params, state = step(PARAMS, tx.init(PARAMS))
        params, _ = step(params, state)
    moved = {path: np.asarray(leaf != PARAMS[path]) for path, leaf in params.items()}
    assert moved["head"].all()  # not among the sizes: what freezes it is the schedule
    number = sum(int(moved[path].sum()) for path in SIZES)
    assert number == few.number(PARAMS) == few.evaluate(PARAMS)["trained"]
    assert abs(number - count) < 5 * np.sqrt(count)
    for path, size in SIZES.items():
        assert moved[path].mean() == pytest.approx(count / 3000, abs=5 * np.sqrt(count / 3000 / size))


def test_counterpart_without_few_everything_moves():
    gradient = jax.grad(lambda p: SumOfSquares().loss(p, {}, None)[0])(PARAMS)
    assert all(bool((leaf != 0).all()) for leaf in jax.tree.leaves(gradient))


def test_few_are_others_with_another_seed_and_all_where_there_are_no_more():
    chosen = [Few(SumOfSquares(), SIZES, 1500, seed).chosen("up", PARAMS["up"]) for seed in (0, 0, 1)]
    assert (chosen[0] == chosen[1]).all()
    assert 0.3 < float((chosen[0] == chosen[2]).mean()) < 0.7
    assert Few(SumOfSquares(), SIZES, 3000, 0).number(PARAMS) == 3000


def test_few_are_not_chosen_by_their_first_values():
    """Weights are drawn from the run's seed, too, by the names of the leaves."""
    model = models.build("llama", **LLAMA)
    params = model.init(jax.random.key(3))
    by_name = dict(zip(leaf_paths(params), jax.tree.leaves(params), strict=True))
    path = next(path for path in by_name if path.endswith("mlp/up_proj/kernel"))
    kernel = np.asarray(by_name[path]).ravel()
    chosen = np.asarray(
        Few(SumOfSquares(), {path: kernel.size}, kernel.size // 2, 3).chosen(path, by_name[path])
    ).ravel()
    assert abs(np.corrcoef(chosen, kernel)[0, 1]) < 4 / np.sqrt(kernel.size)


def asked(**changes):
    config = progressive.get_config("tiny")
    config.update(types="q_proj,ln1 ln2", pairs="", longer=1, rates=(1.0,), mixed=0.0, few=True)
    config.tune = ConfigDict({"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "schedule": "cosine"})
    config.update(changes)
    return config


def test_what_each_row_trains_and_how():
    model = {"family": "llama", **LLAMA}
    found = parts.variants(asked(longer=3), model, lambda task: None, lambda part, few: (part.name, few))
    assert [v.name for v in found] == [
        *("q_proj", "ln1_and_ln2", "all"),
        *("q_proj_longer", "ln1_and_ln2_longer", "all_longer"),
        *("q_proj_few", "all_few"),  # the norms are the fewest: their row is that of the type
    ]
    assert {v.name: v.minimize[1] for v in found if v.minimize[1]} == {"q_proj_few": 32, "all_few": 32}
    params = models.build(**model).abstract_params()
    assert parts.size_of(params, Part("n", ("ln1", "ln2"))) == {f"blocks/0/{name}/scale": 16 for name in ("ln1", "ln2")}
    assert (found[0].train["steps"], found[3].train["steps"], found[3].train["eval_every"]) == (4, 12, 12)
    assert all(v.train["optimizer"]["weight_decay"] == 0.0 for v in found)


def test_muon_and_a_few_parameters_do_not_go_together():
    config = asked()
    config.train.optimizer.name = "muon"
    with pytest.raises(UserError, match=r"config\.few: muon moves all of a matrix"):
        parts.variants(config, {"family": "llama", **LLAMA}, lambda task: None, lambda part, few: None)


def small(folder, **changes):
    config = configs.get_config("tiny")
    config.types, config.others = "q_proj,ln1 ln2 ln_f", f"prose=,books={folder / 'books'}"
    config.data.val_sequences, config.data.eval_batch_size = 6, 4
    config.train.batch_size, config.train.seq_len, config.tune.steps = 2, 32, 4
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A small study, its config, its base and what it found."""
    folder = tmp_path_factory.mktemp("domains")
    (folder / "books").mkdir()
    (folder / "books" / "one.txt").write_text("It was a truth, universally acknowledged. " * 400)
    model = models.build("llama", **LLAMA)
    models.save_pretrained(folder / "model", model, model.init(jax.random.key(0)))
    base, config, out = Base(folder / "model", ""), small(folder, mixed=0.25), folder / "out"
    before = jax.config.jax_numpy_dtype_promotion
    with lock.held, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREEZEJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(domains, "flags", SimpleNamespace(FLAGS=SimpleNamespace(config=config)))
        patch.setattr(domains.bases, "of_flags", lambda _: base)
        patch.setattr(
            domains.study, "main", lambda made, tokenizer: run_study(made, config, folder / "out") or folder / "out"
        )
        jax.config.update("jax_numpy_dtype_promotion", "standard")
        try:
            domains.main()
        finally:
            jax.config.update("jax_numpy_dtype_promotion", before)
        yield folder, config, base, json.loads((out / "forgetting.json").read_text())


def test_every_text_is_scored_on_as_many_windows_and_items_are_its_bits_per_byte(ran):
    folder, _, _, found = ran
    assert found["items"] == 18
    assert list(found["base"]["families"]) == ["target", "prose", "books"]
    records = [json.loads(line) for line in (folder / "out/runs/q_proj/seed_0/metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if "bpb/books" in record][-1]
    row = next(row for row in found["rows"] if row["name"] == "q_proj")
    for name, change in row["families"].items():
        assert last[f"bpb/{name}"] - found["base"]["families"][name] == pytest.approx(change["mean"], abs=2e-6)
    assert last["bpb/target"] == last["val_bpb"]
    assert row["gain"] == row["families"]["target"]
    assert row["decay"]["mean"] == pytest.approx(np.mean([row["families"][n]["mean"] for n in ("prose", "books")]))


def test_rows_learn_the_target_and_start_from_the_base(ran):
    found = ran[3]
    assert [row["name"] for row in found["rows"]][:3] == ["q_proj", "ln1_and_ln2_and_ln_f", "all"]
    everything = found["rows"][2]
    assert everything["gain"]["mean"] < 0
    assert everything["moved"] > 0 > everything["loss"]["target"]["mean"]
    assert everything["loss"]["target"]["mean"] == pytest.approx(
        everything["gain"]["mean"]
    )  # a window's loss is its score
    assert {row["trained"] for row in found["rows"]} >= {256, 48}


def test_a_share_of_the_other_texts_is_mixed_in(ran):
    _, config, _, found = ran
    corpus = domains.study.load_corpus(config)
    mixed = domains._mixed(config, corpus, 0.25)
    added = len(mixed) - len(corpus.train)
    assert np.array_equal(mixed[: len(corpus.train)], corpus.train)
    books = ByteTokenizer().encode("universally acknowledged")
    assert bytes(books.tolist()) in bytes(mixed[len(corpus.train) :].tolist())
    assert added == 2 * round(len(corpus.train) / 3 / 2)
    assert "all_mixed" in [row["name"] for row in found["rows"]]


def test_bad_texts_are_told_in_one_line(ran):
    folder, _, base, _ = ran
    for others, message in (
        ("", r"config\.others='': expected NAME=PATH"),
        ("books=a,books=b", "with a name for each text"),
        ("target=a", "with a name for each text"),
    ):
        with pytest.raises(UserError, match=message):
            domains.others_of(small(folder, others=others))
    for change, message in (
        ({"mixed": 1.0}, r"config\.mixed=1\.0: expected a share"),
        ({"data": {"val_sequences": 10_000}}, r"val_sequences=10000: the text 'target' has only \d+ windows"),
    ):
        with pytest.raises(UserError, match=message):
            run_study(lambda *a: domains.make_study(*a, base), small(folder, **change), folder / "bad")
    assert not (folder / "bad").exists()


def test_other_texts_are_part_of_what_a_study_is(ran):
    folder, config, base, _ = ran
    before = domains.make_study(config, 256, base).inputs
    (folder / "books" / "two.txt").write_text("Another book, and so another study. " * 400)
    after = domains.make_study(config, 256, base).inputs
    (folder / "books" / "two.txt").unlink()
    assert {name for name in before if before[name] != after[name]} == {"books"}
    assert before.keys() == {"prose", "books"}


def test_shards_are_read_with_the_tokenizer_of_the_model(ran, tmp_path):
    """A text as shards of pieces gives the tokens that the text itself would give."""
    from freezejax.data import load

    text = "the cat sat on the mat, the dog sat on the log. " * 200
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "one.txt").write_text(text)
    load(str(tmp_path / "text"), tokenizer="bpe:300", cache_dir=str(tmp_path / "cache"))
    (shards,) = (tmp_path / "cache").glob("tokens-*")
    found = domains.other_text(str(shards), ByteTokenizer(), "val", 100)
    assert ByteTokenizer().decode(found[:6].tolist()).strip() in text
    assert len(found) == 100


def test_what_is_scored_on_is_from_all_over_a_text():
    tokens = np.arange(10_000)
    found = domains.spread(tokens, 320)
    assert len(found) == 320
    assert (found[0], found[-1]) == (0, 9999)
    assert (np.diff(found) == 1).sum() == 320 - 16  # sixteen passages
    assert np.array_equal(domains.spread(tokens[:100], 320), tokens[:100])


def test_what_a_change_elsewhere_is_called():
    told = lambda mean, ci95: {"mean": mean, "ci95": ci95}  # noqa: E731
    assert [judged(told(*x), ACCURACY) for x in ((-5.0, 1.0), (5.0, 1.0), (0.5, 1.0), (-2.0, 3.0))] == [
        *("forgets", "gains there, too", "keeps", "noise")
    ]
    assert judged(told(0.05, 0.01), BITS) == "forgets"  # more bits are worse
    assert judged(told(-0.05, 0.01), BITS) == "gains there, too"
    assert judged(told(1.0, None), BITS) == "unknown"


def test_an_item_counts_once_whatever_the_number_of_seeds(tmp_path):
    """Two seeds that agree say no more about other items than one."""
    items = forgetting.Items(["a", "a", "b", "b"], ["a"], ACCURACY)
    for seed in (0, 1):
        for name, values in (("base", [0.0, 0, 100, 100]), ("row", [100.0, 0, 0, 100])):
            run = tmp_path / "runs" / name / f"seed_{seed}"
            forgetting.write_items(run, forgetting.Found(np.array(values), np.zeros((1, 4))))
            (run / "metrics.jsonl").write_text("")
    rows = [{"name": name, "seeds": [0, 1], "trainable_params": 1} for name in ("base", "row")]
    two = forgetting.measure(tmp_path, rows, items)
    one = forgetting.measure(tmp_path, [{**row, "seeds": [0]} for row in rows], items)
    assert two["rows"][0]["decay"] == one["rows"][0]["decay"]
    assert two["rows"][0]["gain"]["mean"] == 50.0
    assert two["rows"][0]["by_seed"] == [0.0, 0.0]
