"""What studies share in saying what is compared: frozen weights by word, and sizes matched in bytes or FLOPs."""

import bisect
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from freezejax import artifact, cost, models
from freezejax.errors import UserError
from freezejax.paths import PyTree
from freezejax.schedules import FreezeSchedule

Codec = str | Sequence[tuple[str, str]]
ALL_TRAIN = FreezeSchedule([(0, [(".*", True)])])


def geglu_models(config: ConfigDict, vocab_size: int) -> dict[str, dict[str, Any]]:
    """The models of a study whose kernels are those of geglu: one for each of `config.sizes`.

    `vocab_size` is the tokenizer's, for a config that names none. Refuses another family.

    >>> from experiments.configs.selective import get_config
    >>> geglu_models(get_config("tiny"), 256)["large"]["model_dim"]
    48
    """
    if config.model.family != "geglu":
        raise UserError(f"config.model.family={config.model.family!r}: the kernels of this study are those of geglu")
    vocab = {"vocab_size": config.model.vocab_size or vocab_size}
    return {name: {**config.model, **size, **vocab} for name, size in config.sizes.items()}


def random_map(pattern: str, distribution: str = "normal", trained: bool = False) -> dict[str, Any]:
    """An entry of `model["weights"]`: kernels that are random maps, or with `trained` start as them and train."""
    return {"pattern": pattern, "kind": "map", "distribution": distribution, "scale": "fan_in", "trained": trained}


def with_maps(model: Mapping[str, Any], *entries: Mapping[str, Any]) -> dict[str, Any]:
    """The model with some kernels as `random_map` says."""
    return {**model, "weights": [*model.get("weights", ()), *entries]}


def has_maps(model: Mapping[str, Any]) -> bool:
    """Whether kernels of a model come from the base seed: frozen, or as initial values.

    >>> has_maps({"family": "geglu"}), has_maps(with_maps({"family": "geglu"}, random_map(".*/gate/kernel")))
    (False, True)
    """
    own = any(rule["kind"] == "map" for rule in model.get("weights", ()))
    return own or any(map(has_maps, model.get("members", ())))


def check_pattern(field: str, pattern: str, model: Mapping[str, Any]) -> None:
    """Refuses a pattern of kernels that cannot be, while it still has the name of the config's field."""
    abstract_params(model)  # what else is wrong with the model is not the pattern's fault
    try:
        models.build(**with_maps(model, random_map(pattern)))
    except UserError as error:
        raise UserError(f"{field}={pattern!r}: {error}") from None


def abstract_params(model: Mapping[str, Any]) -> PyTree:
    """Parameters of a model, as shapes."""
    return models.build(**model).abstract_params()


def stored_bytes(model: Mapping[str, Any], codec: Codec) -> int:
    """Bytes of a model's weights at the codec they are packed with, before compression; maps cost nothing.

    >>> stored_bytes({"family": "geglu", "num_layers": 1}, "int8") > 200_000
    True
    """
    return artifact.predict_bytes(abstract_params(model), codec)


def step_flops(model: Mapping[str, Any]) -> int:
    """FLOPs of the matmuls in one training step, per token of a sequence of 256, see `cost.matmul_flops_per_token`.

    Everything trains but the seeds of random maps.

    >>> step_flops({"family": "geglu", "num_layers": 1, "model_dim": 32, "num_heads": 2, "vocab_size": 8})
    124416
    """
    return cost.matmul_flops_per_token(models.build(**model), ALL_TRAIN, seq_len=256)


def match_bytes(model: Mapping[str, Any], target: int, codec: Codec) -> dict[str, Any]:
    """The model made smaller until it stores `target` bytes.

    Same depth and heads. The width is the nearest that the heads allow; the hidden width then takes up the rest.
    """
    heads, mult = model["num_heads"], model["mlp_mult"]
    # Heads of even width, for the rotary halves, and no narrower than what rotates.
    rotated = getattr(models.build(**model).config, "rope_dims", 2)
    widths = range(heads * rotated, model["model_dim"] + 1, 2 * heads)
    stored = functools.cache(lambda width: stored_bytes(_sized(model, width, round(mult * width)), codec))
    above = bisect.bisect_left(widths, target, key=stored)
    nearest = min(widths[max(above - 1, 0) : above + 1], key=lambda width: abs(stored(width) - target))
    return _match_hidden(model, nearest, target, lambda candidate: stored_bytes(candidate, codec))


