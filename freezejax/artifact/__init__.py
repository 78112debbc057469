"""A model as one file: quantized weights, the base seed of its maps, and nothing that a seed can say."""

from freezejax.artifact.codecs import CODECS
from freezejax.artifact.encode import COMPRESSORS
from freezejax.artifact.ensemble import load_ensemble
from freezejax.artifact.size import SizeEstimate, predict_bytes, predict_size
from freezejax.artifact.store import Saved, load, quantize, read_metadata, save

__all__ = [
    "CODECS",
    "COMPRESSORS",
    "Saved",
    "SizeEstimate",
    "load",
    "load_ensemble",
    "predict_bytes",
    "predict_size",
    "quantize",
    "read_metadata",
    "save",
]
