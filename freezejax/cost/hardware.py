"""Accelerators by their data sheets, and the time that a step takes at a stated efficiency."""

import dataclasses
from collections.abc import Mapping

from freezejax.cost.prediction import PhaseCost
from freezejax.errors import UserError
from freezejax.paths import nearest

EFFICIENCY = 0.4  # of the peak in matmuls, where nothing better is known


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One kind of accelerator: what one device of it can do at most.

    >>> HARDWARE["h100"].flops["bfloat16"] / HARDWARE["v5e"].flops["bfloat16"] > 5
    True
    """

    name: str
    flops: Mapping[str, float]  # dense matmul FLOP/s by compute dtype; float32 as JAX multiplies it by default
    memory_bytes: float  # HBM
    memory_rate: float  # of HBM, bytes/s
    link_rate: float  # to the devices beside it, bytes/s that it sends
    source: str


_NVIDIA = "NVIDIA {} Tensor Core GPU data sheet, SXM, without sparsity; float32 as TF32; NVLink in one direction"
_GOOGLE = "https://cloud.google.com/tpu/docs/{}; float32 in one bfloat16 pass; ICI in one direction"
HARDWARE: Mapping[str, Hardware] = {
    hardware.name: hardware
    for hardware in (
        Hardware("h100", {"bfloat16": 989.4e12, "float32": 494.7e12}, 80e9, 3.35e12, 450e9, _NVIDIA.format("H100")),
        Hardware("h200", {"bfloat16": 989.4e12, "float32": 494.7e12}, 141e9, 4.8e12, 450e9, _NVIDIA.format("H200")),
        Hardware("v5e", {"bfloat16": 197e12, "float32": 197e12}, 16e9, 819e9, 200e9, _GOOGLE.format("v5e")),
        Hardware("v5p", {"bfloat16": 459e12, "float32": 459e12}, 95e9, 2765e9, 600e9, _GOOGLE.format("v5p")),
    )
}


def hardware_named(name: str) -> Hardware:
    """The accelerator of a name.

    Raises:
      UserError: an unknown name, told with the nearest.

    >>> hardware_named("h10")
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: there is no hardware 'h10'; nearest: h100, h200
    """
    if name not in HARDWARE:
        raise UserError(f"there is no hardware {name!r}; {nearest(name, HARDWARE, 2)}")
    return HARDWARE[name]


def estimate_seconds(phase: PhaseCost, hardware: Hardware, efficiency: float = EFFICIENCY) -> float:
    """Seconds of one step: the longest of what matmuls, memory and links need, each working while the others do.

    Matmuls reach `efficiency` of the peak. Memory carries the arguments twice, read and written, and the temporaries
    twice. Links carry every collective at the rate inside a node or a pod slice; a slower network is not modelled.
    That they overlap is optimistic for small models, whose steps are bound by launches: measure those.

    Args:
      phase: its cost, per device.
      hardware: what runs it.
      efficiency: share of the peak FLOP/s in (0, 1].

    Raises:
      UserError: an efficiency outside (0, 1].

    >>> from freezejax import FreezeSchedule, cost, models
    >>> from freezejax.training.config import TrainConfig
    >>> config = TrainConfig(steps=1, batch_size=64, seq_len=512, compute_dtype="bfloat16")
    >>> phase = cost.predict(models.build("geglu"), config, FreezeSchedule([(0, [(".*", True)])])).phases[0]
    >>> 1e-4 < estimate_seconds(phase, HARDWARE["h100"], 0.4) < 1e-1
    True
    """
    if not 0 < efficiency <= 1:
        raise UserError(f"efficiency={efficiency}: expected a share of the peak in (0, 1]")
    compute = phase.matmul_flops / (efficiency * hardware.flops[phase.compute_dtype])
    memory = 2 * (phase.argument_bytes + phase.activation_bytes) / hardware.memory_rate
    links = sum(phase.collective_bytes.values()) / hardware.link_rate
    return max(compute, memory, links)
