"""One part of a pretrained model fine-tuned on one kind of text: what is gained there, what is forgotten of others.

    uv run python -m experiments.domains --config=experiments/configs/domains.py:tiny --workdir=DIR

Scales (after the colon):

  tiny     a Llama of 2 layers, pretrained on the embedded prose and fine-tuned on Python code: under 2 minutes on 2 CPU
           cores. Shows that everything works.
  smollm2  SmolLM2-135M (launch/get_smollm2.sh), fine-tuned on the embedded Python reference:
           --config.base.path=FILE.gguf --config.others=books=FOLDER,fineweb=FOLDER, folders of .txt or of shards.
  pod      a Llama of 7 B parameters on 256 chips, by preflight (docs/preflight.md); give --config.base.path=FOLDER and
           --config.others to run it.

--config.base.path=FOLDER takes any model of a known family in Hugging Face's layout. What is not set here is as in
experiments/configs/redundancy.py.
"""

from ml_collections import ConfigDict

from experiments import bases
from experiments.configs import progressive, redundancy

_SCALES = ("tiny", "smollm2", "pod")


def get_config(scale: str = "smollm2") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    progressive.check_scale(scale, _SCALES)
    tiny = scale == "tiny"
    config = redundancy.fine_tuning("smollm2" if scale == "pod" else scale)
    config.scale = scale
    for field in ("sweep", "diagnostics"):
        del config[field]
    config.experiment = "domains"
    config.seeds = 1
    config.paper = "none"  # the source has other tasks
    config.base = bases.get_config("tiny_llama" if tiny else "cpu_llama")
    config.others = "prose=" if tiny else ""  # NAME=PATH of other texts, with commas; an empty path is the embedded one
    # One row each, and a last one in which everything trains; names with a space between them are one row.
    config.types = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,ln1 ln2 ln_f,tok_emb"
    config.pairs = ""  # more rows of several types
    config.longer = 1  # also with so many times the steps; 1: not
    config.rates = (1.0,)  # also with so many times the learning rate
    config.few = False  # also with as few parameters, chosen at random, as the type with fewest has
    config.mixed = 0.0  # also with this share of the other texts in the batches; 0: not
    config.data.val_sequences = 16 if tiny else 64  # windows of every text
    if scale == "pod":
        _fill_a_pod(config)
    config.tune = ConfigDict()  # instead of what `train` says, while fine-tuning
    config.tune.steps = config.train.steps
    config.tune.batch_size = config.train.batch_size
    config.tune.learning_rate = config.train.optimizer.learning_rate
    config.tune.schedule = "cosine"
    return config


def _fill_a_pod(config: ConfigDict) -> None:
    """7 B parameters, 524,288 tokens a step; every weight, gradient and moment is split over all chips."""
    config.base = bases.get_config("h100_llama")
    config.base.model.num_layers, config.base.model.model_dim, config.base.model.num_heads = 32, 4096, 32
    config.base.model.num_kv_heads, config.base.model.head_dim, config.base.model.mlp_mult = 32, 128, 11008 / 4096
    config.base.model.tied = False
    config.train.steps, config.train.batch_size, config.train.seq_len = 1_000, 256, 2_048
    config.train.compute_dtype, config.train.remat = "bfloat16", True
    config.train.mesh.data, config.train.mesh.fsdp = 1, -1
    config.data.eval_batch_size = 256
    config.data.val_sequences = 256
