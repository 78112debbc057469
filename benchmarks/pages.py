"""Tables of a committed JSON in the pages that quote them, and what every such JSON says of its machine."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from freezejax.version import versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "benchmarks" / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"


def fill(page: str, kind: str, tables: Mapping[str, str]) -> str:
    """The page with every block between `<!-- KIND: NAME -->` and `<!-- end -->` replaced by the table of that name.

    >>> print(fill("<!-- times: step -->\\nold\\n<!-- end -->", "times", {"step": "new"}))
    <!-- times: step -->
    new
    <!-- end -->
    """
    block = rf"<!-- {kind}: (\w+) -->\n.*?<!-- end -->"
    return re.sub(
        block, lambda found: f"<!-- {kind}: {found[1]} -->\n{tables[found[1]]}\n<!-- end -->", page, flags=re.DOTALL
    )


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """Name of this machine's processor, with family and model where Linux says them: a cloud calls many alike.

    >>> processor(Path("no such file")) == platform.machine()
    True
    """
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    said = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)", text, re.MULTILINE))
    name = said.get("model name", platform.machine())
    return f"{name}, family {said['cpu family']}, model {said['model']}" if "cpu family" in said else name


def environment(packages: Sequence[str] = ("freezejax", "jax", "jaxlib", "numpy")) -> dict[str, Any]:
    """`machine` and `versions` of a JSON of results.

    >>> sorted(environment()["machine"])
    ['cpu_cores', 'device', 'load', 'processor']
    """
    return {
        "machine": {
            "processor": processor(),
            "device": jax.devices()[0].device_kind,
            "cpu_cores": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
        },
        "versions": {**versions(*packages), "python": platform.python_version()},
    }


def sentence(found: Mapping[str, Any]) -> str:
    """Machine and versions of a JSON in one line."""
    machine, versions = found["machine"], ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{machine['processor']}, {machine['cpu_cores']} cores, load {machine['load']:.1f} before the run; {versions}."
    )
