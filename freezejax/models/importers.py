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
from freezejax.paths import leaf_paths, map_with_paths, nearest


def params_from_torch(model: Model, state: Mapping[str, np.ndarray]) -> Params:
    """The parameters of `model` from arrays with the names that its family has in PyTorch.

    Args:
      model: says which leaves there are, and their shapes. Without random maps and adapters.
      state: numpy arrays, any float dtype; the result is float32. Arrays of no elements are ignored.

    Raises:
      UserError: a name that is missing or left over (told with the nearest), a wrong shape, or a leaf without a name.

    >>> from freezejax import models
    >>> model = models.build("geglu", vocab_size=3, num_layers=1, model_dim=32, num_heads=2)
    >>> params_from_torch(model, {"tok_emb.weight": np.zeros((3, 32))})
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: the state has no 'blocks.0.attn.out.weight'; nearest: tok_emb.weight
    """
    state = {name: np.asarray(array) for name, array in state.items()}
    state = {name: array for name, array in state.items() if array.size}
    shapes = model.abstract_params()
    names = torch_names(model, shapes)

    def read(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name, transposed = names[path]
        if name not in state:
            raise UserError(f"the state has no {name!r}; {nearest(name, state, count=1)}")
        shape = leaf.shape[::-1] if transposed else leaf.shape
        if state[name].shape != shape:
            raise UserError(f"{name!r} has shape {state[name].shape}; the config asks for {shape}")
        array = state[name].T if transposed else state[name]
        return jnp.asarray(np.ascontiguousarray(array, dtype=np.float32))

    params: Params = map_with_paths(read, shapes)
    used = {name for name, _ in names.values()}
    left = sorted(set(state) - used)
    if left:
        raise UserError(f"the model has no place for {left[0]!r}; {nearest(left[0], sorted(used), count=1)}")
    return params


def state_to_torch(model: Model, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `params_from_torch`: torch names, float32; random maps and adapters as the kernels they stand for.

    Raises:
      UserError: a leaf that is none of the family's own, and no weight that could be made one.

    >>> from freezejax import models
    >>> model = models.build("geglu", vocab_size=3, num_layers=1, model_dim=32, num_heads=2)
    >>> state_to_torch(model, model.init(jax.random.key(0)))["blocks.0.mlp.up.weight"].shape
    (64, 32)
    """
    is_weight = lambda node: hasattr(node, "materialize")  # noqa: E731
    params = jax.tree.map(lambda node: node.materialize() if is_weight(node) else node, params, is_leaf=is_weight)
    names, state = torch_names(model, params), {}
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        name, transposed = names[path]
        array = np.asarray(leaf, np.float32)
        state[name] = array.T if transposed else array
    return state


def torch_names(model: Model, params: Params) -> dict[str, tuple[str, bool]]:
    """Torch's name of every leaf of some parameters of the model, and whether torch has it transposed.

    Raises:
      UserError: a leaf that is not the family's own, one that its name table does not cover, or a name given twice.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1)
    >>> torch_names(model, model.abstract_params())["blocks/0/mlp/up/kernel"]
    ('blocks.0.mlp.up.weight', True)
    """
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
    """A foreign config without the keys whose value this family fixes, after checking that they agree.

    Raises:
      UserError: a fixed key with another value.

    >>> drop_fixed({"tied": True, "num_layers": 2}, {"tied": True})
    {'num_layers': 2}
    """
    for name, wanted in fixed.items():
        if config.get(name, wanted) != wanted:
            raise UserError(f"config {name}={config[name]!r}: this family supports {wanted!r} only")
    return {name: value for name, value in config.items() if name not in fixed}
