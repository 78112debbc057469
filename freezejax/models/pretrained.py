"""Models of other libraries' folders: config.json and safetensors, as transformers writes and reads them."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.models import gguf, importers, peft, tensors
from freezejax.models.base import Model, build
from freezejax.models.family import FAMILIES, Family, Hub, Params
from freezejax.paths import nearest
from freezejax.roles import is_weight
from freezejax.ties import untie
from freezejax.weights.linear import whole

CONFIG = "config.json"
SHARD = 5 * 10**9  # bytes, about what others put into one file


def load_pretrained(
    path: str | PathLike[str], adapter: str | PathLike[str] | None = None, *, dtype: DTypeLike | None = jnp.float32
) -> tuple[Callable[..., Any], Params]:
    """A model of others: `(apply, params)`, `apply(params, tokens_BxT) -> logits [B, T, V]`.

    `path` is a folder in Hugging Face's layout, config.json and safetensors in one file or in shards, or a .gguf file,
    whose weights are dequantized. Leaves are read one after the other, so that
    no more than one of them is held twice. Parameters are of `dtype`; None keeps each as it is stored, bfloat16
    say. Nothing is ever unpickled. `adapter` is a PEFT folder, see `load_adapter`. The model itself, for training:
    `model_of`.

    Raises:
      UserError: an unknown architecture; a tensor that is missing, left over or of another shape; a broken file.
    """
    model, source = _opened(Path(path), {})
    try:
        params = importers.params_from_torch(model, _named(source(importers.tensor_names(model)), model), dtype)
    except UserError as error:
        raise UserError(told if (told := str(error)).startswith(str(path)) else f"{path}: {told}") from None
    return model.apply, params if adapter is None else peft.load_adapter(adapter, model, params)


def model_of(path: str | PathLike[str], **changes: Any) -> Model:
    """The model that a folder's config.json or a .gguf file describes; `changes` are fields of our config.

    Dropout rates are not taken over: give `dropout`.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> save_config(folder, build("gpt2", vocab_size=100, num_layers=2, model_dim=32, num_heads=2))
    >>> model_of(folder).config.model_dim
    32
    """
    return _opened(Path(path), changes)[0]


def save_pretrained(
    path: str | PathLike[str],
    model: Model,
    params: Params,
    *,
    like: str | PathLike[str] | None = None,
    shard_bytes: int = SHARD,
) -> None:
    """Writes a folder that transformers loads; random maps and adapters become the matrices they stand for,
    and a shared kernel a copy at each place where it is used.

    Every leaf keeps its dtype. `like` is the folder that the model came from: its other files (tokenizer, generation
    config) are copied, and what its config.json says beyond the model is kept.

    Raises:
      UserError: a family that has no such layout, or a folder that holds a model already.
    """
    folder = Path(path)
    if (folder / CONFIG).exists():
        raise UserError(f"{folder}: there is a model already; give a new folder")
    params = jax.tree.map(whole, untie(params), is_leaf=is_weight)
    model = model._replace(init=build_plain(model).init)
    model.check(params)
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(importers.leaves_to_torch(model, params), shard_bytes))
    names = [tensors.SINGLE] if len(shards) == 1 else []
    names = names or [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    index: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        save_file(
            {tensor: np.ascontiguousarray(read()) for tensor, read in shard.items()}, folder / name, {"format": "pt"}
        )
        index |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        told = {"metadata": {"total_size": total}, "weight_map": index}
        write_atomically(folder / tensors.INDEX, json.dumps(told, indent=2) + "\n")
    if like is not None:
        _copy_others(Path(like), folder)
    save_config(folder, model, like=like)  # last: a folder without it holds no model


def save_config(path: str | PathLike[str], model: Model, *, like: str | PathLike[str] | None = None) -> None:
    """Writes config.json alone."""
    hub = hub_of(model.family)
    kept = {} if like is None else tensors.read_json(Path(like) / CONFIG)
    own = {theirs: getattr(model.config, ours) for theirs, ours in hub.fields.items()}
    told = {
        "architectures": [hub.architecture],
        "model_type": hub.model_type,
        **hub.fixed,
        **own,
        **hub.write(model.config),
    }
    # The same thing may be said in several ways, of which a version of transformers may know one alone: where `like`
    # says it all already, as `like` has it.
    if kept.get("architectures") == [hub.architecture]:
        rate = {"dropout": model.config.dropout}
        told = kept if _model_of(Path(like or "") / CONFIG, kept, rate).config == model.config else told
    others = {name: value for name, value in kept.items() if name in told or name not in hub.replaced}
    write_atomically(Path(path) / CONFIG, json.dumps({**others, **told}, indent=2) + "\n")


def hub_of(family: Family) -> Hub:
    """How a family's models stand in Hugging Face's layout."""
    if family.hub is None:
        known = [name for name, other in FAMILIES.items() if other.hub is not None]
        raise UserError(f"this family has no layout of Hugging Face's; those that have: {', '.join(known)}")
    return family.hub


def build_plain(model: Model) -> Model:
    """The model of the same config whose kernels are all arrays."""
    return importers.functional(model.family, model.config)


def _opened(path: Path, changes: Mapping[str, Any]) -> tuple[Model, Callable[[Iterable[str]], Mapping[str, Any]]]:
    """The model at a path, and a function that opens its tensors, given the names that they should have."""
    if path.suffix == ".gguf":
        config, source = gguf.read(path)
        return _model_of(path, config, changes), source
    if not path.is_dir():
        raise UserError(f"{path}: no such folder, and no .gguf file")
    config = tensors.read_json(path / CONFIG)
    return _model_of(path / CONFIG, config, changes), lambda _: tensors.open_folder(path)


def _model_of(path: Path, config: Mapping[str, Any], changes: Mapping[str, Any]) -> Model:
    architectures = config.get("architectures") or ["(none)"]
    if not isinstance(architectures, list):
        raise UserError(f"{path}: architectures is {architectures!r}; expected a list of one name")
    known = {family.hub.architecture: name for name, family in FAMILIES.items() if family.hub is not None}
    if str(architectures[0]) not in known:
        raise UserError(
            f"{path}: architecture {architectures[0]!r} is not known; {nearest(str(architectures[0]), known)}"
        )
    if "quantization_config" in config:
        raise UserError(f"{path}: quantized weights are not read; give the folder of the model in bfloat16 or float32")
    name = known[architectures[0]]
    hub = hub_of(FAMILIES[name])
    try:
        importers.drop_fixed(config, hub.fixed)
        own = {ours: config[theirs] for theirs, ours in hub.fields.items() if theirs in config}
        return build(name, **{**own, **hub.read(config), **changes})
    except KeyError as error:
        raise UserError(f"{path}: no {error.args[0]!r}") from None
    except (UserError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path}: {error}") from None


def _named(found: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Tensors under the names of the whole model, without those that are no parameters."""
    hub = hub_of(model.family)
    if not any(name.startswith(hub.prefix) for name in found):
        found = {name if name.startswith("lm_head.") else hub.prefix + name: value for name, value in found.items()}
    ignored = hub.ignored + (r"|lm_head\.weight" if getattr(model.config, "tied", False) else "")
    return {name: value for name, value in found.items() if not re.fullmatch(ignored, name)}


def _shards(leaves: Iterator[tuple[str, int, Callable[[], np.ndarray]]], limit: int) -> Iterator[dict[str, Any]]:
    shard: dict[str, Any] = {}
    total = 0
    for name, size, read in leaves:
        if shard and total + size > limit:
            yield shard
            shard, total = {}, 0
        shard[name], total = read, total + size
    yield shard


def _copy_others(source: Path, folder: Path) -> None:
    for path in sorted(source.iterdir()):
        weights = path.suffix in (".safetensors", ".bin", ".pt", ".gguf") or path.name == tensors.INDEX
        if path.is_file() and not weights and path.name != CONFIG:
            shutil.copyfile(path, folder / path.name)