def file_bytes(model: Mapping[str, Any], codec: Codec, compressor: str) -> int:
    """Bytes of a model's packed file, predicted for Gaussian weights: see `artifact.predict_size`.

    >>> file_bytes({"family": "geglu", "num_layers": 1}, "int6", "brotli") > 200_000
    True
    """
    shapes = abstract_params(model)
    return artifact.predict_size(shapes, model=model, codec=codec, compressor=compressor).gaussian


def fit_file(model: Mapping[str, Any], target: int, codec: Codec, compressor: str) -> dict[str, Any]:
    """The model made wider or narrower until its packed file is predicted to take `target` bytes.

    Depth and heads stay. The width is the nearest that the heads allow; the hidden width then takes up the rest, where
    it is stored at all. The prediction is that of Gaussian weights, see `artifact.predict_size`.

    Raises:
      UserError: the narrowest model is larger than that by a quarter.

    >>> model = {"family": "geglu", "num_layers": 2, "model_dim": 64, "num_heads": 2}
    >>> fit_file({**model, "mlp_mult": 2}, 100_000, "int6", "brotli")["model_dim"]
    76
    """

    def size(width: int, hidden: int) -> int:
        return file_bytes(_sized(model, width, hidden), codec, compressor)

    heads, mult = model["num_heads"], model["mlp_mult"]
    least = heads * getattr(models.build(**{**model, "weights": []}).config, "rope_dims", 2)
    width, power, sizes = max(model["model_dim"], least), 1.8, dict[int, int]()
    while width not in sizes:  # the secant of the logarithms; bytes grow with the width to the power of one to two
        sizes[width] = size(width, round(mult * width))
        (a, b) = ([*sizes] * 2)[-2:]
        if a != b:
            power = min(max(math.log(sizes[b] / sizes[a]) / math.log(b / a), 1.0), 2.0)
        width = max(2 * heads * round(width * (target / sizes[width]) ** (1 / power) / (2 * heads)), least)
    width = min(sizes, key=lambda width: abs(sizes[width] - target))
    hidden, found = round(mult * width), sizes[width]
    if found > 1.25 * target:
        raise UserError(f"no model of {model['num_layers']} layers and {heads} heads fits into {target:,} bytes")
    per_column = (size(width, hidden + width) - found) / width
    if per_column > 0:  # next to nothing where the MLP is a map: hidden stays near what was asked for
        hidden = min(max(hidden // 2, hidden + round((target - found) / per_column)), 3 * hidden // 2)
    return _sized(model, width, hidden)


def match_step(model: Mapping[str, Any], target: int) -> dict[str, Any]:
    """The model with its hidden width changed until its step takes `target` FLOPs a token; the width stays.

    FLOPs stand for time here: what a step really takes is measured in every run (`step_ms_median`).
    """
    return _match_hidden(model, model["model_dim"], target, step_flops)


def _match_hidden(
    model: Mapping[str, Any], width: int, target: int, measure: Callable[[Mapping[str, Any]], int]
) -> dict[str, Any]:
    hidden = round(model["mlp_mult"] * width)
    now, one_more = (measure(_sized(model, width, size)) for size in (hidden, hidden + 1))
    wanted = hidden + round((target - now) / (one_more - now))
    if wanted < 1:
        raise UserError(
            f"no model of width {width} is as small as what is left of {model['model_dim']} with the frozen kernels "
            "seeded; let config.freeze.pattern freeze less"
        )
    return _sized(model, width, wanted)


def _sized(model: Mapping[str, Any], width: int, hidden: int) -> dict[str, Any]:
    return {**model, "model_dim": width, "mlp_mult": hidden / width}
