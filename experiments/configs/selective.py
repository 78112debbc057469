"""Selective freezing on random maps: every row of the paper's section 2, and the controls it lacks.

    uv run python -m experiments.selective --config=experiments/configs/selective.py:tiny --workdir=runs/selective

Scales (after the colon), with the time all 36 variants take:

  tiny   embedded corpus, bytes, 1 seed: under 2 minutes on 2 CPU cores. Shows that everything works; its
         models are far too small and short for a verdict.
  cpu    3 training seeds, and 2 base seeds (of the random maps) for the paper's rows, about 80 minutes
         on one CPU core per corpus; give --config.data.path=FOLDER of FineWeb shards or of .txt books.
         Expected: results/selective/.
  h100   the paper's sizes, 3 x 2 seeds; h100x8 and v5e: the same batch on 8 devices.

What is not set here is as in experiments/configs/progressive.py.
"""

from ml_collections import ConfigDict

from experiments.configs import progressive


def get_config(scale: str = "cpu") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    config = progressive.get_config(scale)
    config.experiment = "selective"
    config.base_seeds = 1 if scale == "tiny" else 2
    config.paper = "auto"  # the paper's corpus that this is: fineweb, none; auto = by fingerprint
    del config.freeze.at  # maps are never trained: there is no freeze point
    config.lora = ConfigDict({"rank": 16, "alpha": 16.0})  # of the variant where everything is frozen
    if scale == "tiny":
        config.sizes = progressive.sizes((1, 32, 2), (2, 32, 2), (2, 48, 2))
        config.data.val_sequences = 64
        config.train.steps = 40
        config.train.batch_size = 4  # sequences
    return config
