"""Loss against stored bytes: random maps against trained weights at three sizes of the packed file.

    uv run python -m experiments.frontier --config=experiments/configs/frontier.py:tiny --workdir=runs/frontier

Scales (after the colon), each for the GEGLU model with AdamW, and with `_golf` for the Parameter Golf model with Muon:

  tiny   embedded corpus, bytes, one small budget, one trial of four ways: under 2 minutes on 2 CPU cores. Shows that
         everything works.
  cpu    100 kB, 300 kB and 1 MB, 4 trials of every way, the best of each with 3 new seeds: about 4 hours on one
         core per corpus, half of it with --config.search=FILE; give --config.data.path=FOLDER of FineWeb shards or of
         .txt books.
  h100   1, 4 and 16 MB on one H100.

What is not set here is as in experiments/configs/progressive.py.
"""

from ml_collections import ConfigDict

from experiments.configs import progressive

_SIZES = {  # bytes of the packed file; at each: layers to try, heads, ranks of adapters to try
    "tiny": ((60_000,), ((2,),), (2,), ((4, 16),)),
    "cpu": ((100_000, 300_000, 1_000_000), ((2, 3), (3, 4), (4, 6)), (2, 4, 4), ((4, 16), (8, 32), (32, 64))),
    "h100": (
        (1_000_000, 4_000_000, 16_000_000),
        ((4, 6), (6, 9), (9, 12)),
        (8, 8, 8),
        ((32, 64), (64, 128), (128, 256)),
    ),
}
_TINY = ("narrow", "int4", "gate_up", "everything")  # ways to build a model, of the ten


def get_config(scale: str = "cpu") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    progressive.check_scale(scale, [scale + stack for scale in _SIZES for stack in ("", "_golf")])
    golf, size = scale.endswith("_golf"), scale.removesuffix("_golf")
    config = progressive.get_config(size)
    config.experiment, config.scale = "frontier", scale
    config.paper = "none"  # nobody has this table
    del config.freeze, config.sizes
    config.search = ""  # summary.json of a finished search on another text; empty = search on this one
    config.seeds = 1 if size == "tiny" else 3  # of the report: training and base seed change together
    config.trials = 1 if size == "tiny" else 4  # of every way of building a model, at every budget
    config.budgets, config.layers, config.heads, ranks = _SIZES[size]
    config.ranks = [{"low": low, "high": high} for low, high in ranks]
    # To try, in units of the optimizer's: 150 steps on the CPU go far beyond what is best for long runs.
    config.rates = (0.5, 1.0, 2.0) if size == "h100" else (4.0, 8.0, 12.0)
    config.mlp_mults = (2.0, 4.0)  # hidden width / width, to try
    config.distributions = ("normal", "rademacher", "orthogonal_qr")  # of the maps, to try

    del config.model.mlp_mult
    config.model.model_dim = 64  # where the search for the width starts
    config.train.eval_every = 0
    if size == "cpu":
        config.train.steps = 150
        config.train.batch_size = 16  # sequences
    if size == "tiny":
        config.variants = ",".join(f"60kB_{way}_0" for way in _TINY)
        config.data.val_sequences = 32
        config.train.steps = 20
        config.train.batch_size = 4
    config.train.optimizer.warmup_steps = config.train.steps // 10
    if golf:
        config.model.family = "parameter_golf"
        config.train.optimizer.name = "muon"
        config.train.optimizer.learning_rate = 0.02
        config.train.optimizer.adam_learning_rate = 4e-3
        config.train.optimizer.weight_decay = 0.0
        config.train.optimizer.b2 = 0.95
    return config
