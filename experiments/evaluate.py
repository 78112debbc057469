"""Scores a finished run, or an artifact, on any corpus: one JSON line.

python -m experiments.evaluate --workdir=RUN --variant=NAME --seed=0 [--packed]
python -m experiments.evaluate --workdir=RUN --variant=NAME --seed=0 --data=PATH --seq_len=512 --stride=64
python -m experiments.evaluate --artifact=FILE.fjax --data=PATH

On its study's own text a run is scored as the study did, so the figures are those of its result.json to the last bit
(with --packed, those of its packed file); on other text every window is scored. docs/data.md tells more.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from experiments.engine import accelerators, cli
from experiments.engine.evaluators import Evaluators
from experiments.engine.results import PACKED
from experiments.engine.study import TOKENIZER
from experiments.engine.variants import Run
from experiments.engine.workdir import RESULT, read_config, read_result
from freezejax import artifact, data, models
from freezejax.errors import UserError
from freezejax.paths import PyTree, nearest
from freezejax.sharding import Layout
from freezejax.training import processes
from freezejax.training.checkpoints import load_params
from freezejax.training.config import TrainConfig
from freezejax.training.evaluation import Apply, evaluate_sliding
from freezejax.training.plan import mesh_of
from freezejax.training.state import fingerprint

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a study.")
_VARIANT = flags.DEFINE_string("variant", None, "Name of a finished variant.")
_SEED = flags.DEFINE_integer("seed", 0, "Training seed of the run.", lower_bound=0)
_BASE_SEED = flags.DEFINE_integer("base_seed", 0, "Base seed of the run: of its random maps.", lower_bound=0)
_PACKED = flags.DEFINE_bool("packed", False, "Score the run's packed file in place of its parameters.")
_ARTIFACT = flags.DEFINE_string("artifact", None, "An artifact, in place of a run of a study.")
_DATA = flags.DEFINE_string(
    "data", None, "As config.data.path, or a folder of validation shards, or one shard; default: the study's own text."
)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "A .model file, for an artifact on text that brings none.")
_SEQ_LEN = flags.DEFINE_integer("seq_len", None, "Tokens per window; default: as trained.", lower_bound=1)
_STRIDE = flags.DEFINE_integer("stride", 0, "Also score sliding windows that move by this many tokens.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Windows per call; default: the study's, or 16.", lower_bound=1)
_VAL_SEQUENCES = flags.DEFINE_integer(
    "val_sequences", None, "Windows to score, 0 = all; default: the study's on its own text, or 0.", lower_bound=0
)
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype", None, ["float32", "bfloat16"], "Of the activations; default: the study's, or float32."
)


class _Scored(NamedTuple):
    """A model to score, and what it was trained on."""

    apply: Apply
    params: PyTree
    model: dict[str, Any]
    config: ConfigDict  # fields of a study's config that say how to score
    tokenizer: dict[str, str] | None  # name, sha256
    corpus: data.Corpus
    layout: Layout | None = None


def main() -> None:
    """Prints `val_ce, val_bpb, tokens, bytes` and, with --stride, the `sliding_` figures too."""
    if _ARTIFACT.value and (_WORKDIR.value or _VARIANT.value):
        raise UserError("--artifact=FILE and --workdir=FOLDER --variant=NAME are two things to score; give one")
    if _TOKENIZER.value and not _ARTIFACT.value:
        raise UserError("--tokenizer=FILE.model is for --artifact=FILE; a run of a study keeps its own")
    if _PACKED.value and _ARTIFACT.value:
        raise UserError("--packed is for --workdir=FOLDER --variant=NAME; --artifact=FILE is a packed file")
    scored = _of_artifact() if _ARTIFACT.value else _of_run()
    corpus, tokenizer, config = scored.corpus, scored.tokenizer, scored.config
    if tokenizer and corpus.tokenizer.fingerprint != tokenizer["sha256"]:
        remedy = "give it with --tokenizer=FILE.model" if _ARTIFACT.value else "give text, or shards made with it"
        raise UserError(
            f"--data={_DATA.value}: tokens of {corpus.tokenizer.name} are not those of the model's tokenizer, "
            f"{tokenizer['name']}; {remedy}"
        )
    evaluate = Evaluators(config, corpus).of(scored.model, scored.apply, config.train.to_dict(), scored.layout)
    if _STRIDE.value and not 1 <= _STRIDE.value <= config.train.seq_len:
        raise UserError(f"--stride={_STRIDE.value}: expected 1 to seq_len={config.train.seq_len}")
    accelerators.announce(sys.stderr)  # stdout is the figures alone
    found = dict(evaluate(scored.params))
    if _STRIDE.value:
        sizes: Any = {"batch_size": config.data.eval_batch_size, "seq_len": config.train.seq_len}
        sliding = evaluate_sliding(
            scored.apply,
            scored.params,
            corpus.val,
            corpus.tokenizer.byte_table(),
            stride=_STRIDE.value,
            compute_dtype=config.train.compute_dtype,
            **sizes,
        )
        found |= {f"sliding_{name}": value for name, value in sliding._asdict().items()}
    print(json.dumps(found))


def _of_run() -> _Scored:
    if not _WORKDIR.value or not _VARIANT.value:
        raise UserError(
            "--workdir=FOLDER and --variant=NAME are needed: which finished run to score (or --artifact=FILE)"
        )
    workdir, variant = Path(_WORKDIR.value).absolute(), _VARIANT.value
    if not (workdir / "config.json").exists():
        raise UserError(f"--workdir={_WORKDIR.value}: not the folder of a study")
    read = read_config(workdir)
    directory = Run(variant, _SEED.value or 0, _BASE_SEED.value or 0).directory(workdir)
    if not (directory / RESULT).exists():
        raise UserError(_no_such_run(workdir, variant))
    result, config = read_result(directory), _chosen(ConfigDict(read["config"]))
    corpus = _corpus_of_run(workdir, config, read["data_fingerprint"])
    tokenizer = {"name": result["tokenizer"], "sha256": result["tokenizer_sha256"]}
    model, mesh = models.build(**result["model"]), mesh_of(TrainConfig.from_mapping(config.train))
    shapes = model.abstract_params()
    layout = None if mesh is None else Layout(mesh, shapes, model.family.sharding)
    if _PACKED.value:
        _, params, metadata = artifact.load(directory / PACKED)
        if hashlib.sha256((directory / PACKED).read_bytes()).hexdigest() != result["artifact_sha256"]:
            raise UserError(f"{directory / PACKED}: not the file that the run packed")
        params = params if layout is None else processes.place(params, layout.shardings(params))
        return _Scored(model.apply, params, metadata["model"], config, tokenizer, corpus, layout)
    params = load_params(directory / "params", shapes if layout is None else layout.abstract(shapes))
    if fingerprint(params) != result["params_sha256"]:
        raise UserError(f"{directory / 'params'}: not the parameters that the run saved; they are damaged")
    return _Scored(model.apply, params, result["model"], config, tokenizer, corpus, layout)


def _corpus_of_run(workdir: Path, config: ConfigDict, data_fingerprint: str) -> data.Corpus:
    """The study's own text, checked to be that, or the one of --data, every window of which is scored."""
    tokenizer = str(workdir / TOKENIZER) if (workdir / TOKENIZER).exists() else "bytes"
    if _DATA.value not in (None, config.data.path):
        if _VAL_SEQUENCES.value is None:
            config.data.val_sequences = 0
        return _load(_DATA.value or "", tokenizer, config.data.val_fraction)
    options = {"val_fraction": config.data.val_fraction, "cache_dir": str(cli.cache_dir() / "data")}
    corpus = data.load(config.data.path, tokenizer=tokenizer, **options)
    if corpus.fingerprint != data_fingerprint:
        raise UserError(
            f"--workdir={_WORKDIR.value}: the text of the study has changed since (config.data.path="
            f"{config.data.path!r}); name what to score with --data=PATH"
        )
    return corpus


