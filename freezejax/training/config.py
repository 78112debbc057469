"""What a training run is told: every field with its unit.

The defaults are for callers of `train`. The configs of the studies (`experiments/configs`) set every field themselves,
but for the seeds and the restarts, which belong to a run. Nothing downstream has a default of its own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from freezejax.errors import UserError
from freezejax.optimizer import OnThaw
from freezejax.paths import nearest


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of a run. Rates are at the peak; decay and clip concern the trainable leaves alone.

    Raises:
      UserError: a value out of range, named by its field.
    """

    name: str = "adamw"  # or "muon": Muon for the matrices inside blocks, AdamW for the rest
    learning_rate: float = 1e-3  # above 0
    adam_learning_rate: float = 1e-3  # above 0, for the leaves that Muon leaves to AdamW
    weight_decay: float = 0.1  # 0 or more, decoupled
    b1: float = 0.9  # decay of Adam's first moment, in [0, 1)
    b2: float = 0.999  # of its second moment, in [0, 1)
    eps: float = 1e-8  # of Adam, above 0
    momentum: float = 0.95  # of Muon, in [0, 1)
    clip: float = 1.0  # largest global norm of the gradient; 0 = off
    schedule: str = "cosine"  # after the warmup, to zero at the last step; or "linear_warmdown", "constant"
    warmup_steps: int = 0  # of a linear rise to the peak
    warmdown_steps: int = 0  # of "linear_warmdown", the last steps, in which the rate falls to zero

    def __post_init__(self) -> None:  # noqa: D105
        _one_of("optimizer.name", self.name, ("adamw", "muon"))
        _one_of("optimizer.schedule", self.schedule, ("cosine", "linear_warmdown", "constant"))
        for field in ("learning_rate", "adam_learning_rate", "eps"):
            _check(f"optimizer.{field}", getattr(self, field), getattr(self, field) > 0, "a positive number")
        for field in ("weight_decay", "clip", "warmup_steps", "warmdown_steps"):
            _check(f"optimizer.{field}", getattr(self, field), getattr(self, field) >= 0, "0 or more")
        for field in ("b1", "b2", "momentum"):
            _check(f"optimizer.{field}", getattr(self, field), 0 <= getattr(self, field) < 1, "in [0, 1)")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices split what; -1 is what the others leave. See `freezejax.sharding`.

    Raises:
      UserError: a size out of range, named by its field.
    """

    data: int = -1  # rows of the batch
    fsdp: int = 1  # rows of the batch, and weights, gradients and optimizer state
    tensor: int = 1  # weights, and activations inside a block
    expert: int = 1  # rows of the batch, and the experts of a mixture

    def __post_init__(self) -> None:  # noqa: D105
        for field in ("data", "fsdp", "tensor", "expert"):
            size = getattr(self, field)
            _check(f"train.mesh.{field}", size, size >= 1 or size == -1, "1 or more, or -1 for what the others leave")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
      UserError: a value out of range, named by its field.

    >>> TrainConfig(steps=10, batch_size=4, seq_len=32).tokens_per_step
    128
    """

    steps: int  # updates of the weights, 1 to below 2^31
    batch_size: int  # sequences per update, 1 or more
    seq_len: int  # tokens per sequence, 1 or more
    seed: int = 0  # 0 or more; initial weights, data order and dropout follow from it
    base_seed: int = 0  # 0 or more; random maps are drawn from it
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)  # of a config file; `train` takes the mesh itself
    accumulation: int = 1  # microbatches per update, a divisor of batch_size
    ema_decay: float = 0.0  # of the average of the trainable leaves, in [0, 1); 0 = no average
    compute_dtype: str = "float32"  # of the activations; or "bfloat16"
    remat: bool = False  # the backward pass computes each block again, instead of keeping its activations
    draw_maps: str = "per_layer"  # when random maps are drawn: per layer and pass, "per_step", or "once" and stored
    # Of the frozen embedding and first blocks: "off" = in the step; apart from it and without dropout = "recompute",
    # or kept, window by window, in "memory" or on "disk".
    prefix_cache: str = "off"
    prefix_cache_gib: float = 4.0  # bound of what is kept, 0 to 2^30
    on_thaw: OnThaw = "restart"  # optimizer state of a thawed leaf; or "keep"
    restart_schedule: bool = False  # whether the learning-rate schedule begins again at every phase
    restart_optimizer: bool = False  # whether all optimizer state does
    log_every: int = 10  # steps between two records, 1 or more
    eval_every: int = 0  # steps between two evaluations; 0 = only at the end
    checkpoint_every: int = 0  # steps between two checkpoints; 0 = only when stopped

    def __post_init__(self) -> None:  # noqa: D105
        for field in ("steps", "batch_size", "seq_len", "accumulation", "log_every"):
            _check(f"train.{field}", getattr(self, field), getattr(self, field) >= 1, "1 or more")
        _check("train.steps", self.steps, self.steps < 2**31, "below 2^31")  # they are counted in int32
        for field in ("eval_every", "checkpoint_every", "seed", "base_seed"):
            _check(f"train.{field}", getattr(self, field), getattr(self, field) >= 0, "0 or more")
        _check("train.ema_decay", self.ema_decay, 0 <= self.ema_decay < 1, "in [0, 1)")
        _one_of("train.compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
        _one_of("train.draw_maps", self.draw_maps, ("per_layer", "per_step", "once"))
        _one_of("train.prefix_cache", self.prefix_cache, ("off", "recompute", "memory", "disk"))
        _check("train.prefix_cache_gib", self.prefix_cache_gib, 0 <= self.prefix_cache_gib < 2**30, "0 to 2^30")
        _one_of("train.on_thaw", self.on_thaw, ("restart", "keep"))
        divides = self.batch_size % self.accumulation == 0
        _check("train.accumulation", self.accumulation, divides, f"a divisor of batch_size={self.batch_size}")

    @property
    def tokens_per_step(self) -> int:
        """Target tokens per optimizer step."""
        return self.batch_size * self.seq_len

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Config from nested plain values, as a config file holds them.

        Raises:
          UserError: an unknown key, with the nearest known one.

        >>> TrainConfig.from_mapping({"steps": 1, "batch_size": 1, "seq_len": 8, "sed": 1})
        Traceback (most recent call last):
        ...
        freezejax.errors.UserError: train.sed: no such field; nearest: seed, steps, base_seed
        """
        values = dict(values)
        optimizer = _build(OptimizerConfig, "train.optimizer", values.pop("optimizer", {}))
        mesh = _build(MeshConfig, "train.mesh", values.pop("mesh", {}))
        return _build(cls, "train", {**values, "optimizer": optimizer, "mesh": mesh})


def _build(cls: Any, where: str, values: Mapping[str, Any]) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{where}.{name}: no such field; {nearest(name, fields)}")
        kind = fields[name].type
        # A bool is an int to Python, and a whole number is as good as a float; nothing else passes for another.
        if type(value) is not kind and not (kind is float and type(value) is int) and kind in (int, float, bool, str):
            raise UserError(f"{where}.{name}={value!r}: expected {kind.__name__}")
    for name, field in fields.items():
        if field.default is field.default_factory is dataclasses.MISSING and name not in values:
            raise UserError(f"{where}.{name} is missing")
    return cls(**values)


def _check(field: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"{field}={value!r}: expected {expected}")


def _one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{field}={value!r}: expected one of {', '.join(choices)}; {nearest(str(value), choices, 1)}")
