"""Adapters of PEFT's folders over the kernels of a model, and back: LoRA, its rank-stabilised form, DoRA, VeRA."""

import collections
import json
import re
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.models import importers, tensors
from freezejax.models.base import Model
from freezejax.models.family import Params
from freezejax.paths import by_path, check_known, map_with_paths
from freezejax.roles import Role, is_weight, leaves, weights
from freezejax.weights import DoraWeight, LoraWeight, VeraWeight
from freezejax.weights.kinds import is_positive, warn_above_break_even
from freezejax.weights.vera import StoredMap

CONFIG, TENSORS = "adapter_config.json", tensors.ADAPTER
_START = "base_model.model."
_ADAPTED = r"base_model\.model\.(.*?)\.((?:lora|vera)_\w+)(?:\.weight)?"  # names of tensors of one module's adapter
_SHARED = r"base_model\.(vera_[AB])"  # and of all modules' together; what remains are `modules_to_save`
_NO = {"bias": "none", "lora_bias": False, "use_qalora": False, "use_bdlora": None, "layer_replication": None} | {
    "trainable_token_indices": None,
    "target_parameters": None,
}


class Module(NamedTuple):
    """A kernel of the model and what PEFT calls the module that holds it."""

    path: str
    name: str
    transposed: bool  # whether torch has its weight as [out, in]


def load_adapter(path: str | PathLike[str], model: Model, params: Params) -> Params:
    """The parameters with the adapters of a PEFT folder over their kernels, and with its `modules_to_save` in place.

    What it trains: `folder_rules`. VeRA must have been saved with its projections. An adapter that is larger than its
    kernel is warned of.

    Raises:
      UserError: another kind of adapter, or a tensor that is missing, left over or of another shape.
    """
    folder = Path(path)
    config, found = tensors.read_json(folder / CONFIG), tensors.open_adapter(folder)
    modules = {module.name: module for module in modules_of(model)}
    for name, wanted in _NO.items():
        if config.get(name, wanted) != wanted:
            raise UserError(f"{folder / CONFIG}: {name}={config[name]!r} is not read; expected {wanted!r}")
    kind = str(config.get("peft_type"))
    check_known(kind, _READERS, f"{folder / CONFIG}: peft_type={kind!r} is not read")
    adapted: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    shared, saved = {}, {}
    for name, tensor in found.items():
        if match := re.fullmatch(_ADAPTED, name):
            check_known(match[1], modules, f"{folder / TENSORS}: the model has no module {match[1]!r}")
            adapted[modules[match[1]].path][match[2]] = tensor
        elif match := re.fullmatch(_SHARED, name):
            shared[match[1]] = tensor
        else:
            saved[name.removeprefix(_START)] = tensor
    reader = _READERS[kind]
    places = {module.path: module for module in modules.values()}

    def over(leaf_path: str, leaf: jax.Array) -> Any:
        if leaf_path not in adapted:
            return leaf
        try:
            return reader(leaf, config, places[leaf_path].name, {**shared, **adapted[leaf_path]})
        except KeyError as error:
            raise UserError(f"{folder / TENSORS}: no {error.args[0]} for {places[leaf_path].name}") from None
        except UserError as error:
            raise UserError(f"{folder / TENSORS}: {places[leaf_path].name}: {error}") from None

    params = map_with_paths(over, _with_saved(folder, model, params, saved))
    warn_above_break_even(params)
    return params


def adapter_rules(params: Params, also: str | None = None) -> list[tuple[str, bool]]:
    """Freeze rules under which adapters alone train, and leaves whose whole path the pattern `also` matches.

    >>> from freezejax.weights import GainWeight
    >>> adapter_rules({"up": {"kernel": GainWeight(jnp.ones((2, 3)), jnp.ones(3))}})
    [('up/kernel/gain', True), ('.*', False)]
    """
    beside = [leaf.path for leaf in leaves(params) if leaf.role in (Role.ADAPTER, Role.GAIN)]
    return [(pattern, True) for pattern in (*map(re.escape, beside), *filter(None, [also]))] + [(".*", False)]


