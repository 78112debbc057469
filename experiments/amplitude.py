"""Do the amplitudes of a matrix's rows have structure, and does training one type of matrix do the work? (paper 62)

    python -m experiments.amplitude --config=experiments/configs/amplitude.py:tiny --workdir=DIR

Whether a measured figure is the paper's: `statistics.same_figure`.

Every row of every matrix that the config names is fitted by Gaussian bumps (`freezejax.analysis.amplitudes`, which
says what was chosen where the paper is silent). WORKDIR/amplitudes.md has the tables, each figure beside its level of
chance: the same rows with their columns in another order, and white noise under bumps of several widths. The runs
fine-tune one type of matrix at a time, everything, and nothing: the efficiency of a type is its share of what full
fine-tuning gains.
"""

import functools
import operator
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import bases, diagnostics
from experiments.bases import Base
from experiments.crystallization import chosen
from experiments.diagnostics import WRITING, name_of
from experiments.engine import cli, study
from experiments.engine.variants import Contrast, Study, Variant
from experiments.report.statistics import Interval, interval, same_figure
from experiments.report.table import Column, markdown, with_ci
from freezejax import analysis, models
from freezejax.atomic import write_atomically
from freezejax.paths import PyTree, by_path
from freezejax.schedules import FreezeSchedule

FULL, NOTHING, FILE = "full", "nothing", "amplitudes.md"
# Paper 62's figures: of one matrix PR, first component in percent, largest correlation, kurtosis; of all of them.
PAPER = {
    "L0_attn_c_attn": (2.95, 53.9, 0.742, 89.0),
    "L3_attn_c_attn": (2.84, 53.3, 0.734, 150.9),
    "L4_attn_c_proj": (1.03, 98.5, 0.997, 246.4),
    "L5_attn_c_proj": (3.41, 48.8, 0.810, 56.7),
    "L7_attn_c_proj": (6.18, 25.8, 0.424, 1.3),
}
PAPER_ALL = {"PR": 4.26, "first component, %": 42.5, "components for 95 %": 7, "R2": -0.027, "alignment": 0.674}
PAPER_EFFICIENCY = {"attn_c_proj": (35.4, 5.2)}  # percent of the gain, with so many percent of the parameters
_OF_PAPER = ("PR", "first component, %", "largest correlation", "kurtosis")  # what PAPER has of a matrix


def make_study(config: ConfigDict, vocab_size: int, base: Base) -> Study:
    """Everything trained, nothing, and each type of matrix alone."""
    model, train, start = base.model(config, vocab_size), config.train.to_dict(), base.start()
    kinds = dict.fromkeys(bases.short(k)[1] for k in bases.kernels(models.build(**model).abstract_params()))
    only = {kind: rf"blocks/\d+/{kind.replace('_', '[/_]')}/kernel" for kind in kinds}
    rules = {FULL: [(".*", True)], NOTHING: [(".*", False)]}
    rules |= {f"only_{kind}": [(pattern, True), (".*", False)] for kind, pattern in only.items()}
    variants = [Variant(name, model, train, FreezeSchedule([(0, rule)]), start=start) for name, rule in rules.items()]
    contrasts = [Contrast(v.name, NOTHING, "what training this type alone gains") for v in variants[2:]]
    told = functools.partial(findings, sizes=_shares(model, only))
    return Study("amplitude", variants, contrasts, files=False, sweep=config.sweep, findings=told)


def _shares(model: Mapping[str, Any], only: Mapping[str, str]) -> dict[str, float]:
    """Share of each type in all parameters, percent."""
    sizes = {path: leaf.size for path, leaf in by_path(models.build(**model).abstract_params()).items()}
    total = sum(sizes.values())
    of_kind = {k: sum(n for path, n in sizes.items() if re.fullmatch(pattern, path)) for k, pattern in only.items()}
    return {f"only_{kind}": 100 * size / total for kind, size in of_kind.items()}


