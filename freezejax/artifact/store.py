"""Saving a model as one file, and getting it back from the file alone."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from freezejax import models, roles
from freezejax.artifact import container
from freezejax.artifact.encode import ENCODINGS, Quantized, dequantize, quantize_leaf
from freezejax.artifact.header import Header, make_header
from freezejax.artifact.tensors import CodecRules, Tensor, recipes, seed_leaves, seed_of, stored_leaves, stored_tensors
from freezejax.atomic import atomic_file
from freezejax.errors import UserError
from freezejax.paths import PyTree, check_known
from freezejax.roles import Leaf, Role
from freezejax.weights import drop_maps, maps_of

Apply = Callable[..., jax.Array]

_structure: Any = jax.tree.structure


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
      codec: a codec, or ordered `(regex on the leaf path, codec)`; small tensors are float16, see `stored_tensors`.
      compressor: 'none', 'zlib', 'lzma', 'zstd' or 'brotli'.
      tokenizer: `{"name": ..., "sha256": ...}` of the tokenizer the model was trained with.
      notes: anything JSON can hold.

    Raises:
      UserError: leaves that are not the model's, not finite or too large; unknown names; an unwritable file.
    """
    path = Path(path)
    header = make_header(params, model, codec, compressor, tokenizer, notes)
    if header.model is not None:
        _check_params(params, _model_of(header)[1])
    pairs = zip(header.tensors, stored_leaves(params), strict=True)
    leaves = [_quantize(tensor, leaf) for tensor, leaf in pairs]
    content = container.to_bytes(header, seed_of(params), leaves)
    try:
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        reason = error.strerror if path.parent.exists() else f"there is no folder {path.parent}; make it first"
        raise UserError(f"{path}: cannot be written: {reason}") from None
    return Saved(path, len(content), container.parse(content).sizes, {x.tensor.path: x.sqnr_db for x in leaves})


def load(path: str | Path, *, like: PyTree | None = None) -> tuple[Apply, PyTree, dict[str, Any]]:
    """The model of a file: `(apply, params, metadata)`.

    `apply(params, tokens_BxT)` gives float32 logits [B, T, V], see `models.Model`. `params` equals
    `quantize(params, codec)` of what was saved, bit for bit; maps are drawn again by `apply`. For `metadata` see
    `read_metadata`.

    Args:
      like: parameters (or their shapes) of a model of your own: what a file without a model's name is filled into.
        `apply` then refuses: the model is yours. Its maps must be those of the file; the seed is the file's.

    Raises:
      UserError: missing, not an artifact, of another format, truncated, damaged, or not of the model it names or
        is shown.
    """
    with container.opened(path) as parts:
        model, shapes = _model_of(parts.header, like)
        params = _filled(shapes, container.decode(parts), parts.seed)
    return model.apply if model else _no_model, params, _metadata(parts, shapes)


def _no_model(*_: Any, **__: Any) -> jax.Array:
    raise UserError("the artifact holds parameters alone: apply your own model to them")


