"""A GPT-2 or a Llama from scratch, as the base of the studies of pretrained models; or a model of yours, fine-tuned.

    uv run python -m experiments.pretrain --config=experiments/configs/pretrain.py:tiny --workdir=DIR

Scales (after the colon), each with `_llama` for a Llama:

  tiny   2 layers of width 64 over bytes, embedded corpus: under a minute on 2 CPU cores.
  cpu    papers 62 to 64: 8 layers of width 256, about 10.2 M parameters with a vocabulary of 14,592 pieces learned from
         the text: about 25 minutes on 2 CPU cores; give --config.data.path=FOLDER of .txt books.
  h100   the published smallest GPT-2 over a vocabulary of 50,257 pieces; give --config.data.path of shards.

What is not set here is as in experiments/configs/progressive.py.
"""

from ml_collections import ConfigDict

from experiments.configs import progressive

_SIZES = {"tiny": (2, 64, 2), "cpu": (8, 256, 8), "h100": (12, 768, 12)}  # layers, width, heads


def get_config(scale: str = "cpu") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    progressive.check_scale(scale, [size + family for size in _SIZES for family in ("", "_llama")])
    llama, scale = scale.endswith("_llama"), scale.removesuffix("_llama")
    config = progressive.get_config(scale)
    config.experiment = "pretrain"
    config.seeds = 1
    config.paper = "none"
    config.start = ""  # a model to go on from, in place of config.model: a folder in Hugging Face's layout, or .gguf
    config.trainable = ""  # types of modules that train, all else frozen: out_proj, or q_proj,v_proj; empty = all
    for field in ("sizes", "freeze", "model"):
        del config[field]
    config.model = ConfigDict({"family": "llama" if llama else "gpt2", "vocab_size": 0})  # 0 = the tokenizer's
    config.model.num_layers, config.model.model_dim, config.model.num_heads = _SIZES[scale]
    if llama:
        config.model.head_dim = config.model.model_dim // config.model.num_heads
        config.model.num_kv_heads, config.model.mlp_mult = config.model.num_heads // 2, 3.0
    else:
        config.model.positions = {"tiny": 64, "cpu": 256, "h100": 1024}[scale]  # the longest sequence
    config.data.tokenizer = "bpe:14592" if scale == "cpu" else ""
    config.train.steps = {"tiny": 300, "cpu": 1_000, "h100": 20_000}[scale]
    config.train.batch_size = {"tiny": 8, "cpu": 16, "h100": 256}[scale]  # sequences
    config.train.seq_len = {"tiny": 64, "cpu": 128, "h100": 1024}[scale]  # tokens
    config.train.optimizer.learning_rate = {"tiny": 3e-3, "cpu": 1e-3, "h100": 6e-4}[scale]
    config.train.optimizer.warmup_steps = config.train.steps // 50
    config.train.eval_every = config.train.checkpoint_every = config.train.steps // 5
    return config
