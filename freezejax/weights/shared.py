"""A kernel that is the kernel of another block: depth that is looped over, at no bytes."""

import re
from typing import Any

from freezejax.errors import UserError
from freezejax.ties import Tied
from freezejax.weights.kinds import Site


def share(kernel: Any, site: Site, *, block: int) -> Tied:
    """Kind "shared": the weight at the same place in another block, whatever it is there, is used here again.

    It is one weight: masked, trained, counted and stored once; the gradients of its uses add up. Each use may have
    adapters of its own over it. Source of the control: Parameter Golf, PR 1110 and PR 1113.

    >>> import jax
    >>> share(jax.numpy.ones((2, 3)), Site("blocks/4/mlp/up/kernel", jax.random.key(0), jax.random.key(1)), block=1)
    Tied(to='blocks/1/mlp/up/kernel')
    """
    if isinstance(block, bool) or not isinstance(block, int) or block < 0:
        raise UserError(f"block={block!r} must be the number of a block, from 0")
    to = re.sub(r"^blocks/\d+/", f"blocks/{block}/", site.path)
    if to == site.path:
        raise UserError(f"block={block}: a kernel cannot be shared with itself, or outside of the blocks")
    return Tied(to, tuple(kernel.shape))
