"""The amplitudes of a matrix's rows, and what fine-tuning one type of matrix alone gains (paper 62).

    uv run python -m experiments.amplitude --config=experiments/configs/amplitude.py:tiny --workdir=DIR

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
    config.experiment = "amplitude"
    config.amplitudes = ConfigDict()
    config.amplitudes.pattern = r"blocks/\d+/attn/.*"  # of whole paths of the matrices to fit
    config.amplitudes.bumps = 8  # per row (the paper's)
    config.amplitudes.widths = (0.25, 0.5, 1.0)  # of a bump, in distances of two; the table of matrices has the second
    return config
