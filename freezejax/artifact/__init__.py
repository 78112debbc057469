"""What a model costs in stored bytes."""

from freezejax.artifact.size import packed_bytes, predict_bytes

__all__ = ["packed_bytes", "predict_bytes"]
