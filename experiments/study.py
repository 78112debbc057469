"""The one study engine: variants x seeds -> finished runs -> rows -> summary.json, table, report."""

import json
import operator
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments import cli, report, summary
from experiments.progress import Progress
from experiments.variants import Study, Variant, select
from freezejax import data, describe, models
from freezejax.artifact import packed_bytes, predict_bytes
from freezejax.errors import UserError
from freezejax.masks import count_parameters, intersection, invert, union
from freezejax.paths import PyTree
from freezejax.training.checkpoints import save_params
from freezejax.training.config import TrainConfig
from freezejax.training.evaluation import make_evaluator
from freezejax.training.interrupts import Stopped, StopSignal, catch_signals
from freezejax.training.loop import TrainResult, train
from freezejax.training.metrics import JsonLines, Sink, TensorBoard, read_json_lines, write_atomically
from freezejax.training.state import fingerprint

TOKENIZER = "tokenizer.model"  # in the workdir of a study on SentencePiece tokens


def main(make_study: Callable[[ConfigDict, int], Study]) -> None:
    """Runs the study of the flags: every (variant, seed) not yet finished, then summary and report."""
    config, workdir = flags.FLAGS.config, Path(flags.FLAGS.workdir).absolute()
    cli.use_compilation_cache()
    corpus = data.load(
        config.data.path,
        tokenizer=config.data.tokenizer,
        val_fraction=config.data.val_fraction,
        cache_dir=str(cli.cache_dir() / "data"),
    )
    whole = make_study(config, corpus.tokenizer.vocab_size)
    study = select(whole, config.variants)
    check(study, config, corpus)
    claim_workdir(workdir, config, corpus)
    with catch_signals() as stop, Progress(len(study.variants) * config.seeds) as progress:
        for seed in range(config.seeds):
            for variant in study.variants:
                if stop.received is not None:
                    raise Stopped(None, stop.received)
                run_one(variant, seed, config, corpus, workdir, progress, stop)
                summary.write(whole, config, corpus, workdir)
    rows = summary.write(whole, config, corpus, workdir)
    report.write(rows, workdir)
    summary.print_table(rows)
    print(f"Written: {workdir / 'summary.json'} and {workdir / 'report.html'}")


def check(study: Study, config: ConfigDict, corpus: data.Corpus) -> None:
    """Finds every bad field, pattern and size before a file is written or a step is run.

    Raises:
      UserError: what the first bad one is.
    """
    for field, least in (("seeds", 1), ("data.eval_batch_size", 1), ("data.val_sequences", 0)):
        if (value := operator.attrgetter(field)(config)) < least:
            raise UserError(f"config.{field}={value}: expected {least} or more")
    for variant in study.variants:
        vocab_size, tokenizer = variant.model["vocab_size"], corpus.tokenizer
        if vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"config.model.vocab_size={vocab_size} is smaller than the {tokenizer.vocab_size} tokens of "
                f"{tokenizer.name}; 0 follows the tokenizer"
            )
        train_config = TrainConfig.from_mapping(variant.train)
        shapes = jax.eval_shape(models.build(**variant.model).init, jax.random.key(0))
        variant.schedule.phases(shapes, train_config.steps)
        sizes = {"batch_size": train_config.batch_size, "seq_len": train_config.seq_len}
        data.train_iterator(corpus.train, seed=config.seeds - 1, **sizes)
        data.eval_batches(corpus.val, **sizes)


