"""Scores a finished run on any corpus: one JSON line.

python -m experiments.evaluate --workdir=RUN --variant=NAME --seed=0 --data=PATH --seq_len=512 --stride=64
"""

import json
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import cli
from experiments.study import TOKENIZER, run_directory
from freezejax import data, models
from freezejax.errors import UserError
from freezejax.paths import nearest
from freezejax.training.checkpoints import load_params
from freezejax.training.evaluation import evaluate_sliding, make_evaluator
from freezejax.training.state import fingerprint

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a study.")
_VARIANT = flags.DEFINE_string("variant", None, "Name of a finished variant.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the run.")
_DATA = flags.DEFINE_string("data", None, "Corpus, as config.data.path; default: the study's own.")
_SEQ_LEN = flags.DEFINE_integer("seq_len", None, "Tokens per window; default: as trained.", lower_bound=1)
_STRIDE = flags.DEFINE_integer("stride", 0, "Also score sliding windows that move by this many tokens.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Windows per call.", lower_bound=1)


def main() -> None:
    """Prints `val_ce, val_bpb, tokens, bytes` and, with --stride, the `sliding_` figures too."""
    if not _WORKDIR.value or not _VARIANT.value:
        raise UserError("--workdir=FOLDER and --variant=NAME are needed: which finished run to score")
    workdir, variant, seed = Path(_WORKDIR.value).absolute(), _VARIANT.value, _SEED.value or 0
    config = _read_json(workdir / "config.json", f"--workdir={_WORKDIR.value}: not the folder of a study")
    config = config["config"]
    directory = run_directory(workdir, variant, seed)
    result = _read_json(directory / "result.json", _no_such_run(workdir, variant, seed))
    path = config["data"]["path"] if _DATA.value is None else _DATA.value
    corpus = data.load(
        path,
        tokenizer=_tokenizer(path, workdir),
        val_fraction=config["data"]["val_fraction"],
        cache_dir=str(cli.cache_dir() / "data"),
    )
    if corpus.tokenizer.fingerprint != result.get("tokenizer_sha256"):
        raise UserError(
            f"--data={path}: tokens of {corpus.tokenizer.name} are not those of the run's tokenizer, "
            f"{result['tokenizer']}; give text, or shards made with that tokenizer"
        )
    model = models.build(**result["model"])
    params = load_params(directory / "params", jax.eval_shape(model.init, jax.random.key(0)))
    if fingerprint(params) != result["params_sha256"]:
        raise UserError(f"{directory / 'params'}: not the parameters that the run saved; they are damaged")
    table, seq_len = corpus.tokenizer.byte_table(), _SEQ_LEN.value or config["train"]["seq_len"]
    batch_size = _BATCH_SIZE.value or 1
    evaluate = make_evaluator(model.apply, corpus.val, table, batch_size=batch_size, seq_len=seq_len)
    found = evaluate(params)._asdict()
    if _STRIDE.value:
        sliding = evaluate_sliding(
            model.apply, params, corpus.val, table, batch_size=batch_size, seq_len=seq_len, stride=_STRIDE.value
        )
        found |= {f"sliding_{name}": value for name, value in sliding._asdict().items()}
    print(json.dumps(found))


def _tokenizer(path: str, workdir: Path) -> str:
    """The run's own tokenizer, but for shards that bring theirs: then the two are compared."""
    if path and any(Path(path).glob("*.bin")) and any(Path(path).glob("*.model")):
        return ""
    return str(workdir / TOKENIZER) if (workdir / TOKENIZER).exists() else "bytes"


def _read_json(path: Path, otherwise: str) -> Any:
    if not path.is_file():
        raise UserError(otherwise)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is not JSON; delete it and run the study again") from None


def _no_such_run(workdir: Path, variant: str, seed: int) -> str:
    finished = sorted({path.parent.parent.name for path in workdir.glob("runs/*/seed_*/result.json")})
    if variant not in finished:
        return f"--variant={variant}: no such finished variant in {workdir}; {nearest(variant, finished)}"
    return f"--seed={seed}: variant {variant} has no finished run of this seed"


if __name__ == "__main__":
    cli.run(main)
