"""Distillation and freezing: the paper's two rows (sections 5 and 6), and the controls they lack.

    uv run python -m experiments.distillation --config=experiments/configs/distillation.py:tiny --workdir=DIR

Scales (after the colon), with the time all 26 variants take:

  tiny   embedded corpus, bytes, 1 seed: under 2 minutes on 2 CPU cores. Shows that everything works; its
         models are far too small and short for a verdict.
  cpu    3 seeds, 40 to 80 minutes on one CPU core per corpus; give --config.data.path=FOLDER of .txt books.
  h100   the paper's sizes, 3 seeds; h100x8 and v5e: the same batch on 8 devices, the teacher on the first.

--config.distillation.teacher=PATH adds two students of a model of your own (a packed .fjax file, a folder in Hugging
Face's layout, a .gguf), of any architecture with the same tokenizer. What is not set here is as in
experiments/configs/progressive.py.
"""

from ml_collections import ConfigDict

from experiments.configs import progressive


def get_config(scale: str = "cpu") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    config = progressive.get_config(scale)
    config.experiment = "distillation"
    config.paper = "auto"  # the paper's corpus that this is: gutenberg, none; auto = by fingerprint
    del config.freeze.dropout  # no variant has it
    config.distillation = ConfigDict()
    config.distillation.teacher = ""  # model.fjax of a run, a folder of a pretrained model, a .gguf; empty = none
    config.distillation.temperature = 2.0  # T (the paper's)
    config.distillation.share = 0.5  # of T^2 KL in the loss; the rest is cross entropy (the paper's)
    # Whether the teacher's logits are kept: off, memory or disk. Pays from the second pass over the text on.
    config.distillation.cache = "off"
    config.distillation.cache_gib = 4.0  # bound of what is kept of them, per run
    if scale == "tiny":
        config.sizes = progressive.sizes((1, 32, 2), (2, 32, 2), (2, 48, 2))
        config.data.val_sequences = 64
        config.train.steps = 42
        config.train.batch_size = 4  # sequences
    return config
