"""The rows of `experiments.adapters`: which kernels are random maps, and what stands over them. Data."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.engine import matching

Rule = Mapping[str, Any]  # an entry of a model's `weights` without its pattern


class Row(NamedTuple):
    """One variant: which kernels are random maps, and what stands over them; or the same maps, trained."""

    name: str
    place: str = ""  # "" = none
    over: Sequence[Rule] = ()  # from the inside out
    distribution: str = "normal"
    trained: bool = False  # the kernels only start as these maps: a control
    bytes_of: str = ""  # narrower or wider, until its file is as large as that of this row: a control
    extra: Collection[str] = ()  # seeds: runs with every base seed; ema, twice; one_head: has its control


# Over normal maps, everywhere and of the MLP alone; those with a rank have that of the usual LoRA, VeRA the width.
_SMALL = ("randlora", "vera", "vera_scalars", "gain")  # hardly more than the maps' own file
_OF_OTHER_BYTES = ("dora", *_SMALL)
OF_LORAS_BYTES = ("rank_stabilised", "scalar_lora")
KINDS = (*_OF_OTHER_BYTES, *OF_LORAS_BYTES)
MLP_LORA = "mlp_lora"
DISTRIBUTIONS = ("rademacher", "uniform", "hadamard", "orthogonal_qr")
FULL_RANK, RANK_2 = "pr_1549", "pr_1870"  # rows of the sweep: its largest rank, and rank 2


def rows_of(config: ConfigDict) -> Iterator[Row]:
    """All of them, the controls of the same bytes last."""
    compared = [*_references(), *_swept(config), *_kinds(config), *_submissions(config)]
    yield from compared
    for row in compared:
        if row.name in same_bytes(config):
            yield row._replace(name=control(row.name), over=(), trained=True, bytes_of=row.name)


def _references() -> list[Row]:
    return [
        Row("baseline"),
        Row("trained_same_maps", "all", trained=True),
        Row("trained_mlp_same_maps", "mlp", trained=True),
        Row("trained_attention_same_maps", "attention", (), "rademacher", trained=True),
        Row("frozen", "all", extra={"one_head"}),
        Row("frozen_mlp", "mlp"),
    ]


def _swept(config: ConfigDict) -> list[Row]:
    small = lambda rank: {"one_head"} if rank < config.lora.rank else set[str]()  # noqa: E731
    return [
        Row(sweep_name(config, rank), "all", [_lora(rank)], extra=small(rank) | ({"seeds"} if rank == 2 else set()))
        for rank in config.lora.ranks
    ]


def _kinds(config: ConfigDict) -> list[Row]:
    usual, width = _lora(config.lora.rank), config.sizes.small.model_dim
    over: dict[str, list[Rule]] = {
        "dora": [{**usual, "kind": "dora"}],
        "randlora": [{**usual, "kind": "randlora"}],
        "vera": [{"kind": "vera", "rank": width}],
        "vera_scalars": [{"kind": "vera", "rank": width, "scalars": True}],
        "gain": [{"kind": "gain"}],
        "rank_stabilised": [{**usual, "rank_stabilised": True}],
        "scalar_lora": [{"kind": "scalar"}, usual],
    }
    distributions = [Row(f"lora_{name}", "all", [usual], name) for name in DISTRIBUTIONS]
    everywhere = [Row(name, "all", over[name], extra={"one_head"} if name in _SMALL else ()) for name in KINDS]
    mlp = [Row(MLP_LORA, "mlp", [usual]), *(Row(f"mlp_{name}", "mlp", over[name]) for name in KINDS)]
    return [*everywhere, *distributions, *mlp]


def _submissions(config: ConfigDict) -> list[Row]:
    width, gain = config.sizes.small.model_dim, [{"kind": "gain"}]
    of_512 = lambda rank: _lora(max(2, round(rank * width / 512)))  # noqa: E731 - they are 512 wide
    return [
        Row(f"{FULL_RANK}_ema", "all", [_lora(config.lora.ranks[-1])], extra={"ema"}),
        Row("pr_2058", "mlp", [of_512(160)]),
        Row("pr_974", "attention", [of_512(128)], "rademacher"),
        Row("pr_1113", "all", [of_512(32)], "orthogonal_qr", extra={"one_head"}),
        Row("pr_1195", "all", [{"kind": "scale_shift"}], "orthogonal_qr", extra={"one_head"}),
        Row("pr_1228", "first_up", gain, "orthogonal_qr"),
        *(Row(f"pr_1228_{name}", "first_up", gain, name) for name in ("normal", "rademacher")),
        Row("pr_1753", "all", [{"kind": "supermask", "keep": 0.5}], extra={"one_head"}),
        Row("pr_1710", "mlp_in", extra={"twice"}),
    ]


def _lora(rank: int) -> Rule:
    return {"kind": "lora", "rank": rank}


def sweep_name(config: ConfigDict, rank: int) -> str:
    """The row of LoRA of a rank."""
    return {2: RANK_2, config.lora.ranks[-1]: FULL_RANK}.get(rank, f"lora_r{rank}")


def control(name: str) -> str:
    """The control of a row: trained from the same maps, of the same bytes."""
    return f"trained_at_{name}_bytes"


def places(num_layers: int) -> dict[str, str]:
    """Where maps may stand: place -> pattern of kernel paths.

    >>> places(12)["first_up"]
    'blocks/(0|1|2|3|4)/mlp/up/kernel'
    """
    first = "|".join(map(str, range(max(1, round(num_layers * 5 / 12)))))  # PR 1228: layers 0 to 4 of 12
    return {
        "all": r"blocks/\d+/(attn|mlp)/[^/]+/kernel",
        "mlp": r"blocks/\d+/mlp/[^/]+/kernel",
        "attention": r"blocks/\d+/attn/[^/]+/kernel",
        "mlp_in": r"blocks/\d+/mlp/(gate|up)/kernel",
        "first_up": f"blocks/({first})/mlp/up/kernel",
    }


def rules(model: Mapping[str, Any], row: Row) -> list[Rule]:
    """The entries of a model's `weights`, with their patterns."""
    if not row.place:
        return []
    pattern = places(model["num_layers"])[row.place]
    maps = [matching.random_map(pattern, row.distribution, trained=row.trained)]
    if keep := next((rule["keep"] for rule in row.over if rule["kind"] == "supermask"), None):
        # What the mask leaves of a map has the variance 1 / inputs; down has other inputs than the rest.
        width = model["model_dim"]
        inputs = {r".*/down/kernel": round(model["mlp_mult"] * width), pattern: width}
        maps = [{**maps[0], "pattern": p, "scale": (keep * n) ** -0.5} for p, n in inputs.items()]
    return [*maps, *({"pattern": pattern, **rule} for rule in row.over)]


