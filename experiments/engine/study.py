"""The one study engine: variants x seeds x base seeds -> finished runs -> rows -> summary.json, table, report."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from experiments.engine import accelerators, cli, dry_run, summary, sweeps
from experiments.engine.fields import check_range
from experiments.engine.progress import Progress
from experiments.engine.results import Session, finish, pack, packing, score_packed
from experiments.engine.tasks import Task, Trained, until_the_end_of_a_run
from experiments.engine.variants import Run, Study, Variant, paper_corpus, select
from experiments.engine.workdir import CONFIG, METRICS, RESULT, Finished, open_for_writing, read_config
from experiments.report import page, tables
from freezejax import artifact, data, models
from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.sharding import Layout
from freezejax.training import processes
from freezejax.training.checkpoints import load_params, save_params
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import Stopped, catch_signals
from freezejax.training.loop import TrainResult, train
from freezejax.training.metrics import JsonLines, Sink, TensorBoard
from freezejax.training.plan import RunPlan, mesh_of

TOKENIZER = "tokenizer"  # in the workdir of a study that is not on bytes; with a suffix of its kind
MakeStudy = Callable[[ConfigDict, int], Study]  # of a config and the size of the tokenizer's vocabulary
_MAY_CHANGE = ("config/seeds", "config/base_seeds", "config/variants", "config/paper", "config/train/mesh/")


def main(make_study: MakeStudy, folder: str = "", tokenizer: str = "") -> Path | None:
    """Runs the study of the flags: every run not yet finished, then summary and report; or with --dry_run its costs.

    It goes into the workdir of the flags, or a folder of it. `tokenizer` is of its text where the config names none.
    Returns that workdir, or None where nothing was run.
    """
    given = flags.FLAGS
    config = given.config
    if given.dry_run:
        vocab_size = config.model.vocab_size or load_corpus(config, tokenizer).tokenizer.vocab_size
        study = select(make_study(config, vocab_size), config.variants)
        dry_run.print_costs(study, config, given.hardware, given.efficiency)
        return None
    for name in ("hardware", "efficiency"):
        if given[name].present:
            raise UserError(f"--{name} is of --dry_run: give both, or neither")
    cli.use_compilation_cache()
    workdir = Path(given.workdir).absolute()
    run_study(make_study, config, workdir / folder, tokenizer=tokenizer, tensorboard=given.tensorboard)
    return workdir


def run_study(
    make_study: MakeStudy, config: ConfigDict, workdir: Path, *, tokenizer: str = "", tensorboard: bool = False
) -> None:
    """Runs every run of a study that is not yet finished, then writes summary and report into `workdir`."""
    corpus, whole, study = prepare(make_study, config, tokenizer)
    processes.on_main(lambda: claim_workdir(workdir, config, corpus, study))
    runs, finished = list(study.runs(config.seeds, config.base_seeds)), Finished(workdir)
    processes.on_main(lambda: finished.read_all(whole))
    evaluators = study.evaluators(config, corpus)
    with catch_signals() as stop, Progress(len(runs), study.figures, quiet=not processes.is_main()) as progress:
        session = Session(whole, config, corpus, workdir, evaluators, finished, progress, stop, tensorboard)
        for group in sweeps.groups(study, runs):
            if (number := processes.largest(stop.received or 0)) > 0:
                raise Stopped(None, number)
            run_group(session, group)
            accelerators.give_freed_memory_back()
    processes.on_main(lambda: conclude(session))


def prepare(make_study: MakeStudy, config: ConfigDict, tokenizer: str = "") -> tuple[data.Corpus, Study, Study]:
    """The text, and the study whole and of the chosen variants; refuses what cannot run. Writes nothing."""
    corpus = load_corpus(config, tokenizer)
    whole = make_study(config, corpus.tokenizer.vocab_size)
    study = select(whole, config.variants)
    paper_corpus(whole, config.paper, corpus.fingerprint)
    check(study, config, corpus)
    return corpus, whole, study


def load_corpus(config: ConfigDict, tokenizer: str = "") -> data.Corpus:
    """The text a study trains and scores on, prepared once and kept in the user's cache."""
    return data.load(
        config.data.path,
        tokenizer=config.data.tokenizer or tokenizer,
        val_fraction=config.data.val_fraction,
        val_path=config.data.val_path,
        cache_dir=str(cli.cache_dir() / "data"),
    )


