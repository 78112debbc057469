"""Students of earlier runs and of a file: whose weights teach them, which bits they end with, what steps they count.

One study of tiny models is run once, and stopped in the middle of the run that keeps its teacher's logits on disk.
"""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest

from experiments import distillation
from experiments.configs.distillation import get_config
from experiments.engine import dry_run, lock
from experiments.engine.matching import ALL_TRAIN, abstract_params, stored_bytes
from experiments.engine.results import packing
from experiments.engine.study import check, load_corpus, run_study
from experiments.engine.tasks import language_modelling
from experiments.engine.teachers import FOLDER, Distilling, FromFile, distilled, run_of
from experiments.engine.variants import Study, Variant, paper_corpus, select
from freezejax import artifact, models
from freezejax.training.batches import TokenBatches
from freezejax.training.checkpoints import load_params
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import Stopped
from freezejax.training.loop import train
from freezejax.training.objectives.distillation import Distillation, TeacherBatches
from freezejax.training.state import fingerprint

SIZE = {"vocab_size": 256, "num_layers": 1, "num_heads": 1}
SMALL, WIDE = ({"family": "geglu", **SIZE, "model_dim": width} for width in (16, 24))
OTHER = {"family": "parameter_golf", **SIZE, "num_kv_heads": 1, "model_dim": 32}
STEPS, STOP_AT = 10, 7


def short(corpus):
    """Eight windows, so that every teacher sees each of them again."""
    return dataclasses.replace(corpus, train=corpus.train[: 8 * 16 + 1])


class _Watched:
    """A variant's `minimize` on a short text, whose batches may raise Ctrl-C, once."""

    def __init__(self, minimize, stop_at=None):
        self.minimize, self.stop_at, self.batches = minimize, stop_at, []

    def __call__(self, task):
        objective, batches = self.minimize(task._replace(corpus=short(task.corpus)))
        self.batches.append(batches)
        if self.stop_at is not None:
            count, batches.check_stop = iter(range(1, STEPS + 1)), self.stop_at
            self.stop_at = None

            class Stopping(type(batches)):
                def __next__(self):
                    if next(count) == self.check_stop:
                        signal.raise_signal(signal.SIGINT)
                    return super().__next__()

            batches.__class__ = Stopping
        return objective, batches


