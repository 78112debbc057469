"""A base model for what comes after pretraining: trained from scratch, left in Hugging Face's layout.

    python -m experiments.pretrain --config=experiments/configs/pretrain.py:tiny --workdir=DIR

WORKDIR/model is then a folder for `models.load_pretrained`, its tokenizer inside. The studies of pretrained models
(redundancy, crystallization) make such a base themselves where they are given none.
"""

import shutil
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments.engine import cli, study
from experiments.engine.variants import Run, Study, Variant
from freezejax import models
from freezejax.models.pretrained import CONFIG
from freezejax.schedules import FreezeSchedule
from freezejax.training import processes
from freezejax.training.checkpoints import load_params

MODEL = "model"  # the folder of the workdir that holds it
NAME = "base"


def make_study(config: ConfigDict, vocab_size: int) -> Study:
    """One model, of which everything trains."""
    model = {**config.model.to_dict(), "vocab_size": config.model.vocab_size or vocab_size}
    return Study("pretrain", [Variant(NAME, model, config.train.to_dict(), FreezeSchedule([(0, [(".*", True)])]))])


def save(config: ConfigDict, workdir: Path) -> Path:
    """The folder of the trained model of a workdir, written if it is not there yet."""
    folder = workdir / MODEL
    if not (folder / CONFIG).exists():
        variant = make_study(config, study.load_corpus(config).tokenizer.vocab_size).variants[0]
        model = models.build(**variant.model)
        params = load_params(Run(NAME, 0).directory(workdir) / "params", model.abstract_params())
        for tokenizer in workdir.glob(f"{study.TOKENIZER}.*"):
            folder.mkdir(exist_ok=True)
            shutil.copyfile(tokenizer, folder / tokenizer.name)
        models.save_pretrained(folder, model, params)
    return folder


def main() -> None:
    """Trains the base model, and saves it for others."""
    if (workdir := study.main(make_study)) is not None:
        processes.on_main(lambda: print(f"The model: {save(flags.FLAGS.config, workdir)}"))


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/pretrain.py:tiny")
    cli.run(main)
