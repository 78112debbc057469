"""Saving a model as one file, and getting it back from the file alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from freezejax.artifact import container, rebuild
from freezejax.artifact.encode import dequantize, quantize_leaf
from freezejax.artifact.header import make_header
from freezejax.artifact.tensors import CodecRules, seed_of, stored_leaves, stored_tensors
from freezejax.data.atomic import atomic_file
from freezejax.errors import UserError
from freezejax.paths import PyTree
from freezejax.roles import Leaf, map_leaves

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
    model: Mapping[str, Any] | None = None,
    codec: CodecRules = "int6",
    compressor: str = "brotli",
    tokenizer: Mapping[str, str] | None = None,
    notes: Any = None,
) -> Saved:
    """Writes the quantized model as one file; the file is absent or complete, never half-written.

    Args:
      path: by custom ending in `.fjax`.
      params: any pytree. Float leaves are stored; the seeds of its random maps must be one, and cost 8 bytes together.
      model: `{"family": ..., **config}` as for `models.build`, which must have exactly these leaves; None for
        parameters of a model of your own, which `load` then wants to be shown.
      codec: a codec, or ordered `(regex on the leaf path, codec)`; small tensors are float16 in any case.
      compressor: 'none', 'zlib', 'lzma', 'zstd' or 'brotli'.
      tokenizer: `{"name": ..., "sha256": ...}` of the tokenizer the model was trained with.
      notes: anything JSON can hold.

    Raises:
      UserError: leaves that are not the model's, not finite or too large; unknown names; an unwritable file.
    """
    path = Path(path)
    header = make_header(params, model, codec, compressor, tokenizer, notes)
    rebuild.check_params(params, header)
    pairs = zip(header.tensors, stored_leaves(params), strict=True)
    leaves = [quantize_leaf(tensor, np.asarray(leaf.value)) for tensor, leaf in pairs]
    content = container.to_bytes(header, seed_of(params), leaves)
    try:
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return Saved(path, len(content), container.parse(content).sizes, {x.tensor.path: x.sqnr_db for x in leaves})


def load(path: str | Path, *, like: PyTree | None = None) -> tuple[Apply, PyTree, dict[str, Any]]:
    """The model of a file: `(apply, params, metadata)`.

    `apply(params, tokens_BxT)` gives float32 logits [B, T, V], see `models.Model`. `params` equals
    `quantize(params, codec)` of what was saved, bit for bit; maps are drawn again by `apply`. For `metadata` see
    `read_metadata`.

    Args:
      path: of the file.
      like: parameters (or their shapes) of a model of your own: what a file without a model's name is filled into.
        `apply` then refuses: the model is yours.

    Raises:
      UserError: missing, not an artifact, of another format, truncated, damaged, or not of the model it names or
        is shown.
    """
    parts = container.read(path)
    with container.naming(path):
        model, shapes = rebuild.model_of(parts.header, like)
        params = rebuild.fill(shapes, container.decode(parts), parts.seed)
    return model.apply if model else _no_model, params, rebuild.metadata_of(parts, shapes)


def _no_model(*_: Any, **__: Any) -> jax.Array:
    raise UserError("the artifact holds parameters alone: apply your own model to them")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a file says about itself, after the checks of `load` but without decoding a tensor.

    Returns:
      `model, tokenizer, codec, compressor, notes` as saved; `seed`, the two words of the base seed or None; `bytes`
      and `sizes`, the file and its parts; `tensors`, a list of `path, shape, codec, encoding, bytes, sqnr_db`; and
      `maps`, a list of `path, shape, distribution, scale, portable`, which have no bytes (known of named models).

    Raises:
      UserError: as `load`.
    """
    parts = container.read(path)
    with container.naming(path):
        shapes = None if parts.header.model is None else rebuild.model_of(parts.header)[1]
        return rebuild.metadata_of(parts, shapes)


def quantize(params: PyTree, codec: CodecRules = "int6") -> PyTree:
    """The model as an artifact would give it back: every stored leaf dequantized, as float32; the rest as it is.

    Raises:
      UserError: as `save`.

    >>> quantize({"scale": np.array([1 / 3], np.float32)})
    {'scale': Array([0.33325195], dtype=float32)}
    """
    tensors = {tensor.path: tensor for tensor in stored_tensors(params, codec)}

    def restored(leaf: Leaf) -> Any:
        if leaf.path not in tensors:
            return leaf.value
        found = quantize_leaf(tensors[leaf.path], np.asarray(leaf.value))
        return jnp.asarray(dequantize(found.tensor, found.rows))

    return map_leaves(restored, params)
