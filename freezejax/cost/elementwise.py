"""Everything a step computes besides matmuls, as counts of elements by kind; a table says what an element costs.

XLA's cost analysis counts one FLOP for every element of every operation that is not transcendental, comparisons and
integer operations included, and once more for each fusion that repeats it. So the FLOPs per element of a kind are
measured, not derived: `benchmarks/cost_calibration.py` fits them to compiled programs and writes `calibration.json`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from freezejax.cost.arguments import Leaf
from freezejax.cost.layout import MeshShape
from freezejax.cost.matmuls import scores
from freezejax.cost.sites import Live, Site
from freezejax.training.config import TrainConfig

Counts = Counter[str]


def count_elements(
    sites: Iterable[tuple[Site, Live]], leaves: Iterable[Leaf], config: TrainConfig, rows: int, mesh: MeshShape
) -> Counts:
    """Elements of one step on one device, by kind and pass.

    `norm f` are those of forward passes, `norm b` of backward passes to the inputs, `norm w` to the parameter.

    Args:
      sites: with what is live at each.
      leaves: the parameters.
      config: of the run.
      rows: sequences on one device, per microbatch.
      mesh: sizes of the axes.
    """
    counts: Counts = Counter()
    for site, live in sites:
        for kind, count in _of_site(site, live, rows * config.seq_len, config.seq_len, mesh.tensor):
            counts[kind] += config.accumulation * count
        if site.kind == "map":
            draws = {"per_layer": config.accumulation * (1 + live.inputs[0]), "per_step": 1, "once": 0}[
                config.draw_maps
            ]
            ways = mesh.tensor if site.shared or site.shared_input else 1
            counts[f"draw {site.draw}"] += draws * site.inner * site.width // ways
    for leaf in leaves:
        if leaf.trains:
            counts.update(_of_leaf(leaf, config))
    return counts


def _of_site(site: Site, live: Live, tokens: int, seq_len: int, tensor: int) -> Iterator[tuple[str, int]]:
    ways = tensor if site.shared else 1
    if site.kind in ("linear", "head", "split"):  # nothing but matmuls, or nothing at all
        return
    if site.kind == "attention":
        elements = tokens // seq_len * site.heads * scores(seq_len) // ways
    elif site.kind == "map":
        elements = tokens * min(site.inner // (tensor if site.shared_input else 1), site.width // ways)
    else:
        elements = tokens * site.width // ways
    yield f"{site.kind} f", elements
    yield f"{site.kind} b", elements * any(live.inputs)
    yield f"{site.kind} w", elements * live.leaf


def _of_leaf(leaf: Leaf, config: TrainConfig) -> Counts:
    found = {"clip": leaf.size * (config.optimizer.clip > 0), "ema": leaf.size * (config.ema_decay > 0)}
    if not leaf.by_muon:
        return Counter({**found, "adam": leaf.size})
    # Newton-Schulz works on the whole matrix, on every device.
    short, size = min(leaf.shape), math.prod(leaf.shape)
    return Counter({**found, "muon": size, "muon square": short * short})
