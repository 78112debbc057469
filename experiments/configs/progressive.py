"""Progressive freezing: baseline, selective and progressive freezing of gate+up, and their controls.

    uv run python -m experiments.progressive --config=experiments/configs/progressive.py:tiny --workdir=runs/progressive

Scales (after the colon), with the time all 22 variants take:

  tiny   embedded corpus, bytes, 1 seed: under 2 minutes on 2 CPU cores. Shows that everything works; its
         models are far too small and short for a verdict.
  cpu    3 seeds, about 60 minutes on one CPU core per corpus; give --config.data.path=FOLDER of FineWeb
         shards or of .txt books. Expected: results/progressive/.
  h100   the paper's sizes: 3,000 steps of 64 x 512 tokens on FineWeb sp1024 or sp4096, 3 seeds, one H100.
  h100x8 the same batch, split over the 8 GPUs of one node.
  v5e    the same batch, split over 8 TPU v5e chips.

What of the last three fits, and how long a run takes by prediction: docs/preflight.md. The paper's figures stand
beside ours on text that is known to be of its corpora (experiments/engine/variants.py); --config.paper=fineweb says
so of other shards of FineWeb.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

from freezejax.errors import UserError
from freezejax.paths import nearest

_PAPER_SIZES = ((6, 192, 6), (8, 256, 4), (12, 384, 6))
_SIZES = {  # layers, width, heads of the small, medium and large model
    "tiny": ((1, 32, 2), (1, 48, 2), (2, 64, 2)),
    "cpu": ((3, 96, 3), (4, 128, 4), (5, 160, 5)),
    **dict.fromkeys(("h100", "h100x8", "v5e"), _PAPER_SIZES),
}


def get_config(scale: str = "cpu") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    check_scale(scale, _SIZES)
    tiny, paper = scale == "tiny", _SIZES[scale] == _PAPER_SIZES
    config = ConfigDict()
    config.experiment = "progressive"
    config.scale = scale
    config.seeds = 1 if tiny else 3  # training seeds: initial weights, data order, dropout
    config.base_seeds = 1  # base seeds, that random maps come from, for the variants that run with several
    config.variants = ""  # comma separated names; empty = all
    config.paper = "auto"  # the paper's corpus that this is: fineweb, gutenberg, none; auto = by fingerprint

    config.data = ConfigDict()
    config.data.path = ""  # folder of shards or of .txt, or tfds:NAME; empty = the embedded corpus
    config.data.tokenizer = ""  # bytes, a .model file, bpe:SIZE; empty = the folder's own, else bytes
    config.data.val_fraction = 0.1  # of each text; shards bring their own validation
    config.data.val_path = ""  # other texts to validate on, whole, in place of that part: a folder of .txt
    # Validation windows to score, spread evenly over the text; 0 = all. (The paper scores 200.)
    config.data.val_sequences = 256 if tiny else 512 if scale == "cpu" else 2_048
    config.data.eval_batch_size = 64 if paper else 16  # sequences

    config.model = ConfigDict()
    config.model.family = "geglu"  # geglu or parameter_golf
    config.model.vocab_size = 0  # 0 = the tokenizer's
    config.model.mlp_mult = 2.0  # hidden width / width
    config.model.dropout = 0.0  # of the variants not named dropout
    config.sizes = sizes(*_SIZES[scale])

    config.freeze = ConfigDict()
    config.freeze.pattern = r"blocks/\d+/mlp/(gate|up|fc)/kernel"  # what freezes: a pattern of leaf paths
    config.freeze.at = 1 / 3  # when: a fraction of the run in (0, 1), or a step from 2 on
    config.freeze.dropout = 0.2  # rate of the variants named dropout (the paper's)

    config.artifact = ConfigDict()  # how the file of each run is packed
    config.artifact.codec = "int6"  # int8, int6, int5, int4 or float16
    config.artifact.adapter_codec = "int8"  # of adapters' a and b
    config.artifact.compressor = "brotli"  # none, zlib, lzma, zstd or brotli

    config.train = ConfigDict()
    config.train.steps = 80 if tiny else 400 if scale == "cpu" else 3_000
    config.train.batch_size = 64 if paper else 8  # sequences
    config.train.seq_len = 64 if tiny else 128 if scale == "cpu" else 512  # tokens
    config.train.accumulation = 1  # microbatches per step
    config.train.mesh = ConfigDict()  # how many devices split what; -1 = what the others leave
    config.train.mesh.data = -1  # rows of the batch
    config.train.mesh.fsdp = 1  # rows of the batch, and weights, gradients and optimizer state
    config.train.mesh.tensor = 1  # weights, and activations inside a block
    config.train.mesh.expert = 1  # rows of the batch, and the experts of a mixture
    config.train.ema_decay = 0.0  # 0 = off
    config.train.compute_dtype = "bfloat16" if paper else "float32"
    config.train.remat = False  # the backward pass computes each block again, instead of keeping its activations
    config.train.draw_maps = "per_layer"  # and pass; or per_step, or once: stored
    config.train.prefix_cache = "off"  # frozen first blocks: off = in the step; recompute, memory or disk = apart
    config.train.prefix_cache_gib = 4.0  # bound of what is kept of them
    config.train.on_thaw = "restart"  # or keep
    config.train.log_every = 10  # steps
    config.train.eval_every = 500 if paper else 100 if scale == "cpu" else 40  # steps
    config.train.checkpoint_every = 500 if paper else 200 if scale == "cpu" else 40  # steps
    config.train.optimizer = ConfigDict()
    config.train.optimizer.name = "adamw"  # or muon
    config.train.optimizer.learning_rate = 3e-4 if paper else 1e-3 if scale == "cpu" else 3e-3
    config.train.optimizer.adam_learning_rate = 1e-3  # muon's other leaves
    config.train.optimizer.weight_decay = 0.1
    config.train.optimizer.b1 = 0.9
    config.train.optimizer.b2 = 0.999
    config.train.optimizer.eps = 1e-8
    config.train.optimizer.momentum = 0.95  # muon
    config.train.optimizer.clip = 1.0  # global norm; 0 = off
    config.train.optimizer.schedule = "cosine"  # linear_warmdown, constant
    config.train.optimizer.warmup_steps = 0
    config.train.optimizer.warmdown_steps = 0
    return config


def check_scale(scale: str, known: Iterable[str]) -> None:
    """Refuses a scale that a config file does not know."""
    if scale not in known:
        raise UserError(f"--config: no scale {scale!r}; {nearest(scale, known)}")


def sizes(*small_medium_large: tuple[int, int, int]) -> ConfigDict:
    """The three models of a study; each is given as layers, width, heads."""
    fields = ("num_layers", "model_dim", "num_heads")
    named = zip(("small", "medium", "large"), small_medium_large, strict=True)
    return ConfigDict({name: dict(zip(fields, size, strict=True)) for name, size in named})