def claim_workdir(workdir: Path, config: ConfigDict, corpus: data.Corpus) -> None:
    """Writes config.json, or checks that the one there is of this config and data.

    More seeds or other variants may be added to a folder; anything else would mix two studies.

    Raises:
      UserError: the folder holds a study of another config or corpus, is a file, or cannot be written.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder")
    now = {"config": json.loads(config.to_json()), "data_fingerprint": corpus.fingerprint}
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if any(workdir.glob("runs/*")):  # before its first run a folder may still change its mind
                _check_same_study(before, now, workdir)
        if isinstance(corpus.tokenizer, data.SentencePieceTokenizer):
            shutil.copyfile(corpus.tokenizer.path, workdir / TOKENIZER)  # to score other text with
        write_atomically(path, json.dumps(now, indent=2) + "\n")
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is not JSON; use another --workdir or delete that file") from None
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {error.strerror}; name a folder that can be written") from None


def _check_same_study(before: Any, now: Any, workdir: Path) -> None:
    old, new = summary.flatten(before), summary.flatten(now)
    for field in sorted(old.keys() | new.keys()):
        if field not in ("config/seeds", "config/variants") and old.get(field) != new.get(field):
            raise UserError(
                f"{workdir} holds a study with {field}={old.get(field)!r}, not {new.get(field)!r}; "
                "use another --workdir or delete that folder"
            )


def run_directory(workdir: Path, variant: str, seed: int) -> Path:
    """Folder of one run.

    >>> run_directory(Path("runs"), "baseline", 0).as_posix()
    'runs/runs/baseline/seed_0'
    """
    return workdir / "runs" / variant / f"seed_{seed}"


def run_one(
    variant: Variant,
    seed: int,
    config: ConfigDict,
    corpus: data.Corpus,
    workdir: Path,
    progress: Progress,
    stop: StopSignal,
) -> None:
    """Trains, evaluates and records one (variant, seed), unless its result is there."""
    directory = run_directory(workdir, variant.name, seed)
    if (directory / "result.json").exists():
        progress.skip(variant.name, seed)
        return
    train_config = TrainConfig.from_mapping({**variant.train, "seed": seed})
    model = models.build(**variant.model)
    evaluate = make_evaluator(
        model.apply,
        corpus.val,
        corpus.tokenizer.byte_table(),
        batch_size=config.data.eval_batch_size,
        seq_len=train_config.seq_len,
        compute_dtype=train_config.compute_dtype,
        every=every_window(len(corpus.val), train_config.seq_len, config.data.val_sequences),
    )
    sinks: list[Sink] = [JsonLines(directory / "metrics.jsonl"), progress.run(variant, seed, train_config)]
    if flags.FLAGS.tensorboard:
        sinks.append(TensorBoard(workdir / "tensorboard" / variant.name / f"seed_{seed}"))
    found = train(
        model,
        corpus.train,
        train_config,
        variant.schedule,
        directory,
        evaluate=lambda params: evaluate(params)._asdict(),
        sinks=sinks,
        stop=stop,
    )
    save_params(directory / "params", found.params)
    result = result_of(variant, train_config, corpus, found, directory / "metrics.jsonl")
    write_atomically(directory / "result.json", json.dumps(result, indent=2) + "\n")
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def every_window(tokens: int, seq_len: int, wanted: int) -> int:
    """Stride over validation windows that keeps at least `wanted` of them; 0 wants all.

    >>> every_window(10_001, 10, 0), every_window(10_001, 10, 300)
    (1, 3)
    """
    return max(1, (tokens - 1) // seq_len // wanted) if wanted else 1


def result_of(
    variant: Variant, config: TrainConfig, corpus: data.Corpus, found: TrainResult, metrics: Path
) -> dict[str, Any]:
    """What result.json says of one finished run."""
    last = [record for record in read_json_lines(metrics) if "val_ce" in record][-1]
    return {
        "variant": variant.name,
        "seed": config.seed,
        "model": dict(variant.model),
        "tokenizer": corpus.tokenizer.name,
        "tokenizer_sha256": corpus.tokenizer.fingerprint,
        **{field: last[field] for field in ("val_ce", "val_bpb", "tokens", "bytes")},
        **sizes(variant, config, found.params),
        "params_sha256": fingerprint(found.params),
        "steps": found.steps,
        "train_tokens": found.steps * config.tokens_per_step,
        "step_ms_median": found.step_ms_median,
        "phases": phases(variant, config, found.params),
    }


def sizes(variant: Variant, config: TrainConfig, params: PyTree) -> dict[str, int]:
    """Parameters by the way they exist at the end of the run, and stored bytes, predicted and packed."""
    masks = [phase.mask for phase in variant.schedule.phases(params, config.steps)]
    ever_trained = masks[0]
    for mask in masks[1:]:
        ever_trained = union(ever_trained, mask)
    seeded = invert(ever_trained) if variant.seeded else jax.tree.map(lambda _: False, params)
    frozen = intersection(invert(masks[-1]), invert(seeded))
    return {
        "trainable_params": count_parameters(params, masks[-1]),
        "frozen_params": count_parameters(params, frozen),
        "seeded_params": count_parameters(params, seeded),
        "stored_bytes_predicted": predict_bytes(params, seeded),
        "artifact_bytes": packed_bytes(params, seeded),
    }


def phases(variant: Variant, config: TrainConfig, params: PyTree) -> list[dict[str, Any]]:
    """Trainable share of every module group in every phase, for the report's timeline."""
    found = []
    for phase in variant.schedule.phases(params, config.steps):
        _, rows = describe(params, phase.mask).phases[0]
        shares = {row.group: row.trainable_share for row in rows}
        found.append({"start": phase.start, "stop": phase.stop, "trainable": shares})
    return found