def make_study(config, path):
    train_fields = {**config.train.to_dict(), "steps": STEPS, "batch_size": 4, "seq_len": 16, "eval_every": 0}
    teacher, file = run_of("teacher"), FromFile(path, "config.distillation.teacher")
    rows = {
        "teacher": (WIDE, language_modelling, ()),
        "text": (SMALL, language_modelling, ()),
        "share_0": (SMALL, distilled(teacher, Distilling(share=0.0)), ("teacher",)),
        "distilled": (SMALL, distilled(teacher, Distilling()), ("teacher",)),
        "on_disk": (SMALL, distilled(teacher, Distilling(cache="disk")), ("teacher",)),
        "of_file": (SMALL, distilled(file, Distilling()), ()),
    }
    stops = {"on_disk": STOP_AT}
    variants = []
    for name, (model, what, needs) in rows.items():
        watched = _Watched(what, stops.get(name))
        variants.append(Variant(name, model, train_fields, ALL_TRAIN, minimize=watched, needs=needs))
    return Study("toy", variants)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A teacher of another family, in a file that says its tokenizer."""
    path = tmp_path_factory.mktemp("file") / "teacher.fjax"
    return save(path, OTHER)


def save(path, model, **options):
    built = models.build(**model)
    artifact.save(path, built.init(jax.random.key(5)), **{"model": model, **options})
    return str(path)


@pytest.fixture(scope="module")
def ran(file, tmp_path_factory):
    """`(config, workdir, study)` after a command that was stopped and the same command again."""
    config, folder = get_config("tiny"), tmp_path_factory.mktemp("toy") / "run"
    config.experiment = "toy"
    study = make_study(config, file)
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # for optax's Adam, in the threads that compile too
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FREEZEJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
            with pytest.raises(Stopped, match=f"after step {STOP_AT}"), lock.held:
                run_study(lambda *_: study, config, folder)
            stopped = folder / "runs" / "on_disk" / "seed_0"
            assert (stopped / FOLDER / "activations").stat().st_size > 0
            with lock.held:
                run_study(lambda *_: study, config, folder)
            yield config, folder, study
    finally:
        jax.config.update("jax_numpy_dtype_promotion", before)


def bits(folder):
    found = [json.loads(path.read_text()) for path in folder.glob("runs/*/*/result.json")]
    return {result["variant"]: result["params_sha256"] for result in found}


def test_a_student_learns_from_the_run_or_the_file_that_it_names(ran, file, tmp_path):
    """The same students, trained here and not by the engine."""
    config, folder, study = ran
    student, wide, tokens = models.build(**SMALL), models.build(**WIDE), short(load_corpus(config)).train
    of_run = load_params(folder / "runs" / "teacher" / "seed_0" / "params", wide.abstract_params())
    train_config, found = TrainConfig.from_mapping(study.variants[0].train), bits(folder)
    for name, (apply, params) in {"distilled": (wide.apply, of_run), "of_file": artifact.load(file)[:2]}.items():
        batches = TeacherBatches(TokenBatches(tokens, train_config), apply, params, 256)
        here = train(student, Distillation(student), batches, train_config, ALL_TRAIN, tmp_path / name)
        assert fingerprint(here.params) == found[name]
    assert len({found[name] for name in ("text", "distilled", "of_file")}) == 3


def test_a_teacher_of_no_share_is_language_modelling_to_the_bit(ran):
    found = bits(ran[1])
    assert found["share_0"] == found["text"]


def test_kept_logits_change_no_bit_through_a_stop_and_go_with_the_run(ran):
    _, folder, study = ran
    found, batches = bits(folder), {v.name: v.minimize.batches for v in study.variants}
    assert found["on_disk"] == found["distilled"]
    _, resumed = batches["on_disk"]
    (uncached,) = batches["distilled"]
    assert (uncached.runs, uncached.reused) == (STEPS, 0)
    assert resumed.runs == 0  # all windows were left by the command that was stopped
    assert resumed.reused == 4 * (STEPS - STOP_AT)
    assert not list(folder.rglob(FOLDER))


def test_steps_of_the_runs_that_one_needs_are_counted_once(ran):
    _, folder, _ = ran
    rows = {row["name"]: row for row in json.loads((folder / "summary.json").read_text())["rows"]}
    before = {name: row["steps_before"] for name, row in rows.items()}
    assert before == {
        **dict.fromkeys(("teacher", "text", "of_file"), 0),
        **dict.fromkeys(("share_0", "distilled", "on_disk"), STEPS),
    }
    assert {row["steps"] for row in rows.values()} == {STEPS}
    assert "steps in all" in (folder / "report.html").read_text()


def test_a_run_that_reads_another_without_saying_so_is_refused(ran, tmp_path):
    config, _, study = ran
    unsaid = dataclasses.replace(study.variants[3], name="unsaid", needs=())
    with pytest.raises(ValueError, match="unsaid read those of teacher, which it does not name in needs"), lock.held:
        run_study(lambda *_: dataclasses.replace(study, variants=[unsaid]), config, tmp_path / "run")


# --- the study of the paper's sections ---


@pytest.fixture(scope="module")
def study():
    return distillation.make_study(get_config("tiny"), 256)


def test_a_chain_has_the_steps_of_the_baseline_and_earlier_runs_come_first(study):
    seen, steps = set(), {}
    for variant in study.variants:
        assert set(variant.needs) <= seen
        seen.add(variant.name)
        steps[variant.name] = variant.train["steps"] + sum(v.train["steps"] for v in study.before(variant))
    same = ("student_distilled", "student_trained_distilled", "distilled_at_student_bytes", "chain_distilled",
            "student_of_its_architecture", "chain_text", "chain_never_frozen")  # fmt: skip
    assert {steps[name] for name in ("baseline", "selective_medium", "trained_medium", *same)} == {42}
    assert steps["small_of_large"] == steps["baseline_twice"] == 84
    asked = {name for contrast in study.contrasts for name in (contrast.variant, contrast.reference)}
    assert seen - asked == {"chain_first"}


def test_the_control_stores_the_bytes_of_the_student(study):
    model = {variant.name: variant.model for variant in study.variants}
    codec = packing(get_config("tiny"))["codec"]
    target = stored_bytes(model["student_distilled"], codec)
    assert stored_bytes(model["trained_at_student_bytes"], codec) == pytest.approx(target, rel=0.01)
    frozen, whole = (
        next(v for v in study.variants if v.name == name).schedule.phases(abstract_params(model[name]), 14)[-1].mask
        for name in ("chain_distilled", "chain_never_frozen")
    )
    assert not np.any(frozen["blocks"][0]["mlp"]["gate"]["kernel"])
    assert all(jax.tree.leaves(whole))


def test_the_papers_figures_are_of_its_books(study):
    assert paper_corpus(study, "gutenberg", "0" * 64) == "gutenberg"
    claims = {(c.variant, c.reference): round(p.delta_pct, 2) for c in study.contrasts for p in c.papers}
    assert claims == {("chain_distilled", "progressive_medium"): -0.28, ("student_distilled", "selective_medium"): 5.44}
    rows = {v.name: (p.value, p.delta_pct) for v in study.variants for p in v.papers}
    baseline = 1.2957
    for value, delta in rows.values():
        assert 100 * (value / baseline - 1) == pytest.approx(delta, abs=0.05)
    assert len(rows) == 4


def test_the_dry_run_says_what_the_teacher_costs(study, capsys):
    config = get_config("tiny")
    dry_run.print_costs(select(study, "student_distilled"), config)
    out = capsys.readouterr().out
    assert "teacher's" in out
    assert len([line for line in out.splitlines() if " to " in line]) == 3  # baseline and teacher are needed


BAD = {
    "temperature": ({"distillation.temperature": 0.0}, "temperature=0.0 must be a finite number above 0"),
    "share": ({"distillation.share": 1.5}, "share=1.5 must be a number from 0 to 1"),
    "cache": ({"distillation.cache": "dusk"}, "config.distillation.cache='dusk': expected off, memory or disk"),
    "gib": ({"distillation.cache_gib": -1.0}, "config.distillation.cache_gib=-1.0: expected 0 to 2"),
    "steps": ({"train.steps": 2}, "config.train.steps=2: expected 3 or more"),
    "family": ({"model.family": "parameter_golf"}, "the kernels of this study are those of geglu"),
    "missing": ({"distillation.teacher": "nowhere.fjax"}, "config.distillation.teacher=nowhere.fjax: there is no such"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_told_before_anything_runs(name, check_refused):
    fields, message = BAD[name]
    config = get_config("tiny")
    config.update_from_flattened_dict(fields)
    check_refused(lambda: distillation.make_study(config, 256), message)


def test_a_file_that_cannot_teach_is_told_before_anything_runs(file, tmp_path, check_refused, monkeypatch):
    monkeypatch.setenv("FREEZEJAX_CACHE", str(tmp_path / "cache"))
    config = get_config("tiny")
    config.distillation.teacher = file
    check_refused(lambda: distillation.make_study(config, 300), "vocabulary of 256 tokens, its students of 300")
    alone = tmp_path / "alone.fjax"
    artifact.save(alone, {"w": np.ones((2, 2), np.float32)})
    config.distillation.teacher = str(alone)
    check_refused(lambda: distillation.make_study(config, 256), "it holds parameters alone, and no model")
    config.distillation.teacher = save(tmp_path / "x.fjax", OTHER, tokenizer={"name": "sp256", "sha256": "0" * 64})
    corpus = load_corpus(config)
    other = distillation.make_study(config, 256)
    assert [variant.name for variant in other.variants[-2:]] == ["small_of_file", "selective_medium_of_file"]
    check_refused(lambda: check(other, config, corpus), "the tokens of sp256 .*the corpus has those of bytes")


def test_a_pretrained_model_teaches_as_its_folder_has_it(tmp_path, check_refused, monkeypatch):
    monkeypatch.setenv("FREEZEJAX_CACHE", str(tmp_path / "cache"))
    sizes = {"num_layers": 1, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_mult": 2.0}
    model = models.build("llama", **sizes, vocab_size=256)
    params = model.init(jax.random.key(0))
    models.save_pretrained(tmp_path / "llama", model, params)
    file = FromFile(str(tmp_path / "llama"), "config.distillation.teacher")
    apply, found = file(None)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    tokens = np.arange(8, dtype=np.int32)[None]
    np.testing.assert_array_equal(apply(found, tokens), model.apply(params, tokens))
    check_refused(lambda: file.check_vocabulary(300), "vocabulary of 256 tokens, its students of 300")
    config = get_config("tiny")
    config.distillation.teacher = str(tmp_path / "llama")
    study = distillation.make_study(config, 256)
    assert "small_of_file" in [variant.name for variant in study.variants]
    study.check(load_corpus(config))  # it says no tokenizer
    config.distillation.teacher = str(tmp_path)
    check_refused(lambda: distillation.make_study(config, 256), "config.distillation.teacher=.*config.json")
