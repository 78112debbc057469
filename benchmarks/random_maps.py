"""What a random map costs beside a stored frozen weight: time, memory, and what a lowered program holds.

    python -m benchmarks.random_maps --json=benchmarks/results/random_maps.json
    python -m benchmarks.random_maps --write_docs

The first measures, prints its tables and writes them as JSON: minutes on 2 quiet CPU cores; with --quick a toy size
in half a minute. The second writes the committed JSON's tables into the pages that quote them, and measures nothing.
"""

import dataclasses
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks import distributions, layers, lowering, memory, roofline, tables
from experiments.engine import accelerators, cli
from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.version import versions
from freezejax.weights import RECIPES

_JSON = flags.DEFINE_string("json", None, "Also write everything measured to this JSON file.")
_QUICK = flags.DEFINE_bool("quick", False, "A toy size: whether it runs, not what it costs.")
_WRITE_DOCS = flags.DEFINE_bool("write_docs", False, "Only write the committed JSON's tables into docs/.")

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "random_maps.json"
PAGES = (ROOT / "docs" / "random_maps.md", ROOT / "benchmarks" / "README.md")
# Times the layer on a stored weight in float32; and the share of the maps' bytes that eight drawn layers save.
TARGETS = {"rademacher": 1.05, "normal": 1.15, "memory": 0.8}
_TIMED = ("rademacher", "uniform", "normal", "hadamard", "normal_f32")  # a QR would slow down its neighbours
_BOTH_FORMS = ("rademacher", "normal")  # timed against the number of tokens
_H100_TOKENS = (256, 1024, 4096, 16384, 65536)
_PACKAGES = ("freezejax", "jax", "jaxlib", "numpy")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large and how often. Defaults: the sizes that the targets are about."""

    shape: tuple[int, int] = (512, 2048)  # of the map
    distributions: tuple[str, ...] = _TIMED
    tokens: int = 4096
    rounds: int = 31
    token_counts: tuple[int, ...] = (64, 256, 1024, 4096, 16384)
    token_rounds: int = 15
    layers: int = 8  # of which memory is measured
    full: bool = True  # with whole models, and held against the targets


QUICK = Settings(
    shape=(64, 256),
    distributions=("rademacher", "normal"),
    tokens=128,
    rounds=3,
    token_counts=(16,),
    token_rounds=3,
    layers=2,
    full=False,
)


def main() -> None:
    """Measures, or writes the pages."""
    if _WRITE_DOCS.value:
        write_docs()
        return
    accelerators.announce()
    found = measure(QUICK if _QUICK.value else Settings())
    for name in tables.TABLES:
        print(f"\n{name}\n\n{tables.TABLES[name](found)}")
    if _JSON.value:
        write_atomically(Path(_JSON.value), json.dumps(found, indent=1) + "\n")


def measure(settings: Settings) -> dict[str, Any]:
    """Everything, as it stands in the JSON; see benchmarks/README.md."""
    shape, names, tokens, rounds = settings.shape, settings.distributions, settings.tokens, settings.rounds
    return {
        "settings": dataclasses.asdict(settings),
        "targets": TARGETS if settings.full else {},
        "machine": {
            "processor": _processor(),
            "device": jax.devices()[0].device_kind,
            "cpu_cores": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
        },
        "versions": {**versions(*_PACKAGES), "python": platform.python_version()},
        "layer": {dtype: layers.time_layer(shape, names, tokens, dtype, rounds) for dtype in ("float32", "bfloat16")},
        "draw": layers.time_draw(shape, names, rounds),
        "tokens": layers.time_tokens(shape, _BOTH_FORMS, settings.token_counts, settings.token_rounds),
        "memory": memory.measure(shape, tokens, settings.layers, models=settings.full),
        "lowering": lowering.measure(),
        "distributions": distributions.measure(tuple(RECIPES) if settings.full else names),
        "h100_estimate": {"picoseconds": roofline.picoseconds(), "relative": roofline.estimate(_H100_TOKENS)},
    }


def write_docs() -> None:
    """Writes the tables of the committed JSON into the pages.

    Raises:
      UserError: there is no committed JSON, or it is not of the full size.
    """
    if not RESULTS.is_file():
        raise UserError(
            f"{RESULTS.relative_to(ROOT)} is missing: measure with --json={RESULTS.relative_to(ROOT)} first"
        )
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    if found["settings"] != json.loads(json.dumps(dataclasses.asdict(Settings()))):
        raise UserError(f"{RESULTS.relative_to(ROOT)} is of another size: measure without --quick first")
    for page in PAGES:
        write_atomically(page, tables.fill(page.read_text(encoding="utf-8"), found))


def _processor() -> str:
    """Model name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    found = re.search(r"model name\s*: (.*)", text)
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    accelerators.define_flags()
    cli.run(main)
