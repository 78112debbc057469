"""Which matrices of a pretrained model must be fine-tuned (paper 64), on a GPT-2 made for it or on a model of yours.

    uv run python -m experiments.redundancy --config=experiments/configs/redundancy.py:tiny --workdir=DIR

Scales (after the colon):

  tiny     2 layers of width 64, pretrained on the embedded prose, fine-tuned on Python code: under 2 minutes on 2 CPU
           cores. Shows that everything works.
  cpu      the papers' size, 8 layers of width 256 (10.2 M parameters), 5 seeds, 50 steps; give
           --config.base.data.path=FOLDER of .txt books to pretrain on; it is fine-tuned on the Python reference.
  smollm2  SmolLM2-135M (launch/get_smollm2.sh): --config.base.path=FILE.gguf --config.data.path=FOLDER of .txt books,
           --config.data.val_path=FOLDER of others, to be scored on books that it was not fine-tuned on.

--config.base.path=FOLDER takes any model of a known family in Hugging Face's layout. What is not set here is as in
experiments/configs/progressive.py.
"""

from ml_collections import ConfigDict

from experiments import bases
from experiments.configs import progressive

_SCALES = ("tiny", "cpu", "smollm2")


def get_config(scale: str = "cpu") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    tiny, real = scale == "tiny", scale == "smollm2"
    config = fine_tuning(scale)
    config.experiment = "redundancy"
    # What is frozen in turn: matrices, layers, types, cumulative, bottom, top, only, long.
    config.parts = "layers,types,cumulative" if real else "matrices,layers,types,cumulative,bottom,top,only,long"
    config.longer = 2 if tiny else 6  # of the part "long": times train.steps
    return config


def fine_tuning(scale: str) -> ConfigDict:
    """What the studies of a pretrained model share."""
    progressive.check_scale(scale, _SCALES)
    tiny, real = scale == "tiny", scale == "smollm2"
    config = progressive.get_config("tiny" if tiny else "cpu")
    config.scale = scale
    config.seeds = 1 if tiny else 2 if real else 5
    for field in ("sizes", "freeze", "model"):
        del config[field]
    config.base = bases.get_config("tiny" if tiny else "cpu")
    config.dropout = 0.0  # while fine-tuning
    config.sweep = 0  # runs at a time that differ in what is frozen alone: 0 = as many as fit into memory
    config.diagnostics = ConfigDict()
    config.diagnostics.batches = 8  # batches that gradients of the base are taken on
    config.data.path = "code" if tiny else ""
    config.data.val_sequences = 64 if tiny else 128
    config.train.steps = 20 if tiny else 50  # the papers'
    config.train.batch_size = 4
    config.train.seq_len = 64 if tiny else 128
    config.train.eval_every = 0
    config.train.checkpoint_every = 0
    config.train.optimizer.learning_rate = 3e-3 if tiny else 1e-4 if real else 3e-4
    config.train.optimizer.weight_decay = 0.0
    return config
