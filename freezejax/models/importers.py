"""Parameters from PyTorch state dicts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freezejax.errors import UserError
from freezejax.models.base import Model, Params
from freezejax.paths import map_with_paths, nearest


def params_from_torch(model: Model, state: Mapping[str, np.ndarray]) -> Params:
    """The parameters of `model` from arrays with torch names and [out, in] weights.

    Leaf `blocks/0/mlp/up/kernel` is `blocks.0.mlp.up.weight` transposed; `tok_emb/embedding` is
    `tok_emb.weight` as it is; every other leaf only swaps `/` for `.`. Arrays of no elements are ignored.

    Args:
      model: says which leaves there are, and their shapes.
      state: numpy arrays, any float dtype; the result is float32.

    Raises:
      UserError: a name that is missing or left over (told with the nearest), or a wrong shape.

    >>> from freezejax import models
    >>> model = models.build("geglu", vocab_size=3, num_layers=1, model_dim=32, num_heads=2)
    >>> params_from_torch(model, {"tok_emb.weight": np.zeros((3, 32))})
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: the state has no 'blocks.0.attn.out.weight'; nearest: tok_emb.weight
    """
    state = {name: np.asarray(array) for name, array in state.items()}
    state = {name: array for name, array in state.items() if array.size}
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    used: set[str] = set()

    def read(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = torch_name(path)
        used.add(name)
        if name not in state:
            raise UserError(f"the state has no {name!r}; {nearest(name, state, count=1)}")
        shape = leaf.shape[::-1] if _is_kernel(path) else leaf.shape
        if state[name].shape != shape:
            raise UserError(f"{name!r} has shape {state[name].shape}; the config asks for {shape}")
        array = state[name].T if _is_kernel(path) else state[name]
        return jnp.asarray(np.ascontiguousarray(array, dtype=np.float32))

    params: Params = map_with_paths(read, shapes)
    left = sorted(set(state) - used)
    if left:
        raise UserError(f"the model has no place for {left[0]!r}; {nearest(left[0], sorted(used), count=1)}")
    return params


def state_to_torch(params: Params) -> dict[str, np.ndarray]:
    """The inverse of `params_from_torch`: torch names, [out, in] weights, float32.

    >>> sorted(state_to_torch({"mlp": {0: {"kernel": jnp.zeros((2, 3))}}}).items())
    [('mlp.0.weight', array([[0., 0.], [0., 0.], [0., 0.]], dtype=float32))]
    """
    state: dict[str, np.ndarray] = {}

    def write(path: str, leaf: jax.Array) -> None:
        array = np.asarray(leaf)
        state[torch_name(path)] = array.T if _is_kernel(path) else array

    map_with_paths(write, params)
    return state


def torch_name(path: str) -> str:
    """Torch's name of a leaf.

    >>> torch_name("blocks/0/mlp/up/kernel"), torch_name("blocks/0/resid_mix")
    ('blocks.0.mlp.up.weight', 'blocks.0.resid_mix')
    """
    *parents, last = path.split("/")
    return ".".join([*parents, "weight" if last in ("kernel", "embedding") else last])


def _is_kernel(path: str) -> bool:
    return path.endswith("/kernel")


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
