"""Training steps whose compiled costs are known: what `freezejax.cost` is calibrated on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from freezejax import FreezeSchedule, models
from freezejax.cost import PhaseCost, predict
from freezejax.sharding import make_mesh
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan

Rules = Sequence[tuple[str, bool]]

ALL: Rules = [(".*", True)]
GATE_UP: Rules = [(r"blocks/\d+/mlp/(gate|up|fc)/kernel", False), *ALL]
ATTENTION: Rules = [(r"blocks/\d+/attn/.*", False), *ALL]
ADAPTERS: Rules = [(".*/kernel/(a|b)", True), (".*", False)]
SEEDS: Rules = [(".*/root", False), *ALL]
_MAPS = r"blocks/\d+/mlp/(gate|up|fc)/kernel"


class Case(NamedTuple):
    """One training step: a model, a run and what trains in it.

    >>> Case("a", {"family": "geglu", "num_layers": 1}, {}, ALL).step().rows
    4
    """

    name: str
    model: Mapping[str, Any]
    train: Mapping[str, Any]
    rules: Rules
    mesh: Mapping[str, int] = {}

    def predicted(self) -> PhaseCost:
        """What `freezejax.cost` says of it."""
        return predict(*self._parts(), mesh=self.mesh).phases[0]

    def lower(self) -> jax.stages.Lowered:
        """The program, on as many devices as the mesh has."""
        return RunPlan(*self._parts(), make_mesh(**self.mesh) if self.mesh else None).lower(0)

    def sizes(self, program: jax.stages.Compiled) -> dict[str, int]:
        """What XLA says of it: FLOPs, bytes of arguments and of temporaries, per device."""
        costs, sizes = program.cost_analysis(), program.memory_analysis()
        return {
            "flops": round(costs["flops"]),
            "argument_bytes": sizes.argument_size_in_bytes,
            "activation_bytes": sizes.temp_size_in_bytes,
        }

    def _parts(self) -> tuple[models.Model, TrainConfig, FreezeSchedule]:
        config = TrainConfig.from_mapping({"steps": 2, "batch_size": 4, "seq_len": 128, **self.train})
        return models.build(**self.model), config, FreezeSchedule([(0, self.rules)])


def prefix(blocks: int) -> Rules:
    """The embedding and the first blocks are frozen."""
    names = "|".join(str(i) for i in range(blocks))
    return [("tok_emb/.*", False), (rf"blocks/({names})/.*", False), *ALL]


def programs() -> Iterator[Case]:
    """The calibration's programs: both families, sizes and masks that tell the kinds of sites apart."""
    for family, more in (("geglu", {}), ("parameter_golf", {"num_kv_heads": 2})):
        base = {"family": family, "vocab_size": 256, "num_layers": 2, "model_dim": 64, "num_heads": 4, **more}
        yield from _sizes(base)
        yield from _kinds(base)


def _sizes(base: Mapping[str, Any]) -> Iterator[Case]:
    sizes: Sequence[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("d64", {}, {}),
        ("d48", {"model_dim": 96, "vocab_size": 61, "num_layers": 3}, {"batch_size": 3, "seq_len": 97}),
        ("d192", {"model_dim": 192, "vocab_size": 257, "num_layers": 4}, {"batch_size": 2}),
        ("long", {"model_dim": 128, "num_layers": 3}, {"seq_len": 256, "batch_size": 2}),
        ("wide", {"mlp_mult": 3.5, "model_dim": 80, "num_layers": 1, "vocab_size": 1000}, {"seq_len": 50}),
        ("large", {"model_dim": 256, "num_layers": 5, "vocab_size": 1024}, {"seq_len": 64, "batch_size": 1}),
    ]
    for name, model, train in sizes:
        layers = model.get("num_layers", 2)
        masks = {"all": ALL, "gate up": GATE_UP, "attention": ATTENTION, "prefix": prefix(max(1, layers // 2))}
        masks |= {"blocks": prefix(layers), "none": [(".*", False)]}
        if name in ("d64", "d48"):
            masks |= {
                "embedding": [("tok_emb/.*", False), *ALL],
                "kernels": [(".*/kernel", False), *ALL],
                "one": [(r"blocks/0/mlp/(up|fc)/kernel", True), (".*", False)],
                "head": [("tok_emb/.*", True), (".*", False)],
            }
        for mask, rules in masks.items():
            yield Case(f"{base['family']} {name} {mask}", {**base, **model}, train, rules)


def _kinds(base: Mapping[str, Any]) -> Iterator[Case]:
    family = base["family"]
    for mode in ("layer", "step", "stored"):
        yield Case(f"{family} maps {mode}", _maps(base, "normal"), {"maps": mode}, SEEDS)
    for distribution in ("rademacher", "uniform", "hadamard", "normal_float"):
        yield Case(f"{family} {distribution}", _maps(base, distribution), {}, SEEDS)
    yield Case(f"{family} gain", _maps(base, "rademacher", "gain"), {}, SEEDS)
    yield Case(f"{family} maps below", _maps(base, "normal"), {}, [(".*/root", False), *prefix(1)])
    low = {**base, "lora": [{"pattern": "blocks/.*/kernel", "rank": 4}]}
    yield Case(f"{family} adapters", low, {}, ADAPTERS)
    yield Case(f"{family} adapters and all", low, {}, ALL)
    yield Case(f"{family} adapters on maps", {**_maps(base, "rademacher"), "lora": low["lora"]}, {}, ADAPTERS)
    yield Case(f"{family} muon", base, {"optimizer": {"name": "muon"}}, ALL)
    yield Case(f"{family} muon gate up", {**base, "model_dim": 96}, {"optimizer": {"name": "muon"}}, GATE_UP)
    yield Case(f"{family} no clip", base, {"optimizer": {"clip": 0.0}}, ALL)
    yield Case(f"{family} average", base, {"ema_decay": 0.99}, ALL)
    yield Case(f"{family} dropout", {**base, "dropout": 0.1}, {}, ALL)


def _maps(base: Mapping[str, Any], distribution: str, scale: str = "fan_in") -> dict[str, Any]:
    return {**base, "maps": [{"pattern": _MAPS, "distribution": distribution, "scale": scale}]}
