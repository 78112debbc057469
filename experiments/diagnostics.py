"""What is measured of every matrix before it trains and after, and whether it tells what freezing it costs.

Of the base: what its numbers say, and how the loss depends on them. After full fine-tuning: the latter once more, and
how far the matrix has gone. Whoever has those has trained the whole model already: they explain, and save no run.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import bases
from experiments.bases import Base
from experiments.engine import study
from experiments.engine.variants import Measure
from experiments.report import statistics
from freezejax import analysis, models, trainable_mask
from freezejax.atomic import write_atomically
from freezejax.data import Corpus
from freezejax.paths import PyTree
from freezejax.roles import weights
from freezejax.training.batches import TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.weights import matrix

FILE = "diagnostics.json"
WRITING = ("c_proj", "proj", "o_proj", "down_proj", "out", "down")  # matrices that write to the residual stream
Diagnostics = Mapping[str, Mapping[str, float]]  # matrix, as `name_of` calls it -> measure -> value
# Of a matrix [out, in], one sample per output as in torch's layout, and of the amplitudes of its rows.
_OF_WEIGHTS: dict[str, Callable[[jax.Array], Any]] = {
    "participation ratio": analysis.participation_ratio,
    "first component": analysis.first_share,
    "components for 95 %": analysis.components_for,
    "stable rank": analysis.stable_rank,
    "norm": jnp.linalg.norm,
}
_OF_AMPLITUDES: dict[str, Callable[[jax.Array], Any]] = {
    "amplitude participation ratio": analysis.participation_ratio,
    "amplitude first component": analysis.first_share,
    "largest correlation": analysis.max_correlation,
    "kurtosis": analysis.kurtosis,
}
_ALIGNMENT, _SLOPES, _AFTER = "alignment with E^T E", ("gradient norm", "Fisher"), "{}, after"
_AXES = 8  # of each side, that are compared


def name_of(kernel: str) -> str:
    """What a study calls a matrix.

    >>> name_of("blocks/4/attn/c_proj/kernel")
    'L4_attn_c_proj'
    """
    block, kind = bases.short(kernel)
    return f"L{block}_{kind}"


def matrices_of(params: PyTree) -> dict[str, jax.Array]:
    """Every matrix inside the blocks by its path, as [out, in], float32."""
    of_weights = dict(weights(params))
    return {path: matrix(of_weights.get(path, _at(params, path))).T for path in bases.kernels(params)}


def of_base(base: Base, config: ConfigDict, workdir: Path) -> Diagnostics:
    """The measures of a base model's matrices, with gradients on the text to be fine-tuned on; kept in the workdir."""
    path, corpus = workdir / FILE, study.load_corpus(config, base.tokenizer)
    fields = (config.train.seq_len, config.train.batch_size, config.diagnostics.batches)
    names = [*_OF_WEIGHTS, *_OF_AMPLITUDES, _ALIGNMENT, *_SLOPES]
    of = {"base": base.fingerprint(), "data": corpus.fingerprint, "batches": list(fields), "measures": names}
    if path.exists() and (kept := json.loads(path.read_text(encoding="utf-8"))).get("of") == of:
        found: Diagnostics = kept["matrices"]
        return found
    params = base.params()
    slopes, embedding = _slopes(base, config, corpus, params), params["tok_emb"]["embedding"]
    axes = analysis.principal_axes(embedding, min(_AXES, *embedding.shape), centered=False)
    told = {}
    for kernel, rows in matrices_of(params).items():
        amplitudes = analysis.fit_amplitudes(rows).values
        values = {name: float(measure(rows)) for name, measure in _OF_WEIGHTS.items()}
        values |= {name: float(measure(amplitudes)) for name, measure in _OF_AMPLITUDES.items()}
        told[name_of(kernel)] = {**values, **_aligned(kernel, rows, axes), **slopes[kernel]}
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"of": of, "matrices": told}, indent=1) + "\n")
    return told


def after(base: Base, config: ConfigDict) -> dict[str, Measure]:
    """`Variant.measures` of the run that fine-tunes everything: how far each matrix has moved, and the slopes there."""
    last: list[Any] = [None, {}]  # weights, and their slopes: one computation for both measures

    def slopes(params: PyTree) -> Mapping[str, Mapping[str, float]]:
        if last[0] is not params:
            last[:] = [params, _slopes(base, config, study.load_corpus(config, base.tokenizer), params)]
        return last[1]

    def of_slope(slope: str) -> Measure:
        return lambda params: {name_of(kernel): each[slope] for kernel, each in slopes(params).items()}

    def moved(params: PyTree) -> dict[str, float]:
        far = analysis.moved(params, base.params())
        return {name_of(kernel): far[kernel] for kernel in bases.kernels(params)}

    return {"moved": moved, **{_AFTER.format(slope): of_slope(slope) for slope in _SLOPES}}


