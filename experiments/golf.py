"""An entry to Parameter Golf as the frontier recommends it, against models of the same bytes that train every weight.

    python -m experiments.golf --config=experiments/configs/parameter_golf.py:best_tiny --workdir=DIR

Every entry of `config.entries` is a way to build a model (experiments/ways.py), its options, and how many times the
config's steps it takes: a model of cheaper steps takes more of them in the same minutes. Each is as wide as the budget
of bytes allows.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.engine import cli, study
from experiments.engine.variants import Contrast, Study, Variant
from experiments.ways import Trial, model_of, variant_of, ways
from freezejax.errors import UserError
from freezejax.paths import nearest

BEST = "best"  # the entry that is recommended


def make_study(config: ConfigDict, vocab_size: int) -> Study:
    """The entries of a config: `best`, and what it is compared with."""
    names = [BEST, *(name for name in config.entries if name != BEST)]
    questions = [Contrast(BEST, name, f"as recommended against {name}, the same bytes") for name in names[1:]]
    return Study("golf", [_variant(name, config, vocab_size) for name in names], questions)


def _variant(name: str, config: ConfigDict, vocab_size: int) -> Variant:
    options = config.entries[name].to_dict()
    known = {way.name: way for way in ways()}
    if (way := options.pop("way")) not in known:
        raise UserError(f"config.entries.{name}.way={way!r}: no such way; {nearest(way, known)}")
    longer = options.pop("longer")
    trial = Trial(known[way], config.budget, 0, options)
    return dataclasses.replace(variant_of(trial, model_of(trial, config, vocab_size), config, longer), name=name)


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/parameter_golf.py:best_tiny")
    cli.run(lambda: study.main(make_study))
