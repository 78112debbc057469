"""One model, trained from scratch or from where another ended, left in Hugging Face's layout.

    python -m experiments.pretrain --config=experiments/configs/pretrain.py:tiny --workdir=DIR
    python -m experiments.pretrain ... --config.start=MODEL --config.trainable=o_proj --config.data.path=FOLDER

WORKDIR/model is then a folder for `models.load_pretrained`, its tokenizer inside. The studies of pretrained models
(redundancy, crystallization) make such a base themselves where they are given none. With `config.trainable` modules of
these types train alone, in a model of any family.
"""

import shutil
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments.engine import cli, study
from experiments.engine.pretrained import model_at, tokenizer_of
from experiments.engine.variants import Run, Study, Variant
from freezejax import models, only
from freezejax.errors import UserError
from freezejax.masks import Rules
from freezejax.models.pretrained import CONFIG
from freezejax.paths import PyTree
from freezejax.schedules import FreezeSchedule
from freezejax.training import processes
from freezejax.training.checkpoints import load_params

MODEL = "model"  # the folder of the workdir that holds it
NAME = "base"


def make_study(config: ConfigDict, vocab_size: int) -> Study:
    """One model, of which everything trains, or what `config.trainable` says."""
    model = {**config.model.to_dict(), "vocab_size": config.model.vocab_size or vocab_size}
    model = model_at(Path(config.start)) if config.start else model
    if (spec := config.data.tokenizer).startswith("bpe:") and (own := _own_tokenizer(config)):
        raise UserError(f"config.data.tokenizer={spec}: the model was trained with {own}; leave the field empty")
    schedule = FreezeSchedule([(0, rules_of(config.trainable, models.build(**model).abstract_params()))])
    start = (lambda task: models.load_pretrained(config.start)[1]) if config.start else None
    return Study("pretrain", [Variant(NAME, model, config.train.to_dict(), schedule, start=start)])


def rules_of(types: str, params: PyTree) -> Rules:
    """The freeze rules of `config.trainable`: types of modules with commas between them; empty = everything trains."""
    try:
        return only(params, types) if types else [(".*", True)]
    except UserError as error:
        raise UserError(f"config.trainable: {error}") from None


def save(config: ConfigDict, workdir: Path) -> Path:
    """The folder of the trained model of a workdir, written if it is not there yet."""
    folder, like = workdir / MODEL, Path(config.start) if Path(config.start or "none").is_dir() else None
    if not (folder / CONFIG).exists():
        vocab_size = study.load_corpus(config, _own_tokenizer(config)).tokenizer.vocab_size
        model = models.build(**make_study(config, vocab_size).variants[0].model)
        params = load_params(Run(NAME, 0).directory(workdir) / "params", model.abstract_params())
        comes_along = like is not None and tokenizer_of(like)
        for tokenizer in () if comes_along else workdir.glob(f"{study.TOKENIZER}.*"):
            folder.mkdir(exist_ok=True)
            shutil.copyfile(tokenizer, folder / tokenizer.name)
        models.save_pretrained(folder, model, params, like=like)
    return folder


def _own_tokenizer(config: ConfigDict) -> str:
    return tokenizer_of(Path(config.start)) if config.start else ""


def main() -> None:
    """Trains the model, and saves it for others."""
    config = flags.FLAGS.config
    if (workdir := study.main(make_study, tokenizer=_own_tokenizer(config))) is not None:
        processes.on_main(lambda: print(f"The model: {save(config, workdir)}"))


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/pretrain.py:tiny")
    cli.run(main)
