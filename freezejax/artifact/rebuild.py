"""From a header to the model it names, and from weights by path to that model's parameters."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freezejax import models
from freezejax.artifact.container import Parts
from freezejax.artifact.encode import ENCODINGS
from freezejax.artifact.header import Header
from freezejax.artifact.plan import Tensor, is_root, stored_leaves
from freezejax.errors import UserError
from freezejax.paths import PyTree, leaf_paths, nearest
from freezejax.weights import MapWeight, RandomMap, map_weights, release


def model_of(header: Header) -> tuple[models.Model, PyTree]:
    """The model a header names and its abstract parameters, which are the header's tensors and root exactly.

    Raises:
      UserError: the model cannot be built, or has other leaves.
    """
    model, shapes = _build(json.dumps(header.model))
    _check_fit(header.tensors, shapes)
    seeded = any(is_root(leaf) for leaf in jax.tree.leaves(shapes))
    if header.rooted != seeded:
        wanted = "no root seed is stored" if seeded else "a root seed is stored, but nothing is seeded"
        raise UserError(f"wrong model: {wanted}")
    return model, shapes


def check_params(params: PyTree, header: Header) -> None:
    """Checks that parameters are of the model that a header names, random maps and adapters included.

    Raises:
      UserError: the model cannot be built, or has other leaves, maps or adapters.
    """
    _, shapes = model_of(header)
    for ours, named in itertools.zip_longest(map_weights(params), map_weights(shapes)):
        if ours is None or named is None or ours.map != named.map:
            found = "no map" if ours is None else _told(ours.map)
            wanted = "none" if named is None else _told(named.map)
            raise UserError(f"wrong model: the parameters hold {found} where the config has {wanted}")
    if _bare_structure(params) != _bare_structure(shapes):
        raise UserError("wrong model: the parameters' adapters or containers are not those of the config")


def _told(random_map: RandomMap) -> str:
    return f"a {random_map.distribution} map {random_map.shape} of scale {random_map.scale} at {random_map.name!r}"


def _bare_structure(tree: PyTree) -> Any:
    """Structure with all that is static in it, but for how maps lie on a mesh."""

    def bare(leaf: Any) -> Any:
        return dataclasses.replace(leaf, sharding=None) if isinstance(leaf, MapWeight) else leaf

    return jax.tree.structure(jax.tree.map(bare, release(tree), is_leaf=lambda leaf: isinstance(leaf, MapWeight)))


def fill(shapes: PyTree, weights: Mapping[str, np.ndarray], root: tuple[int, int] | None) -> PyTree:
    """The abstract parameters with their values."""

    def value(path: str, leaf: Any) -> jax.Array:
        return jnp.asarray(np.array(root, np.uint32)) if is_root(leaf) else jnp.asarray(weights[path], leaf.dtype)

    leaves = [value(path, leaf) for path, leaf in zip(leaf_paths(shapes), jax.tree.leaves(shapes), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


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
        for m in (weight.map for weight in map_weights(shapes))
    ]
    kept = {name: getattr(header, name) for name in ("model", "tokenizer", "codec", "compressor", "notes")}
    found = {"root": parts.root, "bytes": parts.file_bytes, "sizes": parts.sizes}
    return {**kept, **found, "tensors": tensors, "maps": maps}


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
    wanted = {path: tuple(leaf.shape) for path, leaf in stored_leaves(shapes)}
    found = {tensor.path: tensor.shape for tensor in tensors}
    for path, shape in wanted.items():
        if path not in found:
            raise UserError(f"wrong model: leaf {path!r} is missing; {nearest(path, found, count=1)}")
        if found[path] != shape:
            raise UserError(f"wrong model: leaf {path!r} has shape {found[path]}, the config asks for {shape}")
    for path in sorted(found.keys() - wanted.keys()):
        raise UserError(f"wrong model: it has no leaf {path!r}; {nearest(path, wanted, count=1)}")
