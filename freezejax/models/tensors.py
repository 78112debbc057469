"""Tensors of a Hugging Face folder: names and shapes at once, values one at a time, and never a pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from freezejax.errors import UserError

SINGLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Stored:
    """One tensor of a safetensors file, which is read where numpy asks for its values."""

    def __init__(self, file: Any, name: str, path: Path):  # noqa: D107
        self._file, self._name, self._path = file, name, path
        self.shape = tuple(file.get_slice(name).get_shape())
        self.size = int(np.prod(self.shape, dtype=np.int64))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The values, in the dtype of the file unless asked for another."""
        try:
            array: np.ndarray = self._file.get_tensor(self._name)
        except (SafetensorError, TypeError, ValueError) as error:
            raise UserError(f"{self._path}: tensor {self._name!r} cannot be read: {error}") from None
        return array if dtype is None else array.astype(dtype, copy=False)


def open_file(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name.

    Raises:
      UserError: there is no such file, or it is not one, or it is cut short.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        file = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from None
    return {name: Stored(file, name, path) for name in file.keys()}  # noqa: SIM118 - not a mapping


def open_folder(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder, in one file or in the shards that its index lists.

    Raises:
      UserError: a file that is missing or broken, a name that its shard does not have, or nothing but pickles.
    """
    if (folder / INDEX).is_file():
        return _sharded(folder)
    if (folder / SINGLE).is_file():
        return open_file(folder / SINGLE)
    _refuse_pickles(folder, SINGLE)
    raise UserError(f"{folder}: no {SINGLE} and no {INDEX}")


def open_adapter(folder: Path) -> dict[str, Stored]:
    """The tensors of a PEFT folder.

    Raises:
      UserError: no file of them, a broken one, or nothing but pickles.
    """
    if not (folder / ADAPTER).is_file():
        _refuse_pickles(folder, ADAPTER)
    return open_file(folder / ADAPTER)


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; UserError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found a {type(found).__name__}")
    return found


def _refuse_pickles(folder: Path, instead: str) -> None:
    if pickles := sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)):
        raise UserError(
            f"{folder}: {pickles[0]} is a pickle, which may run code and is never read; convert it to {instead}"
        )


def _sharded(folder: Path) -> dict[str, Stored]:
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, Mapping) or not all(isinstance(name, str) for name in index.values()):
        raise UserError(f"{folder / INDEX}: expected weight_map, the file of every tensor")
    inside = {path.name for path in folder.iterdir()}
    if outside := [name for name in index.values() if name not in inside]:
        raise UserError(f"{folder / INDEX}: {outside[0][:100]!r} is no file of this folder")
    shards = {name: open_file(folder / name) for name in sorted(set(index.values()))}
    for tensor, name in index.items():
        if tensor not in shards[name]:
            raise UserError(f"{folder / name}: no tensor {tensor!r}, which {INDEX} says is there")
    return {tensor: shards[name][tensor] for tensor, name in index.items()}
