"""Two sides at a budget of bytes: the best with random maps, the best that trains every weight; which one wins."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.report.statistics import SAME_BYTES_PCT
from experiments.report.table import with_ci

FROZEN, TRAINED = "random maps", "all trained"
SIDES = (FROZEN, TRAINED)
Cell = dict[str, Any]  # one stack on one text; what frontier.json holds
Point = dict[str, Any]
Effect = Mapping[str, Any]  # "pct" and "ci95" of a paired difference of bits per byte


def size_name(budget: int) -> str:
    """A budget of bytes as it stands in names.

    >>> size_name(300_000), size_name(1_000_000)
    ('300kB', '1MB')
    """
    return f"{budget // 1000}kB" if budget < 1_000_000 else f"{budget / 1_000_000:g}MB"


def point(way: str, side: str, options: Mapping[str, Any], row: Mapping[str, Any], step_flops: int) -> Point:
    """One trained way of building a model: `row` is that of the report's summary, `step_flops` per token."""
    return {
        "name": row["name"],
        "way": way,
        "side": side,
        "options": dict(options),
        "model_dim": row["model"]["model_dim"],
        "bytes": row["artifact_bytes"],
        "bpb": row["packed_bpb_mean"],
        "bpb_ci95": row["packed_bpb_ci95"],
        "train_flops": step_flops * row["train_tokens"],
        "steps": row["steps"],
        "step_ms": row["step_ms_median"],
        "seeds": len(row["seeds"]),
    }


def at_budget(
    budget: int, points: Sequence[Point], winners: Mapping[str, str], effects: Mapping[tuple[str, str], Effect]
) -> dict[str, Any]:
    """All about one budget: `winners` are the names of both sides' best points, by the search.

    `effects` are those of a point on another, by their names.
    """
    once = [point for point in points if not is_longer(point)]
    at_flops = _at_flops(winners, points)
    found = {
        "budget": budget,
        "winners": dict(winners),
        "points": list(points),
        "effect": effects[winners[FROZEN], winners[TRAINED]],
        "effect_at_flops": effects[at_flops[FROZEN], at_flops[TRAINED]],
        # What is at random, against the best that is trained whole.
        "places": {p["way"]: effects[p["name"], winners[TRAINED]] for p in once if p["side"] == FROZEN},
    }
    for narrow in (point["name"] for point in once if point["way"] == "narrow"):
        same = {"pct": 0.0, "ci95": 0.0}
        found["over_narrow"] = {s: same if winners[s] == narrow else effects[winners[s], narrow] for s in SIDES}
    return found


def is_longer(point: Point) -> bool:
    """Whether it was trained again for as many FLOPs as the other side."""
    return "_for_" in point["name"]


class Compared(NamedTuple):
    """The best with random maps against the best that trains whole, at one budget."""

    effect: Effect
    larger_pct: float  # the file with maps against the other

    @property
    def ahead(self) -> str | None:
        """The side with fewer bits per byte, by the 95 % interval of the difference alone."""
        mean, ci95 = self.effect["pct"], self.effect["ci95"]
        if ci95 is None or abs(mean) <= ci95:
            return None
        return TRAINED if mean > 0 else FROZEN

    @property
    def winner(self) -> str | None:
        """The side ahead; nobody where its file is the larger one, by more than files of the same size may differ."""
        larger = self.larger_pct if self.ahead == FROZEN else -self.larger_pct
        return None if larger > SAME_BYTES_PCT else self.ahead


def compared(at: Mapping[str, Any], field: str = "effect") -> Compared:
    """The two sides at a budget, of equal bytes ("effect") or of equal FLOPs, too ("effect_at_flops")."""
    names = _at_flops(at["winners"], at["points"]) if field == "effect_at_flops" else at["winners"]
    size = {point["name"]: point["bytes"] for point in at["points"]}
    return Compared(at[field], 100.0 * (size[names[FROZEN]] / size[names[TRAINED]] - 1))


def _at_flops(winners: Mapping[str, str], points: Sequence[Point]) -> dict[str, str]:
    return {**winners, **{point["side"]: point["name"] for point in points if is_longer(point)}}


def verdict(compared: Compared) -> str:
    """Which side wins, in words; where the files differ by more than those of the same size may, by how much.

    >>> verdict(Compared({"pct": 2.0, "ci95": 0.5}, 0.1)), verdict(Compared({"pct": -2.0, "ci95": 3.0}, 0.1))
    ('all trained wins by 2.0 ±0.5 %', 'neither side wins, random maps differ by -2.0 ±3.0 %')
    >>> verdict(Compared({"pct": 2.0, "ci95": 0.5}, -4.0)), verdict(Compared({"pct": 2.0, "ci95": 0.5}, 4.0))
    ('no verdict, all trained is ahead by 2.0 ±0.5 % with the larger file (4.0 %)', 'all trained wins by 2.0 ±0.5 % \
with the smaller file (4.0 %)')
    """
    effect, ahead = compared.effect, compared.ahead
    by = f" ({abs(compared.larger_pct):.1f} %)" if abs(compared.larger_pct) > SAME_BYTES_PCT else ""
    if ahead is None:
        files = f", their files {'larger' if compared.larger_pct > 0 else 'smaller'}{by}" if by else ""
        return f"neither side wins, {FROZEN} differ by {effect_text(effect)}{files}"
    told = f"by {with_ci(abs(effect['pct']), effect['ci95'], 1)} %"
    if compared.winner is None:
        return f"no verdict, {ahead} is ahead {told} with the larger file{by}"
    return f"{ahead} wins {told}" + (f" with the smaller file{by}" if by else "")


def effect_text(effect: Effect) -> str:
    """An effect as it is written in a sentence or a cell of a table.

    >>> effect_text({"pct": -2.0, "ci95": 3.0})
    '-2.0 ±3.0 %'
    """
    return with_ci(effect["pct"], effect["ci95"], 1, " %")
