"""Prediction: FLOPs, bytes and seconds of every phase of a run, from shapes and mask alone."""

from freezejax.cost.hardware import EFFICIENCY, HARDWARE, Hardware, estimate_seconds, hardware_named
from freezejax.cost.prediction import PhaseCost, Prediction, predict

__all__ = [
    "EFFICIENCY",
    "HARDWARE",
    "Hardware",
    "PhaseCost",
    "Prediction",
    "estimate_seconds",
    "hardware_named",
    "predict",
]