def folder_rules(path: str | PathLike[str], model: Model, params: Params) -> list[tuple[str, bool]]:
    """Freeze rules under which trains what a PEFT folder trained: its adapters and its `modules_to_save`.

    `params` are those with the adapters over their kernels, as `load_adapter` or `load_pretrained` gives them.

    Raises:
      UserError: a broken folder, or a tensor that the model has no place for.
    """
    plain = importers.functional(model.family, model.config).abstract_params()
    places = {name: leaf_path for leaf_path, (name, _) in importers.torch_names(model, plain).items()}
    whole = []
    for tensor in tensors.open_adapter(Path(path)):
        if not re.fullmatch(f"{_ADAPTED}|{_SHARED}", tensor):
            name = tensor.removeprefix(_START)
            check_known(name, places, f"{Path(path) / TENSORS}: the model has no place for {name!r}")
            whole.append(re.escape(places[name]))
    return adapter_rules(params, "|".join(whole) or None)


def save_adapter(
    path: str | PathLike[str], model: Model, params: Params, *, base: str = "", also: str | None = None
) -> None:
    """Writes the adapters of the parameters as a PEFT folder, which PEFT loads over the model they stand over.

    `base` is what the folder calls that model; `also` a pattern of leaves that were trained whole (`modules_to_save`).

    Raises:
      UserError: no adapter, several kinds or scales that PEFT has no words for, or an adapter over no plain kernel.
    """
    folder, modules = Path(path), {module.path: module for module in modules_of(model)}
    found: dict[str, Any] = dict(weights(params))
    if not found:
        raise UserError("save_adapter: the parameters have no adapter")
    for kernel, weight in found.items():
        if type(weight) not in _WRITERS or is_weight(weight.base):
            raise UserError(f"save_adapter: PEFT has no {type(weight).__name__} over what stands at {kernel!r}")
    if len(kinds := {(type(weight), getattr(weight, "rank_stabilised", None)) for weight in found.values()}) > 1:
        raise UserError(f"save_adapter: PEFT has one kind in a folder, here are {len(kinds)}")
    named = {modules[kernel].name: weight for kernel, weight in found.items()}
    (kind, _), *_ = kinds
    config, state = _WRITERS[kind](named)
    whole = {name: read() for name, leaf_path, read in _leaves(model, params) if also and re.fullmatch(also, leaf_path)}
    state |= {_START + name: array for name, array in whole.items()}
    told = {
        "base_model_name_or_path": base or None,
        "bias": "none",
        "fan_in_fan_out": not any(modules[kernel].transposed for kernel in found),
        "inference_mode": True,
        "modules_to_save": sorted({name.rsplit(".", 2)[-2] for name in whole}) or None,
        "target_modules": sorted(named),
        "task_type": "CAUSAL_LM",
        **config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, folder / TENSORS, {"format": "pt"})
    write_atomically(folder / CONFIG, json.dumps(told, indent=2, sort_keys=True) + "\n")


def modules_of(model: Model) -> list[Module]:
    """The kernels of a model with the names of their modules."""
    names = importers.torch_names(model, importers.functional(model.family, model.config).abstract_params())
    return [
        Module(path, name.removesuffix(".weight"), transposed)
        for path, (name, transposed) in names.items()
        if path.endswith("/kernel")
    ]


def _leaves(model: Model, params: Params) -> Iterator[tuple[str, str, Callable[[], np.ndarray]]]:
    plain = jax.tree.map(lambda node: node if not is_weight(node) else node.base, params, is_leaf=is_weight)
    for (name, _, read), path in zip(importers.leaves_to_torch(model, plain), by_path(plain), strict=True):
        yield name, path, read


def _with_saved(folder: Path, model: Model, params: Params, saved: Mapping[str, Any]) -> Params:
    names = importers.torch_names(model, params)
    known = {name: path for path, (name, _) in names.items()}
    for name in saved:
        check_known(name, known, f"{folder / TENSORS}: the model has no place for {name!r}")
    places = {known[name]: (name, tensor) for name, tensor in saved.items()}

    def put(path: str, leaf: jax.Array) -> jax.Array:
        if path not in places:
            return leaf
        name, tensor = places[path]
        array = np.asarray(tensor).T if names[path][1] else np.asarray(tensor)
        if array.shape != leaf.shape:
            raise UserError(f"{folder / TENSORS}: {name!r} has another shape than the model's")
        return jnp.asarray(np.ascontiguousarray(array), leaf.dtype)

    return map_with_paths(put, params)


def _of_pattern(config: Mapping[str, Any], kind: str, name: str, default: Any) -> Any:
    """PEFT's `rank_pattern` and `alpha_pattern`: that of the first key with which the module's name ends."""
    found = config.get(kind) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"{kind}={found!r}: expected names of modules and a number for each")
    try:
        return next((value for key, value in found.items() if re.match(rf"(.*\.)?({key})$", name)), default)
    except re.error as error:
        raise UserError(f"{kind}: a name is no pattern: {error}") from None


