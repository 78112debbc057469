"""Scores a finished run, or an artifact, on any corpus: one JSON line.

python -m experiments.evaluate --workdir=RUN --variant=NAME --seed=0 [--packed]
python -m experiments.evaluate --workdir=RUN --variant=NAME --seed=0 --data=PATH --seq_len=512 --stride=64
python -m experiments.evaluate --artifact=FILE.fjax --data=PATH [--seq_len=512]
python -m experiments.evaluate --artifact=A.fjax,B.fjax --combine=logits --data=PATH [--budget=BYTES]

On its study's own text a run is scored as the study did, so the figures are those of its result.json to the last bit
(with --packed, those of its packed file); on other text every window is scored. Several artifacts are scored as one
model, the mean of their logits or probabilities (docs/artifact.md). docs/data.md tells more.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from experiments.engine import accelerators, cli
from experiments.engine.results import PACKED
from experiments.engine.study import TOKENIZER
from experiments.engine.variants import Evaluators, Run
from experiments.engine.workdir import CONFIG, RESULT, read_config, read_result
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

_GIVEN = flags.FLAGS


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
    if _GIVEN.artifact and (_GIVEN.workdir or _GIVEN.variant):
        raise UserError("--artifact=FILE and --workdir=FOLDER --variant=NAME are two things to score; give one")
    if _GIVEN.tokenizer and not _GIVEN.artifact:
        raise UserError("--tokenizer=FILE.model is for --artifact=FILE; a run of a study keeps its own")
    if (_GIVEN.combine or _GIVEN.budget) and len(_GIVEN.artifact or ()) < 2:
        raise UserError("--combine and --budget are for several files, --artifact=A.fjax,B.fjax")
    if _GIVEN.packed and _GIVEN.artifact:
        raise UserError("--packed is for --workdir=FOLDER --variant=NAME; --artifact=FILE is a packed file")
    scored = _of_artifact() if _GIVEN.artifact else _of_run()
    corpus, tokenizer, train, stride = scored.corpus, scored.tokenizer, scored.config.train, _GIVEN.stride
    if tokenizer and corpus.tokenizer.fingerprint != tokenizer["sha256"]:
        remedy = "give it with --tokenizer=FILE.model" if _GIVEN.artifact else "give text, or shards made with it"
        raise UserError(
            f"--data={_GIVEN.data}: tokens of {corpus.tokenizer.name} are not those of the model's tokenizer, "
            f"{tokenizer['name']}; {remedy}"
        )
    evaluate = Evaluators(scored.config, corpus).of(scored.model, scored.apply, train.to_dict(), scored.layout)
    if stride and not 1 <= stride <= train.seq_len:
        raise UserError(f"--stride={stride}: expected 1 to seq_len={train.seq_len}")
    accelerators.announce(sys.stderr)  # stdout is the figures alone
    found = dict(evaluate(scored.params))
    if stride:
        windows = (scored.apply, scored.params, corpus.val, corpus.tokenizer.byte_table())
        sizes: Any = {"batch_size": scored.config.data.eval_batch_size, "seq_len": train.seq_len, "stride": stride}
        sliding = evaluate_sliding(*windows, compute_dtype=train.compute_dtype, **sizes)
        found |= {f"sliding_{name}": value for name, value in sliding._asdict().items()}
    print(json.dumps(found))


def _of_run() -> _Scored:
    if not _GIVEN.workdir or not _GIVEN.variant:
        raise UserError("give --workdir=FOLDER and --variant=NAME: which finished run to score (or --artifact=FILE)")
    workdir, variant = Path(_GIVEN.workdir).absolute(), _GIVEN.variant
    if not (workdir / CONFIG).exists():
        raise UserError(f"--workdir={_GIVEN.workdir}: not the folder of a study")
    read = read_config(workdir)
    directory = Run(variant, _GIVEN.seed, _GIVEN.base_seed).directory(workdir)
    finished = sorted({path.parts[-3] for path in workdir.glob(f"runs/*/seed_*/{RESULT}")})
    if variant not in finished:
        raise UserError(f"--variant={variant}: no such finished variant in {workdir}; {nearest(variant, finished)}")
    if not (directory / RESULT).exists():
        seeds = f"--seed={_GIVEN.seed} --base_seed={_GIVEN.base_seed}"
        raise UserError(f"{seeds}: variant {variant} has no finished run of these seeds")
    result, config = read_result(directory), _chosen(ConfigDict(read["config"]))
    own = _GIVEN.data in (None, config.data.path)  # checked to be the study's; of other text every window is scored
    if not own and _GIVEN.val_sequences is None:
        config.data.val_sequences = 0
    tokens = next(map(str, workdir.glob(f"{TOKENIZER}.*")), "bytes")
    if own:
        corpus = _corpus(config.data.path, tokens, config.data.val_fraction, config.data.val_path, own=True)
    else:
        corpus = _corpus(_GIVEN.data, tokens, config.data.val_fraction)
    if own and corpus.fingerprint != read["data_fingerprint"]:
        raise UserError(
            f"--workdir={_GIVEN.workdir}: the text of the study has changed since (config.data.path="
            f"{config.data.path!r}); name what to score with --data=PATH"
        )
    return _restored(directory, result, config, corpus)


def _restored(directory: Path, result: dict[str, Any], config: ConfigDict, corpus: data.Corpus) -> _Scored:
    """What a run saved, or with --packed what it packed, checked to be that."""
    tokenizer = {"name": result["tokenizer"], "sha256": result["tokenizer_sha256"]}
    model, mesh = models.build(**result["model"]), mesh_of(TrainConfig.from_mapping(config.train))
    shapes = model.abstract_params()
    layout = None if mesh is None else Layout(mesh, shapes, model.sharding)
    if _GIVEN.packed:
        _, params, _ = artifact.load(directory / PACKED)
        if hashlib.sha256((directory / PACKED).read_bytes()).hexdigest() != result["artifact_sha256"]:
            raise UserError(f"{directory / PACKED}: not the file that the run packed")
        params = params if layout is None else processes.place(params, layout.shardings(params))
    else:
        params = load_params(directory / "params", shapes if layout is None else layout.abstract(shapes))
        if fingerprint(params) != result["params_sha256"]:
            raise UserError(f"{directory / 'params'}: not the parameters that the run saved; they are damaged")
    return _Scored(model.apply, params, result["model"], config, tokenizer, corpus, layout)


def _of_artifact() -> _Scored:
    apply, params, metadata = _loaded(_GIVEN.artifact)
    corpus = _corpus(_GIVEN.data or "", _GIVEN.tokenizer or "bytes", 0.1)
    vocab_size = models.build(**metadata["model"]).config.vocab_size
    if corpus.tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"--data={_GIVEN.data}: {corpus.tokenizer.name} has {corpus.tokenizer.vocab_size} tokens, the model "
            f"{vocab_size}; give the model's tokenizer with --tokenizer=FILE.model"
        )
    seq_len = _GIVEN.seq_len or _trained_length(metadata.get("members", [metadata]))
    train = {"steps": 1, "batch_size": 1, "seq_len": seq_len, "compute_dtype": "float32"}
    config = ConfigDict({"train": train, "data": {"eval_batch_size": 16, "val_sequences": 0}})
    return _Scored(apply, params, metadata["model"], _chosen(config), metadata["tokenizer"], corpus)


def _loaded(paths: list[str]) -> tuple[Apply, PyTree, dict[str, Any]]:
    """The model of one file, or that of several."""
    if len(paths) == 1:
        return artifact.load(paths[0])
    return artifact.load_ensemble(paths, combine=_GIVEN.combine or "logits", budget=_GIVEN.budget)


def _trained_length(files: list[dict[str, Any]]) -> int:
    """Tokens of the sequences that artifacts, given by their metadata, were trained on."""
    notes = [about["notes"] for about in files]  # whatever their writers put there
    lengths: list[Any] = [found.get("seq_len") if isinstance(found, dict) else None for found in notes]
    given = f"--artifact={','.join(_GIVEN.artifact)}"
    if not all(isinstance(length, int) and length > 0 for length in lengths):
        remedy = 'give --seq_len=N, or save it with notes={"seq_len": N}'
        raise UserError(f"{given} does not say how long its sequences were; {remedy}")
    if len(set(lengths)) > 1:
        raise UserError(f"{given}: sequences were of {', '.join(map(str, lengths))} tokens; choose with --seq_len=N")
    return lengths[0]


def _chosen(config: ConfigDict) -> ConfigDict:
    """The config with what the flags say in its place."""
    fields = {"train.seq_len": _GIVEN.seq_len, "train.compute_dtype": _GIVEN.compute_dtype}
    fields |= {"data.eval_batch_size": _GIVEN.batch_size, "data.val_sequences": _GIVEN.val_sequences}
    config.update_from_flattened_dict({field: value for field, value in fields.items() if value is not None})
    return config


def _corpus(path: str, tokenizer: str, val_fraction: float, val_path: str = "", *, own: bool = False) -> data.Corpus:
    """A corpus in the model's tokenizer, but for shards that bring theirs and are not the study's own."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    shards = path.endswith(".bin") or (Path(path).is_dir() and any(folder.glob("*.bin")))
    if path and shards and any(folder.glob("*.model")) and not own:
        tokenizer = ""
    cache_dir = str(cli.cache_dir() / "data")
    return data.load(
        path, tokenizer=tokenizer, val_fraction=val_fraction, val_path=val_path, cache_dir=cache_dir, to_train=own
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a study.")
    flags.DEFINE_string("variant", None, "Name of a finished variant.")
    flags.DEFINE_integer("seed", 0, "Training seed of the run.", lower_bound=0)
    flags.DEFINE_integer("base_seed", 0, "Base seed of the run: of its random maps.", lower_bound=0)
    flags.DEFINE_bool("packed", False, "Score the run's packed file in place of its parameters.")
    flags.DEFINE_list("artifact", None, "An artifact, in place of a run of a study; or several, scored as an ensemble.")
    flags.DEFINE_enum("combine", None, ["logits", "probabilities"], "Of several artifacts: the mean of what.")
    flags.DEFINE_integer("budget", None, "Of several artifacts: most bytes they may take together.", lower_bound=1)
    places = "As config.data.path, or a folder of validation shards, or one shard; default: the study's own text."
    flags.DEFINE_string("data", None, places)
    flags.DEFINE_string("tokenizer", None, "A .model file, for an artifact on text that brings none.")
    flags.DEFINE_integer("seq_len", None, "Tokens per window; default: as trained.", lower_bound=1)
    flags.DEFINE_integer("stride", 0, "Also score sliding windows that move by this many tokens.")
    flags.DEFINE_integer("batch_size", None, "Windows per call; default: the study's, or 16.", lower_bound=1)
    windows = "Windows to score, 0 = all; default: the study's on its own text, or 0."
    flags.DEFINE_integer("val_sequences", None, windows, lower_bound=0)
    dtypes = "Of the activations; default: the study's, or float32."
    flags.DEFINE_enum("compute_dtype", None, ["float32", "bfloat16"], dtypes)
    accelerators.define_flags()
    cli.run(main)
