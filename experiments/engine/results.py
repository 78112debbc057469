"""What a finished run leaves: its figures, its weights packed into one file and scored again, result.json."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.engine.evaluators import Evaluators
from experiments.engine.variants import Run, Variant
from experiments.engine.workdir import write_result
from freezejax import artifact, describe
from freezejax.data import Corpus
from freezejax.masks import count_parameters, intersection, invert
from freezejax.paths import PyTree
from freezejax.training.config import TrainConfig
from freezejax.training.loop import TrainResult
from freezejax.training.metrics import read_json_lines
from freezejax.training.state import fingerprint
from freezejax.weights import count_seeded

PACKED = "model.fjax"  # in the folder of a run


def finish(
    variant: Variant,
    run: Run,
    found: TrainResult,
    config: ConfigDict,
    corpus: Corpus,
    directory: Path,
    evaluators: Evaluators,
) -> dict[str, Any]:
    """Writes the packed file and result.json of a run whose training has ended; returns the latter.

    Args:
      variant: what ran.
      run: its seeds.
      found: what training left.
      config: of the study.
      corpus: what the packed weights are scored on.
      directory: of the run; holds its metrics.jsonl.
      evaluators: of the study.
    """
    train_config = TrainConfig.from_mapping(variant.train)
    last = [record for record in read_json_lines(directory / "metrics.jsonl") if "val_ce" in record][-1]
    result = {
        **run._asdict(),
        "model": dict(variant.model),
        "tokenizer": corpus.tokenizer.name,
        "tokenizer_sha256": corpus.tokenizer.fingerprint,
        **{field: last[field] for field in ("val_ce", "val_bpb", "tokens", "bytes")},
        **sizes(variant, found.params),
        **pack(variant, found.params, config, corpus, directory, evaluators),
        "params_sha256": fingerprint(found.params),
        "steps": found.steps,
        "train_tokens": found.steps * train_config.tokens_per_step,
        "step_ms_median": found.step_ms_median,
        "phases": phases(variant, found.params),
    }
    write_result(directory, result)
    return result


def pack(
    variant: Variant, params: PyTree, config: ConfigDict, corpus: Corpus, directory: Path, evaluators: Evaluators
) -> dict[str, Any]:
    """Packs the weights into `directory/model.fjax`, loads that file and scores what it holds.

    Returns:
      Predicted and real bytes of the file, its SHA-256, how it was packed, and its loss.
    """
    path, codec, compressor = directory / PACKED, codec_rules(config), config.artifact.compressor
    tokenizer = {"name": corpus.tokenizer.name, "sha256": corpus.tokenizer.fingerprint}
    notes = {"seq_len": variant.train["seq_len"]}  # for experiments.evaluate
    options: dict[str, Any] = {"model": dict(variant.model), "codec": codec, "tokenizer": tokenizer, "notes": notes}
    saved = artifact.save(path, params, compressor=compressor, **options)
    apply, loaded, metadata = artifact.load(path)
    scored = evaluators.of(metadata["model"], apply, variant)(loaded)
    return {
        "packed_ce": scored.val_ce,
        "packed_bpb": scored.val_bpb,
        "stored_bytes_predicted": artifact.predict_size(params, compressor="none", **options).high,
        "artifact_bytes": saved.bytes,
        "artifact_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "codec": codec,
        "compressor": compressor,
    }


def codec_rules(config: ConfigDict) -> list[tuple[str, str]]:
    """Codec of every leaf: adapters have one of their own, because they lose more at few bits."""
    return [("role=adapter", config.artifact.adapter_codec), (".*", config.artifact.codec)]


def sizes(variant: Variant, params: PyTree) -> dict[str, int]:
    """Weights by the way they exist at the end of the run. Root seeds are not weights."""
    last = variant.schedule.phases(params, variant.train["steps"])[-1].mask
    weights = jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating), params)
    return {
        "trainable_params": count_parameters(params, intersection(weights, last)),
        "frozen_params": count_parameters(params, intersection(weights, invert(last))),
        "seeded_params": count_seeded(params),
    }


def phases(variant: Variant, params: PyTree) -> list[dict[str, Any]]:
    """Trainable share of every module group in every phase, for the report's timeline."""
    found = []
    for phase in variant.schedule.phases(params, variant.train["steps"]):
        _, rows = describe(params, phase.mask).phases[0]
        shares = {row.group: row.trainable_share for row in rows}
        found.append({"start": phase.start, "stop": phase.stop, "trainable": shares})
    return found
