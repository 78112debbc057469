"""What Hypothesis draws: nested trees with masks, schedules over their leaves, optimizers."""

import re
from typing import NamedTuple

import jax
import numpy as np
import optax
from hypothesis import strategies as st
from optax import contrib

from freezejax import FreezeSchedule
from freezejax.paths import leaf_paths


class Pair(NamedTuple):
    left: object
    right: object


names = st.text("abcde", min_size=1, max_size=2)
vectors = st.integers(0, 9).map(lambda n: np.full((2,), n, np.float32))


def trees(leaves):
    """Dicts by name and by number, lists, tuples and named tuples, empty ones too."""
    return st.recursive(
        leaves,
        lambda children: st.one_of(
            st.dictionaries(names, children, max_size=3),
            st.dictionaries(st.integers(0, 12), children, max_size=3),
            st.lists(children, max_size=3),
            st.lists(children, max_size=3).map(tuple),
            st.builds(Pair, children, children),
        ),
        max_leaves=8,
    )


@st.composite
def trees_and_masks(draw, whole):
    tree = draw(whole)
    return tree, jax.tree.map(lambda _: draw(st.booleans()), tree)


@st.composite
def weights(draw):
    """Few shapes, so that operations compiled for one example serve the next. A -0.0 shows lost bits."""
    shape = draw(st.sampled_from([(2,), (3,), (2, 3), (3, 2)]))
    values = np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape).astype(np.float32)
    values.flat[0] = -0.0
    return values


weight_trees = trees(weights()).filter(lambda tree: len(jax.tree.leaves(tree)) > 1)


@st.composite
def trees_and_schedules(draw, steps):
    """A tree, and 2 to 4 entries that each say of every leaf whether it trains."""
    tree = draw(weight_trees)
    starts = [0, *sorted(draw(st.sets(st.integers(1, steps - 1), min_size=1, max_size=3)))]
    paths = [re.escape(path) for path in leaf_paths(tree)]
    return tree, FreezeSchedule([(at, [(path, draw(st.booleans())) for path in paths]) for at in starts])


MAIN = {
    "sgd momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.1),
    "muon": lambda: contrib.muon(0.02, weight_decay=0.1),
    "lion": lambda: optax.lion(0.01, weight_decay=0.1),
}
CLIPS = ("none", "before", "after", "both")


def optimizer_of(main, clip):
    parts = [MAIN[main]()]
    if clip in ("before", "both"):
        parts.insert(0, optax.clip_by_global_norm(0.1))
    if clip in ("after", "both"):
        parts.append(optax.clip_by_global_norm(0.05))
    return optax.chain(*parts)


optimizers = st.builds(optimizer_of, st.sampled_from(sorted(MAIN)), st.sampled_from(CLIPS))
