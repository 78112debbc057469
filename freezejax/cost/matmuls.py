"""FLOPs of the matmuls of a training step, exact: forward 2, dX 2 and dW 2 per weight and token, where needed."""

import itertools

from freezejax.cost.sites import Live, Site
from freezejax.models.attention import BLOCKS, MIN_QUERIES

MATMULS = ("linear", "map", "head")


def matmul_flops(site: Site, live: Live, rows: int, seq_len: int, tensor: int = 1) -> int:
    """FLOPs of a site's matmuls in one step: `rows` sequences of `seq_len` tokens, forward and backward.

    A multiplication and an addition are two FLOPs, as in XLA's cost analysis. `tensor` devices share the work of
    a site whose input or output they share.

    >>> site = Site("linear", (0,), width=8, leaf="w", inner=4)
    >>> matmul_flops(site, Live(leaf=False, inputs=(True,)), rows=1, seq_len=10)
    1280
    >>> matmul_flops(site, Live(leaf=True, inputs=(True,)), rows=1, seq_len=10)
    1920
    """
    ways = tensor if site.shared or site.shared_input else 1
    if site.kind in MATMULS:
        once = 2 * rows * seq_len * site.inner * site.width // ways
        return once * (1 + live.inputs[0]) + once * live.leaf // vocabulary_ways(site, tensor)
    if site.kind == "attention":
        q, k, v = live.inputs
        # Scores and weighted values, each over heads of `width / heads` dims; backward dV, dP, dQ, dK.
        return 2 * rows * scores(seq_len) * site.width // ways * (2 + v + (q or k) + q + k)
    return 0


def vocabulary_ways(site: Site, tensor: int) -> int:
    """Parts in which the devices of `tensor` compute the embedding's gradient: the partitioner lets each have a part.

    >>> vocabulary_ways(Site("head", (0,), 256, "tok_emb/embedding"), 2)
    2
    """
    return tensor if site.kind == "head" and site.width % tensor == 0 else 1


def query_blocks(seq_len: int) -> list[tuple[int, int]]:
    """First and last position of each block of queries, as `attention.blocked_attention` cuts them.

    >>> query_blocks(70)
    [(0, 35), (35, 70)]
    """
    blocks = max(1, min(BLOCKS, seq_len // MIN_QUERIES))
    return list(itertools.pairwise(seq_len * i // blocks for i in range(blocks + 1)))


def scores(seq_len: int) -> int:
    """Scores per head and sequence that attention computes: each block of queries against the keys up to its end.

    >>> scores(8), scores(256)  # one block; 5/8 of 256 x 256
    (64, 40960)
    """
    return sum((end - start) * end for start, end in query_blocks(seq_len))


def newton_schulz(shape: tuple[int, ...]) -> int:
    """FLOPs of the matmuls with which Muon orthogonalizes one matrix: 5 iterations of `(b A + c A A) X`, `A = X X^T`.

    >>> newton_schulz((2, 3)) == 5 * (2 * 2 * 2 * 3 + 2 * 2 * 2 * 2 + 2 * 2 * 2 * 3)
    True
    """
    short, long = sorted(shape)
    return 5 * (4 * short * short * long + 2 * short**3)
