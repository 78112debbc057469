"""The amplitudes of the rows of a base's matrices, for `experiments.amplitude`: what is measured, and its tables.

Every row of every matrix that the config names is fitted by Gaussian bumps (`freezejax.analysis.amplitudes`, which
says what was chosen where the paper is silent). Each figure stands beside its level of chance: the same rows with
their columns in another order, and white noise under bumps of several widths. Whether a measured figure is the
paper's: `statistics.same_figure`.
"""

import operator
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import diagnostics
from experiments.bases import Base
from experiments.crystallization import chosen
from experiments.diagnostics import WRITING, name_of
from experiments.engine import study
from experiments.engine.fields import check_range
from experiments.report import claimed
from experiments.report.claimed import Claim
from experiments.report.statistics import Interval, interval, same_figure
from experiments.report.table import Column, markdown, with_ci
from freezejax import analysis
from freezejax.paths import PyTree

FILE, SOURCE = "amplitudes.md", "paper 62 (amplitudes)"
# Paper 62's figures: of one matrix PR, first component in percent, largest correlation, kurtosis; of all of them.
PAPER = {
    "L0_attn_c_attn": (2.95, 53.9, 0.742, 89.0),
    "L3_attn_c_attn": (2.84, 53.3, 0.734, 150.9),
    "L4_attn_c_proj": (1.03, 98.5, 0.997, 246.4),
    "L5_attn_c_proj": (3.41, 48.8, 0.810, 56.7),
    "L7_attn_c_proj": (6.18, 25.8, 0.424, 1.3),
}
PAPER_ALL = {"PR": 4.26, "first component, %": 42.5, "components for 95 %": 7, "R2": -0.027, "alignment": 0.674}
_OF_PAPER = ("PR", "first component, %", "largest correlation", "kurtosis")  # what PAPER has of a matrix


class Measured(dict[str, Any]):
    """The row of one matrix, or of all together, by the heading of its columns."""


def measure(rows: jax.Array, config: ConfigDict) -> tuple[Measured, jax.Array]:
    """What the amplitudes of the rows of a matrix [out, in] say, those of the same rows shuffled beside them."""
    fit = _fit(rows, config)
    order = jax.random.permutation(jax.random.key(0), rows.shape[1])
    shuffled = _fit(rows[:, order], config)
    return Measured(
        {
            "PR": float(analysis.participation_ratio(fit.values)),
            "PR, shuffled": float(analysis.participation_ratio(shuffled.values)),
            "first component, %": 100 * float(analysis.first_share(fit.values)),
            "largest correlation": analysis.max_correlation(fit.values),
            "kurtosis": analysis.kurtosis(fit.values),
            "error left": float(jnp.mean(fit.residual)),
        }
    ), fit.values


def _fit(rows: jax.Array, config: ConfigDict, width: float | None = None) -> analysis.Amplitudes:
    chosen_width = config.amplitudes.widths[1] if width is None else width
    return analysis.fit_amplitudes(rows, count=config.amplitudes.bumps, width=chosen_width)


