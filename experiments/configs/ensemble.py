"""Ensembles: two small models against one, a trained and a frozen one, and their controls.

    uv run python -m experiments.ensemble --config=experiments/configs/ensemble.py:tiny --workdir=runs/ensemble

Scales (after the colon), with the time all 18 variants take:

  tiny   embedded corpus, bytes, 1 seed: under 2 minutes on 2 CPU cores. Shows that everything works; its
         models are far too small and short for a verdict.
  cpu    3 seeds, and 2 base seeds for the pair with a frozen member, 25 to 60 minutes on one CPU core per
         corpus; give --config.data.path=FOLDER of FineWeb shards or of .txt books.
  h100   the paper's sizes, one of 6 layers and width 192 and two of 3 and 128; h100x8 and v5e: on 8 devices.

What is not set here is as in experiments/configs/progressive.py.
"""

from ml_collections import ConfigDict

from experiments.configs import progressive

_PAPER_SIZES = ((6, 192, 6), (3, 128, 4), (6, 288, 6))
_SIZES = {  # layers, width, heads of the single model, of a half, and of what is made to fit the largest pair's bytes
    "tiny": ((2, 48, 2), (1, 32, 2), (2, 72, 2)),
    "cpu": ((4, 96, 3), (2, 64, 2), (4, 144, 3)),
}


def get_config(scale: str = "cpu") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    config = progressive.get_config(scale)
    config.experiment = "ensemble"
    config.base_seeds = 1 if scale == "tiny" else 2
    config.paper = "auto"  # the paper's corpus that this is: gutenberg, none; auto = by fingerprint
    fields = ("num_layers", "model_dim", "num_heads")
    sizes = zip(("single", "half", "large"), _SIZES.get(scale, _PAPER_SIZES), strict=True)
    config.sizes = ConfigDict({name: dict(zip(fields, size, strict=True)) for name, size in sizes})
    del config.freeze.at  # what is frozen is a random map: there is no freeze point
    del config.freeze.dropout
    config.mix = ConfigDict()  # how the weights of an ensemble are learned, where they are
    config.mix.steps = 10 if scale == "tiny" else 60
    config.mix.learning_rate = 0.05
    if scale == "tiny":
        config.data.val_sequences = 64
        config.train.steps = 40
        config.train.batch_size = 4  # sequences
    return config
