"""One command at work on one folder: what its runs share, and what a finished one leaves.

That is its figures, its weights packed into one file and scored again, and result.json.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.engine.progress import Progress
from experiments.engine.variants import Evaluators, Measure, Run, Study, Variant
from experiments.engine.workdir import METRICS, Finished, write_result
from freezejax import artifact, describe
from freezejax.data import Corpus
from freezejax.masks import count_parameters, intersection, invert
from freezejax.paths import PyTree
from freezejax.sharding import Layout
from freezejax.training import processes
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import StopSignal
from freezejax.training.loop import TrainResult
from freezejax.training.metrics import read_json_lines
from freezejax.training.state import fingerprint
from freezejax.weights import count_seeded

PACKED = "model.fjax"  # in the folder of a run


class Session(NamedTuple):
    """What the runs of one command share."""

    study: Study  # all variants, those that this command does not run among them
    config: ConfigDict
    corpus: Corpus
    workdir: Path
    evaluators: Evaluators
    finished: Finished  # of earlier commands and of this one; filled in process 0 alone
    progress: Progress
    stop: StopSignal
    tensorboard: bool  # also write events


def finish(
    session: Session, variant: Variant, run: Run, found: TrainResult, mesh: Mesh | None, packed: Mapping[str, Any]
) -> None:
    """Writes result.json of a run whose training has ended and whose weights are packed.

    `found` is what training left, its parameters on one device; `mesh` the devices it ended on, None = one; `packed`
    the figures of its packed file, see `score_packed`.
    """
    directory, tokenizer = run.directory(session.workdir), session.corpus.tokenizer
    compared = session.study.figures[0].trained
    last = [record for record in read_json_lines(directory / METRICS) if compared in record][-1]
    predicted = artifact.predict_size(found.params, **{**_file_options(session, variant), "compressor": "none"})
    result = {
        **run._asdict(),
        "model": dict(variant.model),
        "mesh": dict(mesh.shape) if mesh else {},
        "tokenizer": tokenizer.name,
        "tokenizer_sha256": tokenizer.fingerprint,
        **{field: value for field, value in last.items() if field != "step"},
        **sizes(variant, found.params),
        **packed,
        "stored_bytes_predicted": predicted.high,
        **packing(session.config),
        "params_sha256": fingerprint(found.params),
        "steps": found.steps,
        "steps_before": sum(before.train["steps"] for before in session.study.before(variant)),
        "train_tokens": found.steps * TrainConfig.from_mapping(variant.train).tokens_per_step,
        "step_ms_median": found.step_ms_median,
        "seconds": found.seconds,
        "step_seconds": found.step_seconds,
        "phases": phases(variant, found.params),
        **measured({**session.study.measures, **variant.measures}, found.params),
    }
    write_result(directory, result)


def pack(session: Session, variant: Variant, params: PyTree, directory: Path) -> None:
    """Packs the weights of a run into `directory/model.fjax`."""
    artifact.save(directory / PACKED, params, **_file_options(session, variant))


def score_packed(session: Session, variant: Variant, directory: Path, layout: Layout | None) -> dict[str, Any]:
    """Bytes and SHA-256 of a run's packed file, and the figures of what it holds; every process calls it alike."""
    content = (directory / PACKED).read_bytes()
    apply, params, metadata = artifact.load(directory / PACKED)
    if layout is not None:
        params = processes.place(params, layout.shardings(params))
    scored = session.evaluators.of(metadata["model"], apply, variant.train, layout)(params)
    return {
        **{figure.packed: scored[figure.trained] for figure in session.study.figures},
        "artifact_bytes": len(content),
        "artifact_sha256": hashlib.sha256(content).hexdigest(),
    }


def _file_options(session: Session, variant: Variant) -> dict[str, Any]:
    tokenizer = session.corpus.tokenizer
    return {
        "model": dict(variant.model),
        **packing(session.config),
        "tokenizer": {"name": tokenizer.name, "sha256": tokenizer.fingerprint},
        "notes": {"seq_len": variant.train["seq_len"]},  # for experiments.evaluate
    }


def packing(config: ConfigDict) -> dict[str, Any]:
    """How files are packed: codec by leaf, and compressor. Adapters lose more at few bits, so theirs is another codec.

    Rules by role count for small matrices too: else those of a narrow model would take 16 bits a weight, beside
    another's adapters of 8.

    >>> from experiments.configs.progressive import get_config
    >>> packing(get_config("tiny"))["codec"]
    [('role=adapter', 'int8'), ('role=kernel', 'int6'), ('role=embedding', 'int6'), ('.*', 'int6')]
    """
    codec, adapter_codec = config.artifact.codec, config.artifact.adapter_codec
    rules = [("role=adapter", adapter_codec), ("role=kernel", codec), ("role=embedding", codec), (".*", codec)]
    return {"codec": rules, "compressor": config.artifact.compressor}


def sizes(variant: Variant, params: PyTree) -> dict[str, int]:
    """Weights by the way they exist at the end of the run. Base seeds are not weights."""
    last = variant.schedule.phases(params, variant.train["steps"])[-1].mask
    weights = jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating), params)
    return {
        "trainable_params": count_parameters(params, intersection(weights, last)),
        "frozen_params": count_parameters(params, intersection(weights, invert(last))),
        "seeded_params": count_seeded(params),
    }


def measured(measures: Mapping[str, Measure], params: PyTree) -> dict[str, Any]:
    """What some measures find in trained weights, under `measured`; nothing where they find nothing."""
    found = {name: dict(measure(params)) for name, measure in measures.items()}
    found = {name: values for name, values in found.items() if values}
    return {"measured": found} if found else {}


def phases(variant: Variant, params: PyTree) -> list[dict[str, Any]]:
    """Trainable share of every module group in every phase, for the report's timeline."""
    found = []
    for start, stop, mask in variant.schedule.phases(params, variant.train["steps"]):
        _, rows = describe(params, mask).phases[0]
        shares = {row.group: row.trainable_share for row in rows}
        found.append({"start": start, "stop": stop, "trainable": shares})
    return found
