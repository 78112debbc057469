"""Bytes that the devices of a mesh exchange in one step, by kind, from the table of `freezejax.sharding`.

What one device sends where the devices of a group form a ring: (n - 1) / n of an array that is gathered or reduced and
scattered, twice that of one that is all-reduced. A frozen kernel is gathered, never reduced; a random map is neither.
"""

import math
from collections import Counter
from collections.abc import Sequence

from freezejax.cost.arguments import Leaf
from freezejax.cost.layout import MeshShape
from freezejax.cost.sites import Live, Site

KINDS = ("all-gather", "reduce-scatter", "all-reduce")


def collective_bytes(
    sites: Sequence[tuple[Site, Live]],
    leaves: Sequence[Leaf],
    mesh: MeshShape,
    *,
    tokens: int,
    itemsize: int,
    accumulation: int = 1,
) -> dict[str, int]:
    """Bytes per device and step, by kind; those of scalars are left out.

    Args:
      sites: in forward order, with what is live at each.
      leaves: the parameters.
      mesh: sizes of the axes.
      tokens: on one device, per microbatch.
      itemsize: bytes of an element in the compute dtype; gradients are summed in float32.
      accumulation: microbatches per step.

    >>> from freezejax.cost.sites import liveness
    >>> site, leaf = Site("linear", (0,), 8, "up/kernel", inner=4), Leaf("up/kernel", (4, 8), 4, False, False, ways=4)
    >>> collective_bytes([(site, Live(False, (True,)))], [leaf], MeshShape(fsdp=4), tokens=1, itemsize=4)
    {'all-gather': 192, 'reduce-scatter': 0, 'all-reduce': 0}
    """
    found: Counter[str] = Counter()
    by_path = {leaf.path: leaf for leaf in leaves}
    for site, live in sites:
        leaf = by_path.get(site.leaf)
        if leaf is not None and site.kind in ("linear", "head"):
            uses = 1 + (live.inputs[0] and site.kind == "linear")  # the embedding is gathered once, for both its uses
            found["all-gather"] += uses * _gathered(leaf, mesh, itemsize)
        if leaf is not None and live.leaf:
            is_embedding = site.kind in ("embed", "head")
            found.update(_reduced(leaf, mesh, mesh.tensor if is_embedding and leaf.shape[0] % mesh.tensor == 0 else 1))
        if site.kind in ("linear", "map"):
            found["all-reduce"] += _over_tensor(site, live, mesh, tokens * itemsize)
    return {kind: found[kind] * accumulation for kind in KINDS}


def _gathered(leaf: Leaf, mesh: MeshShape, itemsize: int) -> int:
    if "fsdp" not in mesh.spec(leaf.path, leaf.shape):
        return 0
    return leaf.size * itemsize * (mesh.fsdp - 1)


def _reduced(leaf: Leaf, mesh: MeshShape, parts: int) -> dict[str, int]:
    """The gradient summed over the rows of the batch, float32; over `tensor` it is computed in `parts`."""
    size = leaf.bytes // parts
    if "fsdp" not in mesh.spec(leaf.path, leaf.shape):
        return {"all-reduce": _ring(2 * size, mesh.batch_ways)}
    return {"reduce-scatter": size * (mesh.fsdp - 1), "all-reduce": _ring(2 * size, mesh.data)}


def _over_tensor(site: Site, live: Live, mesh: MeshShape, bytes_per_feature: int) -> int:
    """Sums of what devices of the axis `tensor` have in parts: outputs of rows, gradients of the inputs of columns."""
    forward = site.width * site.shared_input
    backward = site.inner * (site.shared and live.inputs[0])
    return _ring(2 * bytes_per_feature * (forward + backward), mesh.tensor)


def _ring(size: int, group: int) -> int:
    return math.ceil(size * (group - 1) / group)