def _array(tensor: Any, *shape: int) -> jax.Array:
    if tensor.shape != shape:
        raise UserError(f"a tensor of shape {tensor.shape} where {shape} is expected")
    return jnp.asarray(np.asarray(tensor, np.float32))


def _read_lora(kernel: jax.Array, config: Mapping[str, Any], name: str, found: Mapping[str, Any]) -> LoraWeight:
    width_in, width_out = kernel.shape
    rank = _of_pattern(config, "rank_pattern", name, config["r"])
    a, b = (
        _array(found[f"lora_{side}"], *shape) for side, shape in (("A", (rank, width_in)), ("B", (width_out, rank)))
    )
    alpha = _of_pattern(config, "alpha_pattern", name, config["lora_alpha"])
    if not is_positive(alpha):
        raise UserError(f"lora_alpha or alpha_pattern={alpha!r}: expected a number above 0")
    made = LoraWeight(kernel, a.T, b.T, float(alpha), bool(config.get("use_rslora")))
    if not config.get("use_dora"):
        return made
    magnitude = _array(found["lora_magnitude_vector"], width_out)
    return DoraWeight(made.base, made.a, made.b, made.alpha, made.rank_stabilised, magnitude=magnitude)


def _read_vera(kernel: jax.Array, config: Mapping[str, Any], name: str, found: Mapping[str, Any]) -> VeraWeight:
    if "vera_A" not in found:
        raise UserError("its projections are not in the file: save it with save_projection=True")
    (width_in, width_out), rank = kernel.shape, config["r"]
    # One pair for all modules, as wide as the widest: each takes its first columns and rows.
    a, b = np.asarray(found["vera_A"], np.float32)[:, :width_in], np.asarray(found["vera_B"], np.float32)[:width_out]
    sides = (StoredMap(_array(part, *shape).T) for part, shape in ((a, (rank, width_in)), (b, (width_out, rank))))
    d, g = _array(found["vera_lambda_d"], rank), _array(found["vera_lambda_b"], width_out)
    projections = dict(zip("ab", sides, strict=True))
    return VeraWeight(kernel, projections["a"], d, projections["b"], g)


_READERS: dict[str, Callable[..., Any]] = {"LORA": _read_lora, "VERA": _read_vera}


def _write_lora(named: Mapping[str, LoraWeight]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    state: dict[str, np.ndarray] = {}
    for name, weight in named.items():
        state[f"{_START}{name}.lora_A.weight"] = np.asarray(weight.a.T)
        state[f"{_START}{name}.lora_B.weight"] = np.asarray(weight.b.T)
        if isinstance(weight, DoraWeight):
            state[f"{_START}{name}.lora_magnitude_vector"] = np.asarray(weight.magnitude)
    ranks = {re.escape(name): weight.a.shape[1] for name, weight in named.items()}
    alphas = {re.escape(name): weight.alpha for name, weight in named.items()}
    (rank, _), (alpha, _) = (collections.Counter(of.values()).most_common(1)[0] for of in (ranks, alphas))
    first = next(iter(named.values()))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "use_rslora": first.rank_stabilised,
        "use_dora": isinstance(first, DoraWeight),
        "lora_dropout": 0.0,
    }, state


def _write_vera(named: Mapping[str, VeraWeight]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    widest = {side: max((getattr(w, side) for w in named.values()), key=lambda m: max(m.shape)) for side in "ab"}
    a, b = (np.asarray(widest[side].materialize().T, np.float32) for side in "ab")
    state = {"base_model.vera_A": a, "base_model.vera_B": b}
    for name, weight in named.items():
        if weight.scalars:
            raise UserError(f"save_adapter: PEFT has no VeRA of scalars alone, as stands at {name}")
        (width_in, rank), (_, width_out) = weight.a.shape, weight.b.shape
        same = [
            np.array_equal(x.materialize().T, y) for x, y in ((weight.a, a[:, :width_in]), (weight.b, b[:width_out]))
        ]
        if not all(same):
            raise UserError(f"save_adapter: PEFT has one pair of projections, and those at {name} are no part of it")
        state[f"{_START}{name}.vera_lambda_d"] = np.asarray(weight.d)
        state[f"{_START}{name}.vera_lambda_b"] = np.asarray(weight.g)
    told = {"peft_type": "VERA", "r": rank, "save_projection": True, "projection_prng_key": 0, "vera_dropout": 0.0}
    return told, state


_WRITERS: dict[type, Callable[..., Any]] = {LoraWeight: _write_lora, DoraWeight: _write_lora, VeraWeight: _write_vera}