def conclude(session: Session) -> None:
    """Writes and prints what the finished runs of a folder say."""
    found, workdir = summary.write(session), session.workdir
    records = session.finished.records(session.study)
    write_atomically(workdir / METRICS, "".join(json.dumps(record) + "\n" for record in records))
    page.write(found, workdir)
    tables.show(found)
    print(f"Written: {workdir / 'summary.json'} and {workdir / 'report.html'}")


def check(study: Study, config: ConfigDict, corpus: data.Corpus) -> None:
    """Refuses every bad field, pattern and size before a file is written or a step is run."""
    for field in ("seeds", "base_seeds"):
        check_range(config, field, 1, 10_000)
    check_range(config, "data.eval_batch_size", 1)
    check_range(config, "data.val_sequences", 0)
    if study.check is not None:
        study.check(corpus)
    tokenizer = corpus.tokenizer
    for variant in study.variants:
        model, train_config = models.build(**variant.model), TrainConfig.from_mapping(variant.train)
        if (vocab_size := model.config.vocab_size) < tokenizer.vocab_size:
            raise UserError(
                f"config.model.vocab_size={vocab_size} is smaller than the {tokenizer.vocab_size} tokens of "
                f"{tokenizer.name}; 0 follows the tokenizer"
            )
        mesh = mesh_of(train_config)
        plan = RunPlan(model, train_config, variant.schedule, mesh)
        processes.check_batch(config.data.eval_batch_size, mesh, "config.data.eval_batch_size")
        artifact.predict_size(plan.abstract_params, model=variant.model, **packing(config))
        sizes: Any = {"batch_size": train_config.batch_size, "seq_len": train_config.seq_len}
        data.train_iterator(corpus.train, seed=train_config.seed + config.seeds - 1, **sizes)
        data.eval_batches(corpus.val, **sizes)


