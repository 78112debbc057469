"""Temporary memory of a step: what is live at each point of it, and at which point that is most.

In the backward pass what earlier blocks keep for theirs is still there, the gradients of later blocks are there
already, and the present block needs room to work. At the end all gradients wait for the norm that clips them. How many
arrays of a site XLA's CPU compiler keeps is measured: `benchmarks/cost_calibration.py` fits it to compiled programs and
writes `calibration.json`.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from freezejax.cost.arguments import Leaf
from freezejax.cost.elementwise import Counts
from freezejax.cost.layout import MeshShape
from freezejax.cost.matmuls import scores
from freezejax.cost.sites import Live, Site
from freezejax.models.loss import count_slices
from freezejax.training.config import TrainConfig


def points(
    sites: Sequence[tuple[Site, Live]], leaves: Sequence[Leaf], config: TrainConfig, rows: int, mesh: MeshShape
) -> Iterator[Counts]:
    """Bytes that are live at each point of a step, by kind: forward, backward, and before the update.

    Args:
      sites: in forward order, with what is live at each.
      leaves: the parameters.
      config: of the run.
      rows: sequences on one device, of one microbatch.
      mesh: sizes of the axes.
    """
    room = _Room(rows, config.seq_len, mesh, 2 if config.compute_dtype == "bfloat16" else 4)
    trained = [leaf for leaf in leaves if leaf.trains]
    blocks = range(-1, sites[-1][0].block + 1)
    saved = {block: _saved(sites, block, room) for block in blocks}
    work = {block: list(_work(sites, block, room)) for block in blocks}
    everything = sum(leaf.bytes for leaf in trained)
    # Of several microbatches the gradients are summed: the sum so far is always there.
    kept, gradients = Counter({"sum": everything * (config.accumulation > 1)}), Counter[str]()
    # The embedding is gathered once, for its use at both ends.
    ends = [leaf for leaf in leaves if leaf.path.endswith("embedding")]
    kept["gathered"] = sum(mesh.fsdp * leaf.bytes for leaf in ends if "fsdp" in mesh.spec(leaf.path, leaf.shape))
    kept["gathered"] *= mesh.fsdp > 1
    # The targets as one-hot rows do not depend on the forward pass, and may be there before it.
    early = Counter({"targets": room.output(sites[-1][0]) * sites[-1][1].any})
    for block in blocks:
        yield from (kept + early + _named("forward", place) for place in work[block])
        kept += saved[block]
    for block in reversed(blocks):
        if saved[block]:
            yield from (kept + _named("backward", place) + gradients for place in work[block])
        kept -= saved[block]
        gradients["gradient"] += sum(leaf.bytes for leaf in trained if _block(leaf) == block)
    largest = max((4 * math.prod(leaf.shape) for leaf in trained if leaf.by_muon), default=0)
    yield kept + Counter({"update": everything, "muon": largest})


class _Room(NamedTuple):
    """Bytes of the arrays of a site on one device."""

    rows: int
    seq_len: int
    mesh: MeshShape
    itemsize: int

    def output(self, site: Site) -> int:
        elements = self.rows * self.seq_len * site.width // self._ways(site)
        if site.kind in ("softcap", "cross_entropy"):  # in float32, for one slice of the logits at a time
            logits = self.rows * self.mesh.batch_ways * self.seq_len * site.width
            return 4 * elements // count_slices(self.seq_len, logits)
        return self.itemsize * elements

    def scores(self, site: Site) -> int:
        return self.itemsize * self.rows * site.heads * scores(self.seq_len) // self._ways(site)

    def _ways(self, site: Site) -> int:
        return self.mesh.tensor if site.shared else 1


def _saved(sites: Sequence[tuple[Site, Live]], block: int, room: _Room) -> Counts:
    """What one block keeps for the backward pass."""
    found: Counts = Counter()
    here = [(site, live) for site, live in sites if site.block == block and live.any]
    for index in {site.inputs[0] for site, live in here if site.kind in ("linear", "head") and live.leaf}:
        found[f"input from {sites[index][0].kind}"] += room.output(sites[index][0])
    for site, live in here:
        found[f"saved {site.kind}"] += room.output(site)
        found[f"saved {site.kind} w"] += room.output(site) * live.leaf
        if site.kind == "attention":
            found["saved scores"] += room.scores(site)
    return found


def _work(sites: Sequence[tuple[Site, Live]], block: int, room: _Room) -> Iterator[Counts]:
    """What one block needs room for, kept or not: at its attention, and at the widest of its other sites."""
    here = [site for site, _ in sites if site.block == block]
    # Outputs of earlier blocks that this one or a later one reads, and that are not kept anyway.
    read = {i for site, _ in sites if site.block >= block for i in site.inputs if sites[i][0].block < block}
    carried = sum(room.output(sites[i][0]) for i in read if not sites[i][1].any)
    for site in here:
        if site.kind == "attention":
            keys = room.output(sites[site.inputs[1]][0]) + room.output(sites[site.inputs[2]][0])
            yield Counter({"scores": room.scores(site), "heads": room.output(site), "keys": keys, "carried": carried})
    widest = max(room.output(site) for site in here)
    wide = Counter({"carried": carried})
    for site in here:
        if site.kind != "cross_entropy" and room.output(site) == widest:
            wide[f"wide {site.kind}"] += widest
    yield wide


def _named(name: str, counts: Counts) -> Counts:
    return Counter({f"{name} {kind}": count for kind, count in counts.items()})


def _block(leaf: Leaf) -> int:
    parts = leaf.path.split("/")
    return int(parts[1]) if parts[0] == "blocks" else -1
