"""Selective freezing inside the budget of Parameter Golf: 16,000,000 bytes, and 10 minutes on 8 H100s.

    uv run python -m experiments.selective --config=experiments/configs/parameter_golf.py:tiny --workdir=runs/golf

Scales (after the colon):

  tiny   embedded corpus, bytes, 1 seed: seconds on 2 CPU cores. Shows that everything works.
  h100x8 7,000 steps of 524,288 tokens (512 x 1,024) on FineWeb sp1024, one node of 8 H100s; give
         --config.data.path=FOLDER of its shards. Not run yet: both limits hold by prediction
         (tests/aot/test_configs.py, docs/preflight.md).

Bytes: `baseline` trains everything; `selective_medium` and `selective_large` are larger, their gate and up random maps,
which take no bytes. Each of the three fits at int6 even where the compressor gains nothing, with 100,000 bytes left for
code. So does `trained_at_selective_bytes_same_maps`; `trained_medium_same_maps` does not fit and need not.
Minutes: each run at a fifth of the GPUs' peak. The final evaluation has 10 minutes of its own.

What is not set here is as in experiments/configs/selective.py.
"""

from ml_collections import ConfigDict

from experiments.configs import progressive, selective

BUDGET = 16_000_000  # bytes of code and artifact
CODE = 100_000  # bytes of the budget left for code
SECONDS = 600  # of training
_VARIANTS = ("selective_medium", "selective_large", "trained_at_selective_bytes_same_maps", "trained_medium_same_maps")


def get_config(scale: str = "h100x8") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    progressive.check_scale(scale, ("tiny", "h100x8"))
    config = selective.get_config(scale)
    config.variants = ",".join(("baseline", *_VARIANTS))
    config.paper = "none"  # it has no figures at these sizes
    config.base_seeds = 1
    if scale == "tiny":
        return config
    config.sizes = progressive.sizes((7, 512, 8), (12, 512, 8), (8, 640, 10))
    config.model.vocab_size = 1_024
    config.data.val_sequences = 0  # all
    config.data.eval_batch_size = 512
    config.train.steps = 7_000
    config.train.batch_size = 512  # sequences
    config.train.seq_len = 1_024  # tokens
    config.train.accumulation = 4  # 16 sequences per device at a time
    config.train.eval_every = 0  # only at the end
    config.train.checkpoint_every = 0  # only when stopped
    config.train.optimizer.name = "muon"
    config.train.optimizer.learning_rate = 0.02
    config.train.optimizer.adam_learning_rate = 3e-3
    config.train.optimizer.weight_decay = 0.0
    config.train.optimizer.b2 = 0.95
    config.train.optimizer.schedule = "linear_warmdown"
    config.train.optimizer.warmdown_steps = 1_200
    return config