def findings(found: Mapping[str, Any], sizes: Mapping[str, float]) -> list[str]:
    """What each type gains of what everything gains, seed by seed; nothing where everything gains nothing."""
    field = f"val_{found['figures'][0]['name']}"
    loss = {row["name"]: {run["seed"]: run[field] for run in row["runs"]} for row in found["rows"]}
    if not {FULL, NOTHING} <= loss.keys():
        return []
    full, nothing = loss[FULL], loss[NOTHING]
    seeds = [seed for seed in full if seed in nothing]
    if not seeds or any(nothing[seed] <= full[seed] for seed in seeds):
        return []

    def told(name: str, share: float) -> str:
        own = loss[name]
        gain = interval([100 * (nothing[s] - own[s]) / (nothing[s] - full[s]) for s in seeds if s in own])
        kind = name.removeprefix("only_")
        text = f"{kind} {with_ci(*gain, 1)} % with {share:.1f} % of the parameters"
        if kind in PAPER_EFFICIENCY:
            gained, of_parameters = PAPER_EFFICIENCY[kind]
            text += f" (paper 62: {gained} % with {of_parameters} %: {same_figure(gain, gained)})"
        return text

    ends = " to ".join(f"{np.mean([each[seed] for seed in seeds]):.4f}" for each in (nothing, full))
    return [
        f"Of what full fine-tuning gains ({ends}), one type of matrix alone gains: "
        f"{'; '.join(told(name, share) for name, share in sizes.items() if loss.get(name, {}).keys() & set(seeds))}."
    ]


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


def tables(base: Base, config: ConfigDict) -> str:
    """Both tables, as Markdown: every matrix, and all that write to the residual stream together."""
    corpus, params = study.load_corpus(config, base.tokenizer), base.params()
    model = base.model(config, corpus.tokenizer.vocab_size)
    rows_of = diagnostics.matrices_of(params)
    items, writing = [], []
    width = params["tok_emb"]["embedding"].shape[1]
    for kernel in chosen(model, config.amplitudes.pattern):
        item, values = measure(rows_of[kernel], config)
        items.append({"matrix": name_of(kernel), **item})
        if rows_of[kernel].shape[0] == width and kernel.split("/")[-2] in WRITING:
            writing.append((kernel, values))
    together = dict(_together(writing, rows_of, params, corpus, config)) if writing else {}
    headings = [heading for heading in items[0] if heading != "matrix"]
    columns = [Column("matrix", operator.itemgetter("matrix"), kind="name")]
    columns += [Column(h, operator.itemgetter(h), "{:.3f}".format) for h in headings]
    columns.append(Column("paper: PR, first %, correlation, kurtosis", lambda item: PAPER.get(item["matrix"]), str))
    columns.append(Column("reproduced", _reproduced, kind="words"))
    texts = [markdown(columns, items)]
    if together:
        lines = [{"figure": name, "ours": ours, "paper": PAPER_ALL.get(name)} for name, ours in together.items()]
        columns = [Column("figure", operator.itemgetter("figure"), kind="name")]
        columns.append(Column("ours", operator.itemgetter("ours"), lambda ours: with_ci(ours.mean, ours.ci95, 3)))
        columns.append(Column("paper", operator.itemgetter("paper"), "{:.3f}".format))
        columns.append(Column("verdict", _verdict, kind="mark"))
        texts.append(f"All rows of {', '.join(name_of(kernel) for kernel, _ in writing)} together:")
        texts.append(markdown(columns, lines))
        texts.append("The participation ratio of their amplitudes, by the width of a bump:")
        texts.append(_by_width(jnp.concatenate([rows_of[kernel] for kernel, _ in writing]), config))
    return "\n\n".join(texts) + "\n"


def _reproduced(item: Mapping[str, Any]) -> str | None:
    """Which of the paper's figures of a matrix ours are."""
    if (paper := PAPER.get(item["matrix"])) is None:
        return None
    same = [n for n, claimed in zip(_OF_PAPER, paper, strict=True) if same_figure(item[n], claimed) == "reproduced"]
    return f"{len(same)} of {len(paper)}" + (f": {', '.join(same)}" if same else "")


def _verdict(item: Mapping[str, Any]) -> str | None:
    return None if item["paper"] is None else same_figure(item["ours"], item["paper"])


def _by_width(rows: jax.Array, config: ConfigDict) -> str:
    noise = jax.random.normal(jax.random.key(0), rows.shape)
    ratio = lambda rows, width: float(analysis.participation_ratio(_fit(rows, config, width).values))  # noqa: E731
    items = [
        {"width": width, "PR": ratio(rows, width), "PR of white noise": ratio(noise, width)}
        for width in config.amplitudes.widths
    ]
    return markdown([Column(h, operator.itemgetter(h), "{:.2f}".format) for h in items[0]], items)


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


def main() -> None:
    """Makes the base if need be, runs every variant, and writes the tables of its amplitudes."""
    base = bases.of_flags()
    if (workdir := study.main(functools.partial(make_study, base=base), tokenizer=base.tokenizer)) is None:
        return
    path = Path(workdir) / FILE
    write_atomically(path, tables(base, flags.FLAGS.config))
    print(f"The amplitudes: {path}")


if __name__ == "__main__":
    cli.define_study_flags("experiments/configs/amplitude.py:tiny")
    cli.run(main)