def claim_workdir(workdir: Path, config: ConfigDict, corpus: data.Corpus, study: Study) -> None:
    """Writes config.json, or checks that the one there is of this config and data.

    More seeds of either kind or other variants may be added to a folder, and the mesh may change; anything else would
    mix two studies, and is refused.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder")
    now: dict[str, Any] = {"config": json.loads(config.to_json()), "data_fingerprint": corpus.fingerprint}
    now |= {f"{name}_fingerprint": digest for name, digest in study.inputs.items()}
    path = workdir / CONFIG
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        open_for_writing(workdir, study.fields)
        before = read_config(workdir) if path.exists() else now
        if any(workdir.glob("runs/*")):  # before its first run a folder may still change its mind
            _check_same_study(before, now, workdir)
        corpus.tokenizer.save(workdir, TOKENIZER)  # to score other text with
        write_atomically(path, json.dumps(now, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {error.strerror}; name a folder that can be written") from None


def _check_same_study(before: Any, now: Any, workdir: Path) -> None:
    # A field that an older folder does not have yet is as if it were empty: what it adds was not there.
    old, new = (flatten_dict(found, sep="/") for found in (before, now))
    for field in sorted(old.keys() | new.keys()):
        then, wanted = (found.get(field, "") for found in (old, new))
        if not field.startswith(_MAY_CHANGE) and then != wanted:
            raise UserError(
                f"{workdir} holds a study with {field}={then!r}, not {wanted!r}; "
                "use another --workdir or delete that folder"
            )


def run_group(session: Session, group: sweeps.Group) -> None:
    """Trains, evaluates, packs and records some runs, those without a result: one alone, or several together."""
    left = []
    for variant, run in group:
        if processes.broadcast_from_main((run.directory(session.workdir) / RESULT).exists()):
            session.progress.skip(run.title)
        else:
            left.append((variant, run))
    if len(left) == 1:
        run_one(session, *left[0])
    elif left:
        session.progress.say(f"{left[0][1].title}, and {len(left) - 1} more with it: one program for all")
        first, run = left[0]
        task, _ = task_of(session, first, run, spread=False)  # a sweep deals out runs, not the parts of one
        for index, found, records in sweeps.train_together(session, first, task, left):
            variant, run = left[index]
            directory = run.directory(session.workdir)
            sinks = sinks_of(session, variant, run, task.config)
            for sink in sinks:
                sink.begin(0)
                for record in records:
                    sink.write(record)
                sink.close()
            leave(session, variant, run, found, task._replace(directory=directory), None)


def run_one(session: Session, variant: Variant, run: Run) -> None:
    """Trains, evaluates, packs and records one run."""
    task, layout = task_of(session, variant, run)
    objective, batches = variant.minimize(task)
    with until_the_end_of_a_run(batches):
        found = train(
            task.model,
            objective,
            batches,
            task.config,
            variant.schedule,
            task.directory,
            params=None if variant.start is None else variant.start(task),
            policy=None if variant.policy is None else variant.policy(task),
            mesh=task.mesh,
            sinks=sinks_of(session, variant, run, task.config),
            stop=session.stop,
        )
    leave(session, variant, run, found, task, layout)


def task_of(session: Session, variant: Variant, run: Run, *, spread: bool = True) -> tuple[Task, Layout | None]:
    """A run before it starts, and how its weights lie on its mesh, if it is to be spread over one."""
    first = TrainConfig.from_mapping(variant.train)
    config = dataclasses.replace(first, seed=first.seed + run.seed, base_seed=run.base_seed)
    model, mesh = models.build(**variant.model), mesh_of(config) if spread else None
    layout = None if mesh is None else Layout(mesh, model.abstract_params(), model.sharding)
    evaluate = session.evaluators.of(variant.model, model.apply, variant.train, layout)
    earlier = functools.partial(trained, session, variant, run)
    return Task(model, config, session.corpus, mesh, evaluate, earlier, run.directory(session.workdir)), layout


def sinks_of(session: Session, variant: Variant, run: Run, config: TrainConfig) -> list[Sink]:
    """Where the records of a run go; only the first process has any."""
    if not processes.is_main():
        return []
    metrics = JsonLines(run.directory(session.workdir) / METRICS)
    sinks: list[Sink] = [metrics, session.progress.run(run.title, config)]
    if session.tensorboard:
        sinks.append(TensorBoard(session.workdir / "tensorboard" / variant.name / run.folder))
    return sinks


def leave(session: Session, variant: Variant, run: Run, found: TrainResult, task: Task, layout: Layout | None) -> None:
    """What a run leaves once its training has ended: weights and their file, if the study keeps them, and a result."""
    directory, mesh, packed = task.directory, task.mesh, dict[str, Any]()
    variant = dataclasses.replace(variant, schedule=found.schedule or variant.schedule)  # as a policy has decided
    if session.study.files:
        save_params(directory / "params", found.params)
    whole = found if mesh is None else dataclasses.replace(found, params=processes.to_host(found.params))
    if session.study.files:
        processes.on_main(lambda: pack(session, variant, whole.params, directory))
        packed = score_packed(session, variant, directory, layout)

    def conclude_run() -> None:
        finish(session, variant, run, whole, mesh, packed)
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)
        session.finished.add(directory)
        summary.write(session)

    processes.on_main(conclude_run)


def trained(session: Session, variant: Variant, run: Run, name: str) -> Trained:
    """What the run of another variant with the seeds of `run` left; the first base seed where it has no other."""
    if name not in variant.needs:
        raise ValueError(f"the runs of {variant.name} read those of {name}, which it does not name in needs")
    (other,) = (each for each in session.study.variants if each.name == name)
    directory = Run(name, run.seed, run.base_seed * other.base_seeds).directory(session.workdir)
    model = models.build(**other.model)
    return Trained(model.apply, load_params(directory / "params", model.abstract_params()))
