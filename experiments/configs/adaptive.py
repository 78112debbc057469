"""Policies that decide on the way what is frozen, against fixed schedules and none, at equal time and equal loss.

    uv run python -m experiments.adaptive --config=experiments/configs/adaptive.py:tiny --workdir=DIR

Scales (after the colon); the base that is fine-tuned is as in experiments/configs/redundancy.py:

  tiny     under 2 minutes on 2 CPU cores; shows that everything works.
  cpu      the papers' size; give --config.base.data.path=FOLDER of .txt books to pretrain on.
  smollm2  SmolLM2-135M: --config.base.path=FILE.gguf --config.data.path=FOLDER of .txt books.

Times are compared, so nothing else should run beside it. What is not set here is as in
experiments/configs/progressive.py.
"""

from ml_collections import ConfigDict

from experiments.configs import redundancy


def get_config(scale: str = "cpu") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    config = redundancy.fine_tuning(scale)
    tiny = scale == "tiny"
    config.experiment = "adaptive"
    del config.sweep, config.diagnostics
    config.seeds = 1 if tiny else 3
    config.ways = "tuning" if scale == "smollm2" else "scratch,tuning"
    # Every new mask is a program to compile: the tiny scale has one policy fewer.
    config.policies = "gradient," * (not tiny) + "gradient_thaw,fisher,plasticity,low_participation"
    config.lengths = (60,) if tiny else (40, 60, 80)  # percent of the steps: runs of everything to compare with
    config.train.steps = 40 if tiny else 300
    config.learning_rates = ConfigDict({"scratch": 3e-3 if tiny else 1e-3, "tuning": 1e-3 if tiny else 3e-4})
    config.every = 10 if tiny else 25  # steps of a window
    config.fixed = ConfigDict({"first": 0.2, "last": 0.8})  # when the first and the last but one layer freeze
    config.gradient = ConfigDict()
    config.gradient.threshold = 0.6  # of a matrix's largest gradient norm so far
    config.gradient.thaw = 0.9  # likewise, of the policy that thaws
    config.fisher = ConfigDict()
    config.fisher.threshold = 0.36  # of a matrix's largest Fisher information so far: it is a square
    config.plasticity = ConfigDict()
    config.plasticity.threshold = 0.3  # of a block's largest so far
    config.participation = ConfigDict()
    config.participation.share = 0.1  # of the matrices, per window
    config.participation.most = 0.8  # of them, in the end
    return config
