"""Scores a finished run, or an artifact, on any corpus: one JSON line.

python -m experiments.evaluate --workdir=RUN --variant=NAME --seed=0 --data=PATH --seq_len=512 --stride=64
python -m experiments.evaluate --artifact=FILE.fjax --data=PATH
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags

from experiments.engine import cli
from experiments.engine.study import TOKENIZER
from experiments.engine.variants import Run
from freezejax import artifact, data, models
from freezejax.errors import UserError
from freezejax.paths import PyTree, nearest
from freezejax.training.checkpoints import load_params
from freezejax.training.evaluation import Apply, evaluate_sliding, make_evaluator
from freezejax.training.state import fingerprint

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a study.")
_VARIANT = flags.DEFINE_string("variant", None, "Name of a finished variant.")
_SEED = flags.DEFINE_integer("seed", 0, "Training seed of the run.", lower_bound=0)
_BASE_SEED = flags.DEFINE_integer("base_seed", 0, "Base seed of the run: of its random maps.", lower_bound=0)
_ARTIFACT = flags.DEFINE_string("artifact", None, "An artifact, in place of a run of a study.")
_DATA = flags.DEFINE_string("data", None, "Corpus, as config.data.path; default: the study's own.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "A .model file, for an artifact on text that brings none.")
_SEQ_LEN = flags.DEFINE_integer("seq_len", None, "Tokens per window; default: as trained.", lower_bound=1)
_STRIDE = flags.DEFINE_integer("stride", 0, "Also score sliding windows that move by this many tokens.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Windows per call.", lower_bound=1)


class _Scored(NamedTuple):
    """A model to score, and what it was trained on."""

    apply: Apply
    params: PyTree
    seq_len: int | None
    tokenizer: dict[str, str] | None  # name, sha256
    corpus: data.Corpus


def main() -> None:
    """Prints `val_ce, val_bpb, tokens, bytes` and, with --stride, the `sliding_` figures too."""
    if _ARTIFACT.value and (_WORKDIR.value or _VARIANT.value):
        raise UserError("--artifact=FILE and --workdir=FOLDER --variant=NAME are two things to score; give one")
    if _TOKENIZER.value and not _ARTIFACT.value:
        raise UserError("--tokenizer=FILE.model is for --artifact=FILE; a run of a study keeps its own")
    apply, params, trained_len, tokenizer, corpus = _of_artifact() if _ARTIFACT.value else _of_run()
    if tokenizer and corpus.tokenizer.fingerprint != tokenizer["sha256"]:
        remedy = "give it with --tokenizer=FILE.model" if _ARTIFACT.value else "give text, or shards made with it"
        raise UserError(
            f"--data={_DATA.value}: tokens of {corpus.tokenizer.name} are not those of the model's tokenizer, "
            f"{tokenizer['name']}; {remedy}"
        )
    seq_len = _SEQ_LEN.value or trained_len
    if not seq_len:
        raise UserError(f"--artifact={_ARTIFACT.value} does not say how long its sequences were; give --seq_len")
    sizes: dict[str, Any] = {"batch_size": _BATCH_SIZE.value or 1, "seq_len": seq_len}
    table = corpus.tokenizer.byte_table()
    found = make_evaluator(apply, corpus.val, table, **sizes)(params)._asdict()
    if _STRIDE.value:
        sliding = evaluate_sliding(apply, params, corpus.val, table, stride=_STRIDE.value, **sizes)
        found |= {f"sliding_{name}": value for name, value in sliding._asdict().items()}
    print(json.dumps(found))


def _of_run() -> _Scored:
    if not _WORKDIR.value or not _VARIANT.value:
        raise UserError(
            "--workdir=FOLDER and --variant=NAME are needed: which finished run to score (or --artifact=FILE)"
        )
    workdir, variant = Path(_WORKDIR.value).absolute(), _VARIANT.value
    config = _read_json(workdir / "config.json", f"--workdir={_WORKDIR.value}: not the folder of a study")["config"]
    directory = Run(variant, _SEED.value or 0, _BASE_SEED.value or 0).directory(workdir)
    result = _read_json(directory / "result.json", _no_such_run(workdir, variant))
    path = config["data"]["path"] if _DATA.value is None else _DATA.value
    own = workdir / TOKENIZER
    corpus = _load(path, str(own) if own.exists() else "bytes", config["data"]["val_fraction"])
    model = models.build(**result["model"])
    params = load_params(directory / "params", jax.eval_shape(model.init, jax.random.key(0)))
    if fingerprint(params) != result["params_sha256"]:
        raise UserError(f"{directory / 'params'}: not the parameters that the run saved; they are damaged")
    tokenizer = {"name": result["tokenizer"], "sha256": result["tokenizer_sha256"]}
    return _Scored(model.apply, params, config["train"]["seq_len"], tokenizer, corpus)


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
    return _Scored(apply, params, seq_len if known else None, metadata["tokenizer"], corpus)


def _load(path: str, tokenizer: str, val_fraction: float) -> data.Corpus:
    """A corpus in the model's own tokenizer, but for shards that bring theirs: then the two are compared."""
    if path and any(Path(path).glob("*.bin")) and any(Path(path).glob("*.model")):
        tokenizer = ""
    return data.load(path, tokenizer=tokenizer, val_fraction=val_fraction, cache_dir=str(cli.cache_dir() / "data"))


def _read_json(path: Path, otherwise: str) -> Any:
    if not path.is_file():
        raise UserError(otherwise)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is not JSON; delete it and run the study again") from None


def _no_such_run(workdir: Path, variant: str) -> str:
    finished = sorted({path.parent.parent.name for path in workdir.glob("runs/*/seed_*/result.json")})
    if variant not in finished:
        return f"--variant={variant}: no such finished variant in {workdir}; {nearest(variant, finished)}"
    seeds = f"--seed={_SEED.value} --base_seed={_BASE_SEED.value}"
    return f"{seeds}: variant {variant} has no finished run of these seeds"


if __name__ == "__main__":
    cli.run(main)
