"""Parameters from and to PyTorch state dicts, by the name table of the model's family."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from freezejax.errors import UserError
from freezejax.models.base import Model, functional
from freezejax.models.family import Params
from freezejax.paths import by_path, check_known, leaf_paths, map_with_paths
from freezejax.roles import is_weight
from freezejax.ties import untie
from freezejax.weights import matrix


def params_from_torch(model: Model, state: Mapping[str, Any], dtype: DTypeLike | None = np.float32) -> Params:
    """The parameters of `model` from arrays with the names that its family has in PyTorch; each is read once.

    The model has no random maps and adapters. Arrays may be of any float dtype, and become `dtype`; None keeps each as
    it is. Those of no elements are ignored.

    Raises:
      UserError: a name that is missing or left over (told with the nearest), a wrong shape, or a leaf without a name.
    """
    arrays = {name: array for name, array in state.items() if np.size(array)}
    shapes = model.abstract_params()
    names = torch_names(model, shapes)

    def one(name: str, shape: tuple[int, ...], transposed: bool) -> np.ndarray:
        check_known(name, arrays, f"the state has no {name!r}")
        wanted = shape[::-1] if transposed else shape
        if (found := np.shape(arrays[name])) != wanted:
            raise UserError(f"{name!r} has shape {found}; the config asks for {wanted}")
        array = np.asarray(arrays[name])
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(f"{name!r} is {array.dtype}; expected floats")
        array = array if dtype is None else array.astype(dtype, copy=False)
        return array.T if transposed else array

    def read(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name, transposed = names[path]
        if _EACH not in name:
            return jnp.asarray(np.ascontiguousarray(one(name, leaf.shape, transposed)))
        first, *others = _each(name, leaf.shape[0])
        array = one(first, leaf.shape[1:], transposed)
        whole = np.empty(leaf.shape, array.dtype)
        whole[0] = array
        for i, other in enumerate(others, start=1):
            whole[i] = one(other, leaf.shape[1:], transposed)
        return jnp.asarray(whole)

    params: Params = map_with_paths(read, shapes)
    used = sorted(tensor_names(model))
    for name in sorted(arrays):
        check_known(name, used, f"the model has no place for {name!r}")
    return params


def state_to_torch(model: Model, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `params_from_torch`: torch names, float32; random maps and adapters as the kernels they stand for.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1)
    >>> state_to_torch(model, model.init(jax.random.key(0)))["blocks.0.mlp.up.weight"].shape
    (384, 192)
    """
    params = jax.tree.map(matrix, untie(params), is_leaf=is_weight)
    return {name: read().astype(np.float32, copy=False) for name, _, read in leaves_to_torch(model, params)}


def leaves_to_torch(model: Model, params: Params) -> Iterator[tuple[str, int, Callable[[], np.ndarray]]]:
    """Torch's name of every leaf, its bytes, and a function that gives it as torch has it, in its own dtype."""
    names = torch_names(model, params)

    def read(leaf: jax.Array, transposed: bool, i: int | None = None) -> np.ndarray:
        array = np.asarray(leaf if i is None else leaf[i])
        return array.T if transposed else array

    for path, leaf in by_path(params).items():
        name, transposed = names[path]
        if _EACH not in name:
            yield name, leaf.nbytes, functools.partial(read, leaf, transposed)
            continue
        for i, part in enumerate(_each(name, len(leaf))):
            yield part, leaf.nbytes // len(leaf), functools.partial(read, leaf, transposed, i)


def tensor_names(model: Model) -> list[str]:
    """Torch's name of every tensor of a model whose kernels are all arrays."""
    shapes = by_path(model.abstract_params())
    found = torch_names(model, model.abstract_params())
    return [name for path, (name, _) in found.items() for name in _each(name, (*shapes[path].shape, 1)[0])]


_EACH = "*"  # in a name: the leaf's first axis is of so many tensors, a number here


def _each(name: str, count: int) -> list[str]:
    return [name.replace(_EACH, str(i)) for i in range(count)] if _EACH in name else [name]


def torch_names(model: Model, params: Params) -> dict[str, tuple[str, bool]]:
    """Torch's name of every leaf of some parameters of the model, and whether torch has it transposed."""
    own = set(leaf_paths(functional(model.family, model.config).abstract_params()))
    names: dict[str, tuple[str, bool]] = {}
    given: dict[str, str] = {}
    for path in leaf_paths(params):
        if path not in own:
            raise UserError(f"leaf {path!r} has no name in torch: it belongs to a random map or an adapter")
        matches = ((re.fullmatch(pattern, path), name, transposed) for pattern, name, transposed in model.family.names)
        found = next(((match.expand(name), transposed) for match, name, transposed in matches if match), None)
        if found is None:
            raise UserError(f"leaf {path!r} has no name in torch: no pattern of the family's name table matches it")
        names[path] = found[0].replace("/", "."), found[1]
        if (other := given.setdefault(names[path][0], path)) != path:
            raise UserError(f"the name table calls leaves {other!r} and {path!r} both {names[path][0]!r}")
    return names


def drop_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """A foreign config without the keys whose value this family fixes, after checking that they agree."""
    for name, wanted in fixed.items():
        if config.get(name, wanted) != wanted:
            raise UserError(f"config {name}={config[name]!r}: this family supports {wanted!r} only")
    return {name: value for name, value in config.items() if name not in fixed}
