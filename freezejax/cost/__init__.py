"""Prediction: FLOPs, bytes and seconds of every phase of a run, from the jaxpr of its step."""

from freezejax.chips import HARDWARE, hardware_named
from freezejax.chips import Chip as Hardware
from freezejax.cost.prediction import (
    EFFICIENCY,
    PhaseCost,
    Prediction,
    estimate_seconds,
    forward_flops,
    matmul_flops_per_token,
    predict,
)

__all__ = [
    "EFFICIENCY",
    "HARDWARE",
    "Hardware",
    "PhaseCost",
    "Prediction",
    "estimate_seconds",
    "forward_flops",
    "hardware_named",
    "matmul_flops_per_token",
    "predict",
]
