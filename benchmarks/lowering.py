"""What a training step with maps holds once it is lowered for GPU and TPU: no accelerator is needed for that."""

import math
import re
from typing import Any

import jax

from benchmarks.training_step import abstract_step
from freezejax.weights import maps_of

PLATFORMS = ("cuda", "tpu")
# [192, 384]: a shape that nothing else in the model has.
_PATTERN = r"blocks/\d+/mlp/(gate|up)/kernel"
_FIELDS_PER_WORD = 4


def measure() -> list[dict[str, Any]]:
    """Counts over the StableHLO of one training step of a two-layer GEGLU model whose gate and up are maps.

    `draws` counts the calls of the generator that give the words of a map, `map_arguments` arguments and
    `map_constants` constants of a map's size or more, `seed_arguments` the seeds that are arguments;
    `largest_constant` is in elements.
    """
    step, arguments, _ = abstract_step(_PATTERN, layers=2)
    maps = [weight.map for weight in maps_of(arguments[1])]
    rows, columns = maps[0].shape
    size = rows * columns
    words = rf"tensor<{rows}x{columns // _FIELDS_PER_WORD}xui32>"
    found = []
    for platform in PLATFORMS:
        lowered = jax.jit(step, donate_argnums=0).trace(*arguments).lower(lowering_platforms=(platform,))
        text = lowered.as_text()
        inputs = _main_arguments(text)
        found.append(
            {
                "platform": platform,
                "maps": len(maps),
                "map_elements": size,
                "draws": len(re.findall(rf"call @threefry2x32\w*\(.*-> \({words}", text)),
                "seed_arguments": inputs.count("2xui32"),  # no dropout, so no other key
                "map_arguments": sum(shape == f"{rows}x{columns}xf32" for shape in inputs),
                "map_constants": sum(elements >= size for elements in constants(text)),
                "largest_constant": max(constants(text)),
            }
        )
    return found


def constants(text: str) -> list[int]:
    """Elements of every constant of a StableHLO module that is not one number repeated.

    >>> constants('%c = stablehlo.constant dense<[[1, 2], [3, 4]]> : tensor<2x2xi32>')
    [4]
    >>> constants('%c = stablehlo.constant dense<0.0> : tensor<2x2xf32>')
    []
    """
    listed = re.findall(r'stablehlo\.constant dense<["\[].*> : tensor<((?:\d+x)*)\w+>', text)
    return [math.prod(int(size) for size in re.findall(r"\d+", shape)) for shape in listed]


def _main_arguments(text: str) -> list[str]:
    signature = text.split("func.func public @main(")[1].split(") -> (")[0]
    return re.findall(r"%arg\d+: tensor<(\w+)>", signature)
