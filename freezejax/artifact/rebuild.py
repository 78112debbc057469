"""From a header to the model it names, and from weights by path to that model's parameters."""

import functools
import itertools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freezejax import models, roles
from freezejax.artifact.container import Parts
from freezejax.artifact.encode import ENCODINGS
from freezejax.artifact.header import Header
from freezejax.artifact.tensors import Tensor, seed_leaves, stored_leaves
from freezejax.errors import UserError
from freezejax.paths import PyTree, nearest
from freezejax.roles import Leaf, Role
from freezejax.weights import drop_maps, maps_of


def model_of(header: Header, like: PyTree | None = None) -> tuple[models.Model | None, PyTree]:
    """The model a header names and its abstract parameters, which are the header's tensors and seed exactly.

    Args:
      header: of the file.
      like: parameters of a model that is not of a family; for a header that names none.

    Raises:
      UserError: the model cannot be built, is named twice or not at all, or has other leaves.
    """
    if header.model is None and like is None:
        raise UserError("it holds parameters alone: show what they are filled into, load(path, like=params)")
    if header.model is not None and like is not None:
        raise UserError("it names its own model: load it without like=")
    model, shapes = _build(json.dumps(header.model)) if like is None else (None, drop_maps(like))
    _check_fit(header.tensors, shapes)
    seeded = bool(seed_leaves(shapes))
    if header.seeded != seeded:
        wanted = "no base seed is stored" if seeded else "a base seed is stored, but nothing is seeded"
        raise UserError(f"wrong model: {wanted}")
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


def _check_fit(tensors: list[Tensor], shapes: PyTree) -> None:
    wanted = {leaf.path: tuple(leaf.value.shape) for leaf in stored_leaves(shapes)}
    found = {tensor.path: tensor.shape for tensor in tensors}
    for path, shape in wanted.items():
        if path not in found:
            raise UserError(f"wrong model: leaf {path!r} is missing; {nearest(path, found, count=1)}")
        if found[path] != shape:
            raise UserError(f"wrong model: leaf {path!r} has shape {found[path]}, the model asks for {shape}")
    for path in sorted(found.keys() - wanted.keys()):
        raise UserError(f"wrong model: it has no leaf {path!r}; {nearest(path, wanted, count=1)}")


def check_params(params: PyTree, header: Header) -> None:
    """Checks that parameters are of the model that a header names, random maps and adapters included.

    Raises:
      UserError: the model cannot be built, or has other leaves, or weights of other kinds.
    """
    if header.model is None:
        return
    ours, named = _bare(params), _bare(model_of(header)[1])
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


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree)


def _told(path: str, weight: Any) -> str:
    if weight is None:
        return "no such weight"
    kinds = [type(weight).__name__, *(repr(m.map) for m in maps_of(weight))]
    return f"{' of '.join(kinds)} at {path!r}"


def fill(shapes: PyTree, weights: Mapping[str, np.ndarray], seed: tuple[int, int] | None) -> PyTree:
    """The abstract parameters with their values."""

    def value(leaf: Leaf) -> jax.Array:
        if leaf.role is Role.SEED:
            return jnp.asarray(np.array(seed, np.uint32))
        return jnp.asarray(weights[leaf.path], leaf.value.dtype)

    return roles.map_leaves(value, shapes)


def metadata_of(parts: Parts, shapes: PyTree) -> dict[str, Any]:
    """What a file says about itself, as `store.read_metadata` describes it."""
    header = parts.header
    tensors = [
        {
            **{"path": t.path, "shape": t.shape, "codec": t.codec, "bytes": len(blob.data), "sqnr_db": quality},
            "encoding": "small" if t.small else ENCODINGS[blob.encoding].format(header.compressor),
        }
        for t, blob, quality in zip(header.tensors, parts.blobs, parts.sqnr_db, strict=True)
    ]
    maps = [
        {"path": m.name, "shape": m.shape, "distribution": m.distribution, "scale": m.scale, "portable": m.portable}
        for m in (weight.map for weight in maps_of(shapes))
    ]
    kept = {name: getattr(header, name) for name in ("model", "tokenizer", "codec", "compressor", "notes")}
    found = {"seed": parts.seed, "bytes": parts.file_bytes, "sizes": parts.sizes}
    return {**kept, **found, "tensors": tensors, "maps": maps}
