"""Inside the budget of Parameter Golf: 16,000,000 bytes, and 10 minutes on 8 H100s.

    uv run python -m experiments.selective --config=experiments/configs/parameter_golf.py:tiny --workdir=runs/golf
    uv run python -m experiments.golf --config=experiments/configs/parameter_golf.py:best_tiny --workdir=runs/best
    uv run python -m experiments.golf --config=experiments/configs/parameter_golf.py:best --workdir=runs/best

Scales (after the colon), the first two of `experiments.selective`, the others of `experiments.golf`:

  tiny   embedded corpus, bytes, 1 seed: seconds on 2 CPU cores. Shows that everything works.
  h100x8 7,000 steps of 524,288 tokens (512 x 1,024) on FineWeb sp1024, one node of 8 H100s; give
         --config.data.path=FOLDER of its shards. Not run yet: both limits hold by prediction
         (tests/aot/test_configs.py, docs/preflight.md).
  best_tiny  as tiny, in 60 kB.
  best   what the frontier recommends for these bytes (docs/preflight.md), the best of it that trains every weight, and
         a narrow model. Machine, tokens and text as h100x8, not run yet either; each as many steps as fit the minutes.

Bytes of h100x8: `baseline` trains everything; `selective_medium` and `selective_large` are larger, their gate and up
random maps, which take no bytes. Each of the three fits at int6 even where the compressor gains nothing, with 300,000
bytes left for code. So does `trained_at_selective_bytes_same_maps`; `trained_medium_same_maps` does not fit and need
not. Bytes of best: predicted for Gaussian weights, which is what trained ones came to or less (results/frontier).
Minutes: each run at a fifth of the GPUs' peak. The final evaluation has 10 minutes of its own.

What is not set here is as in experiments/configs/selective.py.
"""

from ml_collections import ConfigDict

from experiments.configs import progressive, selective

BUDGET = 16_000_000  # bytes of code and artifact
CODE = 300_000  # bytes of the budget left for code; what an entry imports takes some 200,000 as one xz archive
SECONDS = 600  # of training
_VARIANTS = ("selective_medium", "selective_large", "trained_at_selective_bytes_same_maps", "trained_medium_same_maps")


# Way (experiments/ways.py), layers, heads, bits of trained kernels, adapter, distribution of maps, times the steps.
_ENTRIES = {
    "best": ("qk", 12, 8, 4, "lora128", "orthogonal_qr", 0.8929),
    "trained": ("low_bits", 9, 8, 2, "none", "normal", 0.5286),
    "narrow": ("narrow", 9, 8, None, "none", "normal", 1.3643),
}


def get_config(scale: str = "h100x8") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    progressive.check_scale(scale, ("tiny", "h100x8", "best_tiny", "best"))
    config = selective.get_config("tiny" if scale.endswith("tiny") else "h100x8")
    config.scale = scale
    config.variants = ",".join(("baseline", *_VARIANTS))
    config.paper = "none"  # it has no figures at these sizes
    config.base_seeds = 1
    if scale.startswith("best"):
        _enter(config, tiny=scale == "best_tiny")
    if not scale.endswith("tiny"):
        _fill_the_minutes(config)
    return config


def _enter(config: ConfigDict, tiny: bool) -> None:
    config.experiment, config.variants = "golf", ""
    config.budget = 60_000 if tiny else round(0.999 * (BUDGET - CODE))  # bytes of the file, met to a part in a thousand
    del config.freeze, config.sizes, config.model.mlp_mult, config.lora
    config.model.family = "parameter_golf"
    config.model.model_dim = 64 if tiny else 640  # where the search for the width starts
    config.train.draw_maps = "once"  # a decomposition in every step would take longer than the step
    config.entries = ConfigDict()
    for name, (way, layers, heads, bits, adapter, distribution, longer) in _ENTRIES.items():
        entry = {"way": way, "layers": 2 if tiny else layers, "uses": 1, "heads": 2 if tiny else heads}
        entry |= {"mlp_mult": 2.0, "few_bits": bits, "adapter": adapter.replace("128", "4") if tiny else adapter}
        entry |= {"distribution": distribution, "rate": 1.0, "longer": longer}
        config.entries[name] = ConfigDict(entry)


def _fill_the_minutes(config: ConfigDict) -> None:
    if config.experiment == "selective":
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
