"""The amplitudes of a matrix's rows, and what fine-tuning one type of matrix alone gains (paper 62).

    uv run python -m experiments.amplitude --config=experiments/configs/amplitude.py:tiny --workdir=DIR

Scales, and the base that is fine-tuned: as in experiments/configs/redundancy.py, and the rest as in
experiments/configs/progressive.py.
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
