"""The benchmark's JSON as Markdown tables, and the pages that quote them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import layers, memory
from freezejax.errors import UserError

Found = Mapping[str, Any]

_NAMES = {
    "once": "stored",
    "per_step": "once per step",
    "per_layer": "per layer and pass",
    "naive": "`jax.random.normal`",
}
_BYTES = {"maps": "maps, MiB", "argument": "arguments, MiB", "temporary": "temporaries, MiB"}
_LEVELS = {
    "rademacher": ("-1, 1", "1"),
    "uniform": ("256 odd integers, -255 to 255", "8"),
    "normal": ("256 quantiles as integers, -127 to 127", "8"),
    "hadamard": ("-1, 1", "under 0.01"),
    "normal_f32": ("float32", "32"),
    "orthogonal_qr": ("float32", "32"),
}


def fill(page: str, found: Found) -> str:
    """The page with every block between `<!-- table: NAME -->` and `<!-- end -->` written afresh.

    Raises:
      UserError: the page names a table that does not exist.
    """

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise UserError(f"no table {name!r}; there are {', '.join(TABLES)}")
        return f"<!-- table: {name} -->\n{TABLES[name](found)}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def table(lines: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table; columns are the keys of the first line.

    >>> print(table([{"a": "1", "b": "2"}]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    head, *body = ["| " + " | ".join(line) + " |" for line in (lines[0], *(line.values() for line in lines))]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])


def _machine(found: Found) -> str:
    settings, machine = found["settings"], found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{machine['processor']}, {machine['cpu_cores']} cores, load {machine['load']:.1f} before the run; {versions}; "
        f"{settings['rounds']} rounds."
    )


def _layer(found: Found) -> str:
    return _layers(found["layer"]["float32"], found["draw"], found["targets"])


def _bfloat16(found: Found) -> str:
    return _layers(found["layer"]["bfloat16"], [], {})


def _layers(rows: Sequence[Found], draws: Sequence[Found], targets: Mapping[str, float]) -> str:
    drawing = {row["name"]: row["ms_median"] for row in draws}
    lines = []
    for row in rows:
        line = {"weight": row["name"], "median, ms": f"{row['ms_median']:.1f}", "least, ms": f"{row['ms_min']:.1f}"}
        line |= {"times the stored weight": _ratio(row)}
        if draws:
            one = f"{drawing[row['name']]:.2f}" if row["name"] in drawing else ""
            target = targets.get(row["name"])
            line |= {"drawing it once, ms": one}
            line |= {"target": f"{target:.2f}: {verdict(row['ratio'] <= target)}" if target else ""}
        lines.append(line)
    return table(lines)


def _ratio(row: Found) -> str:
    return f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"


def verdict(met: bool) -> str:
    """How a figure stands to its target.

    >>> verdict(True)
    'met'
    """
    return "met" if met else "missed"


def _tokens(found: Found) -> str:
    by_count: dict[int, dict[str, str]] = {}
    for row in found["tokens"]:
        line = by_count.setdefault(row["tokens"], {"tokens": f"{row['tokens']:,}"})
        if row["name"] == "stored":
            line["stored, ms"] = f"{row['ms_median']:.2f}"
        else:
            name, form = row["name"].split(", ")
            line[f"{name}, {_NAMES[form]}"] = f"{row['ratio']:.2f}"
    limits = {f"{100 * (limit - 1):.0f} %": layers.break_even(found["tokens"], limit) for limit in (1.05, 1.15)}
    lines = list(by_count.values())
    for limit, counts in limits.items():
        least = {name: f"{count:,} tokens" if count else "more" for name, count in counts.items() if name != "stored"}
        lines.append({"tokens": f"at most {limit} slower from", "stored": "", **least})
    return table(lines)


def _memory(found: Found) -> str:
    target, lines = found["targets"].get("memory"), []
    for row in found["memory"]:
        saved = row["saved_share"]
        line = {"program": row["program"], "maps": _NAMES[row["form"]]}
        for field in ("maps", "argument", "temporary"):
            line[_BYTES[field]] = f"{row[f'{field}_bytes'] / 2**20:.1f}"
        line["saved, of the maps' bytes"] = f"{round(100 * saved)} %" if row["form"] != "once" else ""
        judged = target and row["form"] == "per_layer" and row["program"] == memory.JUDGED
        line["target"] = f"{100 * target:.0f} %: {verdict(saved >= target)}" if judged else ""
        lines.append(line)
    return table(lines)


def _lowering(found: Found) -> str:
    return table(
        [
            {
                "lowered for": row["platform"],
                "maps": str(row["maps"]),
                "draws": str(row["draws"]),
                "seeds that are arguments": str(row["seed_arguments"]),
                "maps that are arguments": str(row["map_arguments"]),
                "constants of a map's size": str(row["map_constants"]),
                "largest constant": f"{row['largest_constant']} numbers",
            }
            for row in found["lowering"]
        ]
    )


def _h100(found: Found) -> str:
    rows = found["h100_estimate"]["relative"]
    return table(
        [
            {"tokens per device": f"{row['tokens']:,}"}
            | {name: f"{value:.2f}" for name, value in row.items() if name != "tokens"}
            for row in rows
        ]
    )


def _h100_parts(found: Found) -> str:
    parts = found["h100_estimate"]["picoseconds"]
    return table([{"part": name, "ps per weight": f"{value:.3g}"} for name, value in parts.items()])


def _distributions(found: Found) -> str:
    lines = []
    for row in found["distributions"]:
        levels, bits = _LEVELS[row["name"]]
        cosines = {f"cosines, [{n.replace('x', ', ')}]": _cosine(row[n]) for n in ("512x2048", "192x384")}
        lines.append(
            {
                "distribution": f"`{row['name']}`",
                "levels": levels,
                "random bits per weight": bits,
                "mean": f"{row['mean']:.4f}",
                "std": f"{row['std']:.4f}",
                "kurtosis": f"{row['kurtosis']:.3f}",
                **cosines,
                "portable": "yes" if row["portable"] else "no",
            }
        )
    return table(lines)


def _cosine(row: Found) -> str:
    return f"{row['cosine_rms']:.3f}, {row['cosine_max']:.3f}"


TABLES: dict[str, Callable[[Found], str]] = {
    "machine": _machine,
    "layer": _layer,
    "bfloat16": _bfloat16,
    "tokens": _tokens,
    "memory": _memory,
    "lowering": _lowering,
    "h100": _h100,
    "h100_parts": _h100_parts,
    "distributions": _distributions,
}