def write_after(workdir: Path, measured: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Puts what `after` measured, means over runs, beside the measures of the base."""
    path = workdir / FILE
    kept = json.loads(path.read_text(encoding="utf-8"))
    write_atomically(path, json.dumps({**kept, "after": _by_matrix(measured)}, indent=1) + "\n")


def _by_matrix(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    """A row's `measured` (measure -> matrix -> value of each run) as matrix -> measure -> mean."""
    names = dict.fromkeys(name for of_matrix in measured.values() for name in of_matrix)
    return {name: {m: float(np.mean(each[name])) for m, each in measured.items() if name in each} for name in names}


def _slopes(base: Base, config: ConfigDict, corpus: Corpus, params: PyTree) -> dict[str, dict[str, float]]:
    """Gradient norm and Fisher information of every matrix, on the first batches to be fine-tuned on."""
    model = models.build(**base.model(config, corpus.tokenizer.vocab_size))
    source = TokenBatches(corpus.train, TrainConfig.from_mapping(config.train.to_dict()))
    batches = [next(source) for _ in range(config.diagnostics.batches)]

    def loss(params: PyTree, batch: Any) -> jax.Array:
        value: jax.Array = model.apply(params, batch["inputs"], targets_BxT=batch["targets"])
        return jnp.mean(value)

    mask = trainable_mask(params, [*((kernel, True) for kernel in bases.kernels(params)), (".*", False)])
    found = analysis.sensitivities(loss, params, batches, mask)
    return {kernel: dict(zip(_SLOPES, slope, strict=True)) for kernel, slope in found.items()}


def _aligned(kernel: str, rows: jax.Array, axes: jax.Array) -> dict[str, float]:
    """How far a matrix's first axes in the residual stream are those of E^T E; nothing where it does not lie in there.

    What writes to the stream lies in it with its outputs, what reads from it with its inputs.
    """
    in_stream = rows.T if kernel.split("/")[-2] in WRITING else rows
    if in_stream.shape[1] != axes.shape[1]:
        return {}
    return {_ALIGNMENT: analysis.alignment(analysis.principal_axes(in_stream, min(_AXES, *in_stream.shape)), axes)}


def predictions(
    found: Mapping[str, Any],
    diagnostics: Diagnostics,
    later: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> list[str]:
    """Whether any measure orders matrices by what freezing each alone costs: a sentence, by rule.

    `later` is what was measured after full fine-tuning. Spearman's correlation with an interval that holds for all
    measures together (Bonferroni); a measure predicts where its interval leaves out zero.
    """
    costs = {row["name"]: row["delta_pct"] for row in found["rows"] if row["name"] in diagnostics}
    if len(costs) < 5:
        return []
    then = _by_matrix(later or {})
    told = {name: {**diagnostics[name], **then.get(name, {})} for name in costs}
    measures = list(dict.fromkeys(measure for values in told.values() for measure in values))
    texts, predicts = [], []
    for measure in measures:
        names = [name for name in costs if measure in told[name]]
        values = [told[name][measure] for name in names]
        rank = statistics.rank_correlation(values, [costs[name] for name in names], tests=len(measures))
        if rank is None:
            continue
        of_some = f" (of {len(names)})" * (len(names) < len(costs))
        texts.append(f"{measure}{of_some} {rank.value:+.2f} [{rank.low:+.2f}, {rank.high:+.2f}]")
        predicts += [measure] * (rank.low > 0 or rank.high < 0)
    verdict = f"{', '.join(predicts)} predict" + "s" * (len(predicts) == 1) if predicts else "none predicts"
    return [
        f"Does a measure tell what freezing a matrix costs? Over {len(costs)} matrices, rank correlation "
        f"with its cost: {'; '.join(texts)}. By intervals for all together, {verdict} it."
    ]


def _at(params: PyTree, path: str) -> Any:
    node = params
    for part in path.split("/"):
        node = node[int(part) if part.isdecimal() and int(part) in node else part]
    return node