def corpus_statistics(params: PyTree, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Of each residual dimension what the corpus and the embedding E say without training: [D, 10].

    The mean and the deviation of E's column under the corpus's token frequencies, and the dimension's entries in the
    first eight eigenvectors of E^T E so weighted.
    """
    counts = np.bincount(np.asarray(tokens[: 2**20]).astype(np.int64), minlength=vocab_size)[:vocab_size]
    share_V = counts / counts.sum()
    embedding_VxD = np.asarray(params["tok_emb"]["embedding"], np.float64)[:vocab_size]
    mean_D = share_V @ embedding_VxD
    deviation_D = np.sqrt(share_V @ np.square(embedding_VxD - mean_D))
    weighted = jnp.asarray(np.sqrt(share_V)[:, None] * embedding_VxD, jnp.float32)
    axes = analysis.principal_axes(weighted, min(8, embedding_VxD.shape[1]), centered=False)
    return np.column_stack([mean_D, deviation_D, np.asarray(axes).T])


class OfBase(NamedTuple):
    """What is measured of a base."""

    matrices: list[Measured]
    writing: list[str]  # the matrices that write to the residual stream
    together: Mapping[str, Interval]  # of all rows of those
    by_width: list[dict[str, float]]  # their participation ratio and that of white noise


def check(config: ConfigDict, model: Mapping[str, Any]) -> None:
    """Refuses what the tables could not be made with, before any run."""
    check_range(config, "amplitudes.bumps", 1)
    check_range(config, "amplitudes.widths", 1e-3, 1e3, count=2)
    chosen(model, config.amplitudes.pattern, "config.amplitudes.pattern")


def of_base(base: Base, config: ConfigDict) -> OfBase:
    """Measures every matrix that the config names, and all that write to the residual stream together."""
    corpus, params = study.load_corpus(config, base.tokenizer), base.params()
    model = base.model(config, corpus.tokenizer.vocab_size)
    rows_of = diagnostics.matrices_of(params)
    items, writing = [], []
    width = params["tok_emb"]["embedding"].shape[1]
    for kernel in chosen(model, config.amplitudes.pattern, "config.amplitudes.pattern"):
        item, values = measure(rows_of[kernel], config)
        items.append(Measured(matrix=name_of(kernel), **item))
        if rows_of[kernel].shape[0] == width and kernel.split("/")[-2] in WRITING:
            writing.append((kernel, values))
    names = [name_of(kernel) for kernel, _ in writing]
    if not writing:
        return OfBase(items, names, {}, [])
    together = dict(_together(writing, rows_of, params, corpus, config))
    return OfBase(
        items, names, together, _by_width(jnp.concatenate([rows_of[kernel] for kernel, _ in writing]), config)
    )


def as_markdown(found: OfBase) -> str:
    """Every matrix, and all that write to the residual stream together."""
    headings = [heading for heading in found.matrices[0] if heading != "matrix"]
    columns = [Column("matrix", operator.itemgetter("matrix"), kind="name")]
    columns += [Column(h, operator.itemgetter(h), "{:.3f}".format) for h in headings]
    columns.append(Column("paper: PR, first %, correlation, kurtosis", lambda item: PAPER.get(item["matrix"]), str))
    columns.append(Column("reproduced", _reproduced, kind="words"))
    texts = [markdown(columns, found.matrices)]
    if found.together:
        lines = [{"figure": name, "ours": ours, "paper": PAPER_ALL.get(name)} for name, ours in found.together.items()]
        columns = [Column("figure", operator.itemgetter("figure"), kind="name")]
        columns.append(Column("ours", operator.itemgetter("ours"), lambda ours: with_ci(ours.mean, ours.ci95, 3)))
        columns.append(Column("paper", operator.itemgetter("paper"), "{:.3f}".format))
        columns.append(Column("verdict", _verdict, kind="mark"))
        texts.append(f"All rows of {', '.join(found.writing)} together:")
        texts.append(markdown(columns, lines))
        texts.append("The participation ratio of their amplitudes, by the width of a bump:")
        columns = [Column(h, operator.itemgetter(h), "{:.2f}".format) for h in found.by_width[0]]
        texts.append(markdown(columns, found.by_width))
    return "\n\n".join(texts) + "\n"


def claims(found: OfBase, text: str) -> Iterator[Claim]:
    """The paper's figures of the amplitudes, ours beside each; `text` is what the base is fine-tuned on."""
    for item in found.matrices:
        for name, figure in zip(_OF_PAPER, PAPER.get(item["matrix"], ()), strict=False):
            of = f"{item['matrix']} (amplitude, {text})"
            yield claimed.of_figure(SOURCE, f"{name} of {item['matrix']}", figure, item[name], of, digits=3)
    for name, figure in PAPER_ALL.items():
        if name in found.together:
            of = f"all rows that write to the residual stream (amplitude, {text})"
            yield claimed.of_figure(SOURCE, f"{name} of all c_proj", figure, found.together[name], of, digits=3)


def _reproduced(item: Mapping[str, Any]) -> str | None:
    """Which of the paper's figures of a matrix ours are."""
    if (paper := PAPER.get(item["matrix"])) is None:
        return None
    same = [n for n, claimed in zip(_OF_PAPER, paper, strict=True) if same_figure(item[n], claimed) == "reproduced"]
    return f"{len(same)} of {len(paper)}" + (f": {', '.join(same)}" if same else "")


def _verdict(item: Mapping[str, Any]) -> str | None:
    return None if item["paper"] is None else same_figure(item["ours"], item["paper"])


def _by_width(rows: jax.Array, config: ConfigDict) -> list[dict[str, float]]:
    noise = jax.random.normal(jax.random.key(0), rows.shape)
    ratio = lambda rows, width: float(analysis.participation_ratio(_fit(rows, config, width).values))  # noqa: E731
    return [
        {"width": width, "PR": ratio(rows, width), "PR of white noise": ratio(noise, width)}
        for width in config.amplitudes.widths
    ]


def _together(
    writing: list[tuple[str, jax.Array]], rows_of: Mapping[str, jax.Array], params: PyTree, corpus: Any, config: Any
) -> Iterator[tuple[str, Interval]]:
    whole = jnp.concatenate([values for _, values in writing])
    yield "PR", Interval(float(analysis.participation_ratio(whole)), None)
    yield "first component, %", Interval(100 * float(analysis.first_share(whole)), None)
    yield "components for 95 %", Interval(analysis.components_for(whole), None)
    features = corpus_statistics(params, corpus.train, params["tok_emb"]["embedding"].shape[0])
    scores = [np.asarray(values @ analysis.principal_axes(whole, 1).T) for _, values in writing]
    tiled, dimension = np.tile(features, (len(writing), 1)), np.tile(np.arange(len(features)), len(writing))
    yield "R2", Interval(analysis.cross_validated_r2(tiled, np.concatenate(scores), groups=dimension), None)
    # The axes of the rows [out, in] of a matrix that reads the stream lie in the space of E^T E: of those that write to
    # it, the columns do.
    count = min(8, features.shape[0])
    embedded = analysis.principal_axes(params["tok_emb"]["embedding"], count, centered=False)
    axes = [analysis.principal_axes(rows_of[kernel].T, count) for kernel, _ in writing]
    yield "alignment", interval([analysis.alignment(own, embedded) for own in axes])  # over matrices
    yield "alignment of random axes", Interval(analysis.chance_alignment(count, count, embedded.shape[1]), None)
    yield "amplitudes", Interval(float(whole.size), None)
