"""Stored bytes of a model: predicted from shapes, and measured on a packed file's bytes.

The codec is a plain one: matrices as symmetric int8 with one fp16 scale per column (output feature), vectors and
scalars as fp16, then zlib level 9. A seeded leaf costs nothing:
it is drawn again from the root seed. A leaf that was trained and then frozen is stored like any other.
"""

import zlib

import jax
import numpy as np

from freezejax.paths import PyTree

_ROOT_SEED_BYTES = 8  # one seed for the whole model, whatever is seeded


def predict_bytes(params: PyTree, seeded: PyTree) -> int:
    """Bytes before entropy coding, from shapes alone: 1 per matrix weight, 2 per scale and vector element.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`s.
      seeded: tree of bools like `params`; True where the leaf is redrawn from the root seed.

    >>> predict_bytes({"w": np.zeros((4, 3)), "b": np.zeros(3)}, {"w": False, "b": False})
    32
    """
    sizes = jax.tree.map(lambda s, leaf: 0 if s else _leaf_bytes(leaf.shape), seeded, params)
    return _ROOT_SEED_BYTES + sum(jax.tree.leaves(sizes))


def _leaf_bytes(shape: tuple[int, ...]) -> int:
    count = int(np.prod(shape, dtype=np.int64))
    return count + 2 * shape[-1] if len(shape) >= 2 else 2 * count


def packed_bytes(params: PyTree, seeded: PyTree) -> int:
    """Bytes of the quantized and compressed stored leaves plus the root seed; not a loadable file.

    >>> packed_bytes({"w": np.zeros((64, 64))}, {"w": False}) < 64
    True
    """
    stored = jax.tree.map(lambda s, leaf: b"" if s else _encode(np.asarray(leaf)), seeded, params)
    return _ROOT_SEED_BYTES + len(zlib.compress(b"".join(jax.tree.leaves(stored)), 9))


def _encode(leaf: np.ndarray) -> bytes:
    leaf = leaf.astype(np.float32)
    if leaf.ndim < 2:
        return leaf.astype(np.float16).tobytes()
    scale = np.maximum(np.abs(leaf).max(axis=tuple(range(leaf.ndim - 1))) / 127.0, 1e-12)
    codes = np.clip(np.rint(leaf / scale), -127, 127).astype(np.int8)
    return codes.tobytes() + scale.astype(np.float16).tobytes()