def run_twice(model: dict[str, Any], twice: bool) -> dict[str, Any]:
    """The model whose middle blocks run a second time: three of eleven, as in PR 1710."""
    if not twice:
        return model
    layers = model["num_layers"]
    count = max(1, round(layers * 3 / 11))
    start = (layers - count) // 2
    again = [
        {"pattern": rf"blocks/{start + count + i}/(attn|mlp)/[^/]+/kernel", "kind": "shared", "block": start + i}
        for i in range(count)
    ]
    return matching.with_maps({**model, "num_layers": layers + count}, *again)


_BYTES = {  # row with a control of the same bytes -> what is asked of the two
    "frozen": "frozen everywhere without adapters against trained at the same bytes",
    MLP_LORA: "MLP frozen with the usual LoRA against trained at the same bytes",
    **dict.fromkeys(_OF_OTHER_BYTES, "this kind of adapter everywhere against trained at the same bytes"),
    "pr_2058": "MLP frozen with LoRA, attention learned, against trained at the same bytes",
    "pr_974": "attention frozen with LoRA, MLP learned, against trained at the same bytes",
    "pr_1113": "everything orthogonal with LoRA against trained at the same bytes",
    "pr_1195": "everything orthogonal with a scale and a shift against trained at the same bytes",
    "pr_1228": "up of the first layers orthogonal with a gain against trained at the same bytes",
    "pr_1753": "a mask over maps, one bit a weight, against trained at the same bytes",
    "pr_1710": "gate and up frozen, middle blocks run twice, against trained at the same bytes",
}


def same_bytes(config: ConfigDict) -> dict[str, str]:
    """Every row that has a control of the same bytes, and what is asked of the two."""
    swept = {
        sweep_name(config, rank): f"LoRA of rank {rank} everywhere against trained at the same bytes"
        for rank in config.lora.ranks
    }
    return swept | _BYTES
