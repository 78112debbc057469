"""Saving a model as one file, and getting it back from the file alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from freezejax.artifact import container, rebuild
from freezejax.artifact.encode import quantize_leaf
from freezejax.artifact.header import make_header
from freezejax.artifact.plan import CodecRules, plan, root_of, stored_leaves
from freezejax.data.atomic import atomic_file
from freezejax.errors import UserError
from freezejax.paths import PyTree, leaf_paths

Apply = Callable[..., jax.Array]


class Saved(NamedTuple):
    """What was written: the size of the file, of its parts (they add up to it), and each tensor's quality in dB."""

    path: Path
    bytes: int
    sizes: dict[str, int]
    sqnr_db: dict[str, float]


def save(
    path: str | Path,
    params: PyTree,
    *,
    model: Mapping[str, Any],
    codec: CodecRules = "int6",
    compressor: str = "brotli",
    tokenizer: Mapping[str, str] | None = None,
    notes: Any = None,
) -> Saved:
    """Writes the quantized model as one file; the file is absent or complete, never half-written.

    Args:
      path: by custom ending in `.fjax`.
      params: float leaves are stored, equal uint32 [2] leaves are the one root seed and cost 8 bytes together.
      model: `{"family": ..., **config}` as for `models.build`, which must have exactly these leaves.
      codec: a codec, or ordered `(regex on the leaf path, codec)`; small tensors are float16 in any case.
      compressor: 'none', 'zlib', 'lzma', 'zstd' or 'brotli'.
      tokenizer: `{"name": ..., "sha256": ...}` of the tokenizer the model was trained with.
      notes: anything JSON can hold.

    Raises:
      UserError: leaves that are not the model's, not finite or too large; unknown names; an unwritable file.
    """
    path = Path(path)
    tensors = plan(params, codec)
    root = root_of(params)
    header = make_header(tensors, model, codec, compressor, tokenizer, notes, rooted=root is not None)
    rebuild.check_params(params, header)
    leaves = [quantize_leaf(t, np.asarray(leaf)) for t, (_, leaf) in zip(tensors, stored_leaves(params), strict=True)]
    content = container.to_bytes(header, root, leaves)
    try:
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return Saved(path, len(content), container.parse(content).sizes, {x.tensor.path: x.sqnr_db for x in leaves})


def load(path: str | Path) -> tuple[Apply, PyTree, dict[str, Any]]:
    """The model of a file: `(apply, params, metadata)`.

    `apply(params, tokens_BxT)` gives float32 logits [B, T, V], see `models.Model`. `params` equals
    `quantize(params, codec)` of what was saved, bit for bit; maps are drawn again by `apply`. For `metadata` see
    `read_metadata`.

    Raises:
      UserError: missing, not an artifact, newer, truncated, damaged, or not of the model it names.
    """
    parts = container.read(path)
    with container.naming(path):
        model, shapes = rebuild.model_of(parts.header)
        params = rebuild.fill(shapes, container.decode(parts), parts.root)
    return model.apply, params, rebuild.metadata_of(parts, shapes)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a file says about itself, after the checks of `load` but without decoding a tensor.

    Returns:
      `model, tokenizer, codec, compressor, notes` as saved; `root`, the two words of the root seed or None; `bytes`
      and `sizes`, the file and its parts; `tensors`, a list of `path, shape, codec, encoding, bytes, sqnr_db`; and
      `maps`, a list of `path, shape, distribution, scale, portable`, which have no bytes.

    Raises:
      UserError: as `load`.
    """
    parts = container.read(path)
    with container.naming(path):
        return rebuild.metadata_of(parts, rebuild.model_of(parts.header)[1])


def quantize(params: PyTree, codec: CodecRules = "int6") -> PyTree:
    """The model as an artifact would give it back: every stored leaf dequantized, as float32; the rest as it is.

    Raises:
      UserError: as `save`.

    >>> quantize({"scale": np.array([1 / 3], np.float32)})
    {'scale': Array([0.33325195], dtype=float32)}
    """
    tensors = {tensor.path: tensor for tensor in plan(params, codec)}

    def restored(path: str, leaf: Any) -> Any:
        if path not in tensors:
            return leaf
        return jnp.asarray(quantize_leaf(tensors[path], np.asarray(leaf)).values)

    leaves = [restored(path, leaf) for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
