"""A matrix of a pretrained model replaced by its rank 1, its mean or a random one of its norm (paper 63).

    uv run python -m experiments.crystallization --config=experiments/configs/crystallization.py:tiny --workdir=DIR

Scales (after the colon); the base that is fine-tuned is as in experiments/configs/redundancy.py:

  tiny     under 2 minutes on 2 CPU cores; shows that everything works.
  cpu      the papers' size; give --config.base.data.path=FOLDER of .txt books to pretrain on.
  smollm2  SmolLM2-135M: --config.base.path=FILE.gguf --config.data.path=FOLDER of .txt books.

What is not set here is as in experiments/configs/progressive.py.
"""

from ml_collections import ConfigDict

from experiments.configs import redundancy


def get_config(scale: str = "cpu") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    config = redundancy.fine_tuning(scale)
    config.experiment = "crystallization"
    config.crystals = ConfigDict()
    # Of whole paths of the matrices to replace, each alone; the papers' attention has c_attn and c_proj.
    config.crystals.pattern = r"blocks/\d+/attn/(o_proj|v_proj)/kernel" if scale == "smollm2" else r"blocks/\d+/attn/.*"
    config.crystals.forms = "kept,rank_1,random"  # and mean
    return config
