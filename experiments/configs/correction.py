"""A low-rank correction beside a frozen MLP: every row of the paper's section 4, and the controls it lacks.

    uv run python -m experiments.correction --config=experiments/configs/correction.py:tiny --workdir=runs/correction

Scales (after the colon), with the time all 17 variants take:

  tiny   embedded corpus, bytes, 1 seed: under 1 minute on 2 CPU cores. Shows that everything works; its
         models are far too small and short for a verdict.
  cpu    3 training seeds, and 2 base seeds (of the random maps) for rank 64, about 30 minutes on one
         CPU core per corpus; give --config.data.path=FOLDER of FineWeb shards or of .txt books.
  h100   the paper's sizes and ranks; h100x8 and v5e: the same batch on 8 devices.

What is not set here is as in experiments/configs/progressive.py.
"""

from ml_collections import ConfigDict

from experiments.configs import progressive


def get_config(scale: str = "cpu") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    config = progressive.get_config(scale)
    config.experiment = "correction"
    config.base_seeds = 1 if scale == "tiny" else 2
    del config.freeze  # maps are never trained: there is no freeze point
    del config.sizes.medium
    if scale == "cpu":
        config.train.optimizer.learning_rate = 2e-3  # of 1, 2 and 4 thousandths the best for the baseline
    if scale == "tiny":
        config.sizes.small.update(num_layers=1, model_dim=48, num_heads=1)
        config.sizes.large.update(num_layers=2, model_dim=64, num_heads=1)
        config.data.val_sequences = 64
        config.train.steps = 40
        config.train.batch_size = 4  # sequences
    return config