def _of_artifact() -> _Scored:
    apply, params, metadata = artifact.load(_ARTIFACT.value or "")
    seq_len = metadata["notes"].get("seq_len") if isinstance(metadata["notes"], dict) else None
    corpus = _load(_DATA.value or "", _TOKENIZER.value or "bytes", 0.1)
    vocab_size = models.build(**metadata["model"]).config.vocab_size
    if corpus.tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"--data={_DATA.value}: {corpus.tokenizer.name} has {corpus.tokenizer.vocab_size} tokens, the model "
            f"{vocab_size}; give the model's tokenizer with --tokenizer=FILE.model"
        )
    known = isinstance(seq_len, int) and seq_len > 0  # notes hold whatever their writer put there
    if not known and not _SEQ_LEN.value:
        raise UserError(f"--artifact={_ARTIFACT.value} does not say how long its sequences were; give --seq_len")
    train = {"steps": 1, "batch_size": 1, "seq_len": seq_len if known else 1, "compute_dtype": "float32"}
    config = ConfigDict({"train": train, "data": {"eval_batch_size": 16, "val_sequences": 0}})
    return _Scored(apply, params, metadata["model"], _chosen(config), metadata["tokenizer"], corpus)


def _chosen(config: ConfigDict) -> ConfigDict:
    """The config with what the flags say in its place."""
    for where, name, flag in (
        (config.train, "seq_len", _SEQ_LEN),
        (config.train, "compute_dtype", _COMPUTE_DTYPE),
        (config.data, "eval_batch_size", _BATCH_SIZE),
        (config.data, "val_sequences", _VAL_SEQUENCES),
    ):
        if flag.value is not None:
            where[name] = flag.value
    return config


def _load(path: str, tokenizer: str, val_fraction: float) -> data.Corpus:
    """A corpus in the model's own tokenizer, but for shards that bring theirs: then the two are compared."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    shards = path.endswith(".bin") or (Path(path).is_dir() and any(folder.glob("*.bin")))
    if path and shards and any(folder.glob("*.model")):
        tokenizer = ""
    cache_dir = str(cli.cache_dir() / "data")
    return data.load(path, tokenizer=tokenizer, val_fraction=val_fraction, cache_dir=cache_dir, to_train=False)


def _no_such_run(workdir: Path, variant: str) -> str:
    finished = sorted({path.parent.parent.name for path in workdir.glob(f"runs/*/seed_*/{RESULT}")})
    if variant not in finished:
        return f"--variant={variant}: no such finished variant in {workdir}; {nearest(variant, finished)}"
    seeds = f"--seed={_SEED.value} --base_seed={_BASE_SEED.value}"
    return f"{seeds}: variant {variant} has no finished run of these seeds"


if __name__ == "__main__":
    accelerators.define_flags()
    cli.run(main)
