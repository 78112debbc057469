"""Ways to build a language model of given stored bytes: what is drawn at random, what trains, in how many bits.

Each is tried at every budget of bytes with several choices of what it leaves open (`experiments.frontier`).
"""

import dataclasses
import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.engine import matching
from experiments.engine.fields import check_range
from experiments.engine.results import packing
from experiments.engine.variants import Variant
from experiments.report.sides import FROZEN, TRAINED, size_name
from freezejax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to build a model of a size, and what to try of it."""

    name: str
    seeded: str = ""  # pattern of the kernels of a block that are random maps; "" = everything trains
    few_bits: Sequence[Any] = (None,)  # of the kernels that train; None = as the codec has them
    uses: Sequence[int] = (1,)  # how often the weights of a block are used, one block after the other
    adapter: Sequence[str] = ("none",)  # over the maps: a kind and its rank, one of the two of the budget

    @property
    def side(self) -> str:
        """The side that it is on."""
        return FROZEN if self.seeded else TRAINED


_TRAINED = [
    Way("narrow"),
    Way("int4", few_bits=(4,)),
    Way("low_bits", few_bits=("ternary", 2, 3)),
    Way("shared", uses=(2, 3)),
    Way("shared_int4", few_bits=(4,), uses=(2, 3)),
]
KERNELS = {  # of a block
    "geglu": ("attn/q", "attn/k", "attn/v", "attn/out", "mlp/gate", "mlp/up", "mlp/down"),
    "parameter_golf": ("attn/c_q", "attn/c_k", "attn/c_v", "attn/proj", "mlp/fc", "mlp/proj"),
}
_PLACES = {"gate_up": "mlp/(gate|up|fc)", "mlp": "mlp/.*", "qk": "attn/(c_)?[qk]", "attention": "attn/.*"}


def ways() -> list[Way]:
    """What is tried at every budget."""
    some, many = ("none", "gain", "lora{low}", "lora{high}"), ("lora{low}", "dora{low}", "lora{high}")
    places = [Way(name, place, (None, 4), (1,), some) for name, place in _PLACES.items()]
    return [*_TRAINED, *places, Way("everything", ".*", adapter=many)]


class Trial(NamedTuple):
    """A way at a budget, and one choice of what is tried of it."""

    way: Way
    budget: int  # bytes of the file
    number: int
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of its variant."""
        return f"{size_name(self.budget)}_{self.way.name}_{self.number}"


def trials(config: ConfigDict) -> Iterator[Trial]:
    """The trials of a config: of every way as many, the values of each option as evenly as their number allows."""
    check(config)
    for (row, budget), way in itertools.product(enumerate(config.budgets), ways()):
        choices: dict[str, Sequence[Any]] = {
            "layers": config.layers[row],
            "heads": (config.heads[row],),
            "mlp_mult": config.mlp_mults,
            "rate": config.rates,
            "few_bits": way.few_bits,
            "uses": way.uses,
            "adapter": [name.format_map(config.ranks[row]) for name in way.adapter],
            "distribution": config.distributions if way.seeded else ("normal",),
        }
        rng = random.Random(f"{config.model.family}, {way.name}, {budget}")
        columns = [_evenly(rng, values, config.trials) for values in choices.values()]
        for number, values in enumerate(zip(*columns, strict=True)):
            yield Trial(way, budget, number, dict(zip(choices, values, strict=True)))


def check(config: ConfigDict) -> None:
    """Refuses what nothing could be tried of: no trials, and budgets that do not each have their sizes."""
    for field in ("trials", "budgets", "heads"):
        check_range(config, field, 1)
    for field in ("rates", "mlp_mults"):
        check_range(config, field, 1e-6)
    for field in ("layers", "heads", "ranks"):
        if not isinstance(config[field], tuple | list) or len(config[field]) != len(config.budgets):
            raise UserError(f"config.{field}={config[field]!r}: expected one for each of {len(config.budgets)} budgets")
    if not all(isinstance(tried, tuple | list) and tried for tried in config.layers):
        raise UserError(f"config.layers={config.layers!r}: expected numbers to try for each budget: ((2, 3), (4, 6))")
    if not config.distributions or not all(isinstance(name, str) for name in config.distributions):
        raise UserError(f"config.distributions={config.distributions!r}: expected names of distributions")


def _evenly(rng: random.Random, values: Sequence[Any], count: int) -> list[Any]:
    rounds = (rng.sample(list(values), len(values)) for _ in range(math.ceil(count / len(values))))
    return list(itertools.chain.from_iterable(rounds))[:count]


def model_of(trial: Trial, config: ConfigDict, vocab_size: int) -> dict[str, Any]:
    """The model of a trial, as wide as its budget allows."""
    way, options = trial.way, trial.options
    layers, heads = options["layers"] * options["uses"], options["heads"]
    model = {**config.model, "num_layers": layers, "num_heads": heads, "mlp_mult": options["mlp_mult"]}
    model["vocab_size"] = config.model.vocab_size or vocab_size
    # Weights that train start from the scale at which maps are drawn, as far as the family can.
    if model["family"] == "geglu":
        model |= {"separate_qkv": True, "mlp_in_init": "fan_in"}
    else:
        model["num_kv_heads"] = heads // 2
    model["weights"] = _weights(way, options, KERNELS[model["family"]], layers)
    try:
        return matching.fit_file(model, trial.budget, **packing(config))
    except UserError as error:
        raise UserError(f"{trial.name}: {error}") from None


def variant_of(trial: Trial, model: Mapping[str, Any], config: ConfigDict, longer: float = 1.0) -> Variant:
    """The trial as a variant of a study, at its learning rate and with `longer` times the config's steps."""
    train = config.train.to_dict()
    for rate in ("learning_rate", "adam_learning_rate"):
        train["optimizer"][rate] *= trial.options["rate"]
    steps = round(longer * train["steps"])
    name = trial.name if steps == train["steps"] else f"{trial.name}_for_{steps}"
    return Variant(name, model, {**train, "steps": steps}, matching.ALL_TRAIN, base_seeds=True)


def _weights(way: Way, options: Mapping[str, Any], kernels: Sequence[str], layers: int) -> list[dict[str, Any]]:
    seeded = [name for name in kernels if way.seeded and re.fullmatch(way.seeded, name)]
    trained, found = [name for name in kernels if name not in seeded], []
    if seeded:
        found.append(matching.random_map(_pattern(seeded), options["distribution"]))
    if options["few_bits"]:
        found.append({"pattern": _pattern(trained), "kind": "lowbit", "bits": options["few_bits"]})
    for block in range(layers):
        if again := block % options["uses"]:
            found.append({"pattern": _pattern(trained, f"{block}"), "kind": "shared", "block": block - again})
    kind, rank = options["adapter"].rstrip("0123456789"), re.search(r"\d+$", options["adapter"])
    if kind != "none":
        found.append({"pattern": _pattern(seeded), "kind": kind, **({"rank": int(rank[0])} if rank else {})})
    return found


def _pattern(kernels: Sequence[str], block: str = r"\d+") -> str:
    return f"blocks/{block}/({'|'.join(kernels)})/kernel"