def _filled(shapes: PyTree, weights: Mapping[str, np.ndarray], seed: tuple[int, int] | None) -> PyTree:
    def value(leaf: Leaf) -> jax.Array:
        if leaf.role is Role.SEED:
            return jnp.asarray(np.array(seed, np.uint32))
        return jnp.asarray(weights[leaf.path], leaf.value.dtype)

    return roles.map_leaves(value, shapes)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a file says about itself, after the checks of `load` but without decoding a tensor.

    Returns:
      `model, tokenizer, codec, compressor, notes` as saved; `seed`, the two words of the base seed or None; `bytes`
      and `sizes`, the file and its parts; `tensors`, a list of `path, shape, codec, encoding, bytes, sqnr_db`; and
      `maps`, a list of `path, name, shape, distribution, scale, portable`, which have no bytes.

    Raises:
      UserError: as `load`.
    """
    with container.opened(path) as parts:
        shapes = None if parts.header.model is None else _model_of(parts.header)[1]
    return _metadata(parts, shapes)


def _metadata(parts: container.Parts, shapes: PyTree) -> dict[str, Any]:
    header = parts.header
    tensors = [
        {
            **{**tensor._asdict(), "bytes": len(blob.data), "sqnr_db": quality},
            "encoding": "small" if tensor.small else ENCODINGS[blob.encoding].format(header.compressor),
        }
        for tensor, blob, quality in zip(header.tensors, parts.blobs, parts.sqnr_db, strict=True)
    ]
    known = list(header.maps.items()) or [(weight.map.name, weight.map) for weight in maps_of(shapes)]
    maps = [{"path": path, **dataclasses.asdict(m), "portable": m.portable} for path, m in known]
    kept = {name: getattr(header, name) for name in ("model", "tokenizer", "codec", "compressor", "notes")}
    found = {"seed": parts.seed, "bytes": sum(parts.sizes.values()), "sizes": parts.sizes}
    return {**kept, **found, "tensors": tensors, "maps": maps}


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
        found = _quantize(tensors[leaf.path], leaf)
        return jnp.asarray(dequantize(found.tensor, found.rows))

    return roles.map_leaves(restored, params)


def _quantize(tensor: Tensor, leaf: Leaf) -> Quantized:
    return quantize_leaf(tensor, np.asarray(leaf.value), getattr(leaf.owner, "step", 0.0))


def _model_of(header: Header, like: PyTree | None = None) -> tuple[models.Model | None, PyTree]:
    """The model a header names, or None, and the abstract parameters that its tensors and seed fit exactly.

    `like` stands for the parameters of a model that is not of a family, for a header that names none.
    """
    if header.model is None and like is None:
        raise UserError("it holds parameters alone: show what they are filled into, load(path, like=params)")
    if header.model is not None and like is not None:
        raise UserError("it names its own model: load it without like=")
    model, shapes = _build(json.dumps(header.model)) if like is None else (None, drop_maps(like))
    wanted = {leaf.path: tuple(leaf.value.shape) for leaf in stored_leaves(shapes)}
    _check_fit("leaf", "has shape", {tensor.path: tensor.shape for tensor in header.tensors}, wanted)
    if header.seeded != bool(seed_leaves(shapes)):
        stored = "a base seed is stored, but nothing is seeded" if header.seeded else "no base seed is stored"
        raise UserError(f"wrong model: {stored}")
    if header.maps:  # a named model's stand in its config; older files do not say them
        _check_fit("map", "is", header.maps, recipes(shapes))
    return model, shapes


@functools.lru_cache(maxsize=8)  # saving, loading and describing one file build one model
def _build(config: str) -> tuple[models.Model, PyTree]:
    try:
        model = models.build(**json.loads(config))
        return model, jax.eval_shape(model.init, jax.random.key(0))
    except UserError as error:
        raise UserError(f"the model it names cannot be built: {error}") from None
    except Exception as error:  # the config comes from a file: whatever it breaks is the file's fault
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the model it names cannot be built: {type(error).__name__}: {reason}") from None


def _check_fit(kind: str, verb: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses a file in which, by path, something is not what the model asks for."""
    for path, asked in wanted.items():
        check_known(path, found, f"wrong model: {kind} {path!r} is missing")
        if found[path] != asked:
            raise UserError(f"wrong model: {kind} {path!r} {verb} {found[path]}, the model asks for {asked}")
    for path in sorted(found):
        check_known(path, wanted, f"wrong model: it has no {kind} {path!r}")


def _check_params(params: PyTree, shapes: PyTree) -> None:
    """Refuses parameters that are not of a model with these shapes, random maps and adapters included."""
    ours, named = _bare(params), _bare(shapes)
    pairs = itertools.zip_longest(roles.weights(ours), roles.weights(named), fillvalue=("", None))
    for (path, weight), (wanted_path, wanted) in pairs:
        if path != wanted_path or _structure(weight) != _structure(wanted):
            raise UserError(
                f"wrong model: the parameters hold {_told(path, weight)}, the config {_told(wanted_path, wanted)}"
            )
    if _structure(ours) != _structure(named):
        raise UserError("wrong model: the parameters' containers are not those of the config")


def _bare(tree: PyTree) -> PyTree:
    """The tree without drawn maps, and without how its weights lie on a mesh."""
    placed: Any = None
    return roles.map_weights(lambda _, weight: weight.placed(lambda shape: placed), drop_maps(tree))


def _told(path: str, weight: Any) -> str:
    if weight is None:
        return "no such weight"
    kinds = [type(weight).__name__, *(repr(m.map) for m in maps_of(weight))]
    return f"{' of '.join(kinds)} at {path!r}"
