"""The time that a step takes on an accelerator, at a stated efficiency."""

from freezejax.chips import Chip
from freezejax.cost.prediction import PhaseCost
from freezejax.errors import UserError

EFFICIENCY = 0.4  # of the peak in matmuls, where nothing better is known


def estimate_seconds(phase: PhaseCost, hardware: Chip, efficiency: float = EFFICIENCY) -> float:
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
    >>> 1e-4 < estimate_seconds(phase, cost.HARDWARE["h100"], 0.4) < 1e-1
    True
    """
    if not 0 < efficiency <= 1:
        raise UserError(f"efficiency={efficiency}: expected a share of the peak in (0, 1]")
    compute = phase.matmul_flops / (efficiency * hardware.flops[phase.compute_dtype])
    memory = 2 * (phase.argument_bytes + phase.activation_bytes) / hardware.memory_rate
    links = sum(phase.collective_bytes.values()) / hardware.link_rate
    return max(compute, memory, links)
