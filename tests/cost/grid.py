"""The grid of training steps that the prediction is held to."""

import os
from collections.abc import Iterator
from typing import Any

from tests.cost.cases import ADAPTERS, ALL, ATTENTION, GATE_UP, Case, prefix

GEGLU: dict[str, Any] = {"family": "geglu", "vocab_size": 300, "num_layers": 2, "model_dim": 112, "num_heads": 4}
GOLF: dict[str, Any] = {**GEGLU, "family": "parameter_golf", "num_kv_heads": 2}
MAPS = [{"pattern": r"blocks/\d+/mlp/(gate|up|fc)/kernel", "kind": "map"}]
LORA = [{"pattern": "blocks/.*/kernel", "kind": "lora", "rank": 6}]
# A kernel of each kind that is neither a map nor plain LoRA.
KINDS: list[dict[str, Any]] = [
    {"pattern": "blocks/0/attn/qkv/kernel", "kind": "dora", "rank": 4},
    {"pattern": "blocks/0/attn/out/kernel", "kind": "vera", "rank": 8},
    {"pattern": "blocks/0/mlp/gate/kernel", "kind": "randlora", "rank": 4},
    {"pattern": "blocks/0/mlp/up/kernel", "kind": "supermask"},
    {"pattern": "blocks/0/mlp/down/kernel", "kind": "gain"},
    {"pattern": "blocks/1/attn/qkv/kernel", "kind": "lowbit"},
    {"pattern": "blocks/1/attn/out/kernel", "kind": "crystal"},
    {"pattern": "blocks/1/mlp/gate/kernel", "kind": "scalar"},
    {"pattern": "blocks/1/mlp/up/kernel", "kind": "scale_shift"},
    {"pattern": "blocks/1/mlp/down/kernel", "kind": "shared", "block": 0},
]
CORRECTION: dict[str, Any] = {"correction": "gelu", "correction_rank": 8}
HYBRID: dict[str, Any] = {
    **{"family": "nemotron_h", "num_layers": 4, "pattern": "ME*-", "vocab_size": 320, "model_dim": 112},
    **{"num_heads": 4, "num_kv_heads": 2, "head_dim": 28, "mamba_heads": 4, "mamba_head_dim": 28, "mamba_groups": 2},
    **{"state_dim": 16, "chunk": 32, "mlp_width": 112, "experts": 4, "expert_choices": 2, "expert_width": 48},
    "shared_expert_width": 96,
}
MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
WHOLE = os.environ.get("FREEZEJAX_WHOLE_COST_GRID") == "1"


def one_device() -> list[Case]:
    """A part of the grid; with FREEZEJAX_WHOLE_COST_GRID=1 all of it."""
    odd = {"batch_size": 3, "seq_len": 83}
    part = [
        Case("geglu, nothing frozen", GEGLU, {}, ALL),
        Case("geglu, gate and up", GEGLU, odd, GATE_UP),
        Case("geglu, all but adapters", {**GEGLU, "weights": LORA}, {}, ADAPTERS),
        Case("geglu, maps per layer", {**GEGLU, "weights": MAPS}, {}, ALL),
        Case("geglu, maps once per step", {**GEGLU, "weights": MAPS}, {"draw_maps": "per_step"}, ALL),
        Case("geglu, maps stored", {**GEGLU, "weights": MAPS}, {"draw_maps": "once"}, ALL),
        Case("geglu, all other kinds", {**GEGLU, **CORRECTION, "weights": KINDS}, {}, ALL),
        Case("golf, nothing frozen", GOLF, odd, ALL),
        Case("golf, attention", {**GOLF, "num_layers": 3}, {}, ATTENTION),
        Case("golf, prefix", {**GOLF, "num_layers": 3}, {}, prefix(2)),
        Case("golf, muon", {**GOLF, "num_layers": 1}, {"optimizer": {"name": "muon"}}, ALL),
    ]
    return [*part, *_rest()] if WHOLE else part


def _rest() -> Iterator[Case]:
    sizes = [
        ({"model_dim": 72, "num_heads": 2, "vocab_size": 91, "num_layers": 3}, {"batch_size": 5, "seq_len": 101}),
        ({"model_dim": 160, "num_layers": 4, "vocab_size": 517}, {"batch_size": 2, "seq_len": 192}),
    ]
    for base in (GEGLU, GOLF):
        family = base["family"]
        for model, train in sizes:
            model = {**base, **model}
            layers = model["num_layers"]
            masks = {"nothing": ALL, "gate up": GATE_UP, "attention": ATTENTION, "prefix": prefix(layers // 2)}
            masks |= {"blocks": prefix(layers), "kernels": [(".*/kernel", False), *ALL]}
            for mask, rules in masks.items():
                yield Case(f"{family} {model['model_dim']} {mask}", model, train, rules)
            for mode in ("per_layer", "per_step", "once"):
                yield Case(
                    f"{family} {model['model_dim']} maps {mode}",
                    {**model, "weights": MAPS},
                    {**train, "draw_maps": mode},
                    ALL,
                )
            yield Case(f"{family} {model['model_dim']} adapters", {**model, "weights": LORA}, train, ADAPTERS)
            both = {**model, "weights": MAPS + LORA}
            yield Case(f"{family} {model['model_dim']} adapters on maps", both, train, ADAPTERS)
            yield Case(f"{family} {model['model_dim']} muon", model, {**train, "optimizer": {"name": "muon"}}, GATE_UP)
            yield Case(f"{family} {model['model_dim']} dropout", {**model, "dropout": 0.1}, train, ALL)
            yield Case(f"{family} {model['model_dim']} average", model, {**train, "ema_decay": 0.9}, ALL)
    separate = {**GEGLU, "separate_qkv": True}
    for name in ("q", "k", "v", "out"):
        yield Case(f"geglu, {name} frozen", separate, {}, [(rf"blocks/\d+/attn/{name}/.*", False), *ALL])
        yield Case(f"geglu, only {name}", separate, {}, [(rf"blocks/\d+/attn/{name}/.*", True), (".*", False)])


def meshes() -> list[Case]:
    """Steps over 8 devices; with FREEZEJAX_WHOLE_COST_GRID=1 of both families on every mesh, and more masks."""
    train = {"batch_size": 16, "seq_len": 72}
    masks = {"gate up": GATE_UP, "prefix": prefix(1)} if WHOLE else {"gate up": GATE_UP}
    found = [Case("hybrid, experts apart", HYBRID, train, ALL, {"data": 2, "fsdp": 2, "expert": 2})]
    for base in (GEGLU, GOLF):
        for mesh in MESHES if WHOLE or base is GEGLU else MESHES[-1:]:
            model = {**base, "vocab_size": 320}
            found += [
                Case(f"{base['family']} {mesh} {mask}", model, train, rules, mesh) for mask, rules in masks.items()
            ]
            if WHOLE:
                found.append(Case(f"{base['family']} {mesh} nothing", model, train, ALL, mesh))
                found.append(Case(f"{base['family']} {mesh} maps", {**model, "weights": MAPS}, train, ALL, mesh))
    return found
