"""Parameters from and to PyTorch state dicts, by the name table of the model's family."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freezejax.errors import UserError
from freezejax.models.base import Model, functional
from freezejax.models.family import Params
from freezejax.paths import by_path, check_known, leaf_paths, map_with_paths
from freezejax.roles import is_weight
from freezejax.weights import matrix


def params_from_torch(model: Model, state: Mapping[str, np.ndarray]) -> Params:
    """The parameters of `model`, float32, from arrays with the names that its family has in PyTorch.

    The model has no random maps and adapters. Arrays may be of any float dtype; those of no elements are ignored.

    Raises:
      UserError: a name that is missing or left over (told with the nearest), a wrong shape, or a leaf without a name.
    """
    arrays = {name: array for name, array in state.items() if np.size(array)}
    shapes = model.abstract_params()
    names = torch_names(model, shapes)

    def read(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name, transposed = names[path]
        check_known(name, arrays, f"the state has no {name!r}")
        array = np.asarray(arrays[name], np.float32)
        wanted = leaf.shape[::-1] if transposed else leaf.shape
        if array.shape != wanted:
            raise UserError(f"{name!r} has shape {array.shape}; the config asks for {wanted}")
        return jnp.asarray(np.ascontiguousarray(array.T if transposed else array))

    params: Params = map_with_paths(read, shapes)
    used = sorted(name for name, _ in names.values())
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
    params = jax.tree.map(matrix, params, is_leaf=is_weight)
    names, state = torch_names(model, params), {}
    for path, leaf in by_path(params).items():
        name, transposed = names[path]
        array = np.asarray(leaf, np.float32)
        state[name] = array.T if transposed else array
    return state


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
