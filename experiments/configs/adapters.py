"""Adapters over random maps: every kind, a sweep of ranks, submissions of Parameter Golf, and controls of equal bytes.

    uv run python -m experiments.adapters --config=experiments/configs/adapters.py:tiny --workdir=runs/adapters

Scales (after the colon), with the time all 63 variants take:

  tiny   embedded corpus, bytes, 1 seed, 16 of the variants: under 2 minutes on 2 CPU cores. Shows that
         everything works; its model is far too small and short for a verdict.
  cpu    3 training seeds, and 2 base seeds (of the random maps) for the row of PR 1870, about 2 hours
         on one CPU core per corpus; give --config.data.path=FOLDER of FineWeb shards or of .txt books.
  h100   the paper's small size, ranks up to 128; h100x8 and v5e: the same batch on 8 devices.

What is not set here is as in experiments/configs/progressive.py.
"""

from ml_collections import ConfigDict

from experiments.configs import progressive

_TINY = (
    "baseline,trained_same_maps,frozen,lora_r1,lora_r8,pr_1549,dora,randlora,vera,gain,lora_rademacher,pr_2058,pr_1228,"
    "pr_1710,trained_at_lora_r8_bytes,trained_at_pr_2058_bytes"
)


def get_config(scale: str = "cpu") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    config = progressive.get_config(scale)
    tiny = scale == "tiny"
    config.experiment = "adapters"
    config.base_seeds = 1 if tiny else 2
    del config.freeze  # maps are never trained, and what is frozen is what the rows say
    del config.sizes.medium, config.sizes.large
    config.lora = ConfigDict()  # alpha is the rank throughout
    config.lora.rank = 8 if tiny else 16  # of the usual LoRA, and of other kinds that have a rank; in `ranks`
    # Swept, in order, with 2. The last is above the break-even of square kernels, as rank 304 of PR 1549 is.
    config.lora.ranks = (1, 2, 8, 32) if tiny else (1, 2, 4, 8, 16, 32, 64) + (128,) * (scale != "cpu")
    # Learning rates: config.train's times these, of the rows with everything frozen and of the narrow models of their
    # bytes. On the books, at cpu (1, 2, 4, 8 thousandths): LoRA of rank 16 ends at 2.42, 2.28, 2.13, 2.04, the
    # narrow model of its bytes at 2.12 with 4 and 2.16 with 8, the same maps trained at 2.20, 2.07, 2.07 with 1, 2, 4.
    config.rates = ConfigDict({"frozen": 1.0 if tiny else 4.0, "narrow": 1.0 if tiny else 2.0})
    if scale == "cpu":
        config.train.optimizer.learning_rate = 2e-3
    config.ema_decay = 0.99 if scale in ("tiny", "cpu") else 0.997  # of the row with an average of the weights
    if tiny:
        config.variants = _TINY
        config.sizes.small.update(num_layers=1, model_dim=48, num_heads=1)
        config.data.val_sequences = 64
        config.train.steps = 40
        config.train.batch_size = 4  # sequences
    return config
