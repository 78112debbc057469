"""What is measured of every matrix of a base before anything is frozen, and whether it tells what freezing costs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import bases
from experiments.bases import Base
from experiments.engine import study
from experiments.report import statistics
from freezejax import analysis, models, trainable_mask
from freezejax.atomic import write_atomically
from freezejax.paths import PyTree
from freezejax.roles import weights
from freezejax.training.batches import TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.weights import matrix

FILE = "diagnostics.json"
Diagnostics = Mapping[str, Mapping[str, float]]  # matrix, as `name_of` calls it -> measure -> value
# Of a matrix [out, in], one sample per output as in torch's layout.
_OF_WEIGHTS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "participation ratio": analysis.participation_ratio,
    "first component": analysis.first_share,
    "stable rank": analysis.stable_rank,
    "norm": jnp.linalg.norm,
    "amplitude participation ratio": lambda rows: analysis.participation_ratio(analysis.fit_amplitudes(rows).values),
}


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
    of = {"model": str(base.path), "data": corpus.fingerprint, "batches": list(fields)}
    if path.exists() and (kept := json.loads(path.read_text(encoding="utf-8"))).get("of") == of:
        found: Diagnostics = kept["matrices"]
        return found
    params = base.params()
    model = models.build(**base.model(config, corpus.tokenizer.vocab_size))
    kernels = bases.kernels(params)
    train_config = TrainConfig.from_mapping(config.train.to_dict())
    source = TokenBatches(corpus.train, train_config)
    batches = [next(source) for _ in range(config.diagnostics.batches)]

    def loss(params: PyTree, batch: Any) -> jax.Array:
        value: jax.Array = model.apply(params, batch["inputs"], targets_BxT=batch["targets"])
        return jnp.mean(value)

    mask = trainable_mask(params, [*((kernel, True) for kernel in kernels), (".*", False)])
    slopes = analysis.sensitivities(loss, params, batches, mask)
    told = {}
    for kernel, rows in matrices_of(params).items():
        of_weights = {name: float(measure(rows)) for name, measure in _OF_WEIGHTS.items()}
        slope = slopes[kernel]
        told[name_of(kernel)] = {**of_weights, "gradient norm": slope.gradient_norm, "Fisher": slope.fisher}
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"of": of, "matrices": told}, indent=1) + "\n")
    return told


def predictions(found: Mapping[str, Any], diagnostics: Diagnostics) -> list[str]:
    """Whether any measure orders matrices by what freezing each alone costs: a sentence, by rule.

    Spearman's correlation with an interval that holds for all measures together (Bonferroni); a measure predicts where
    its interval leaves out zero.
    """
    costs = {row["name"]: row["delta_pct"] for row in found["rows"] if row["name"] in diagnostics}
    if len(costs) < 5:
        return []
    measures = list(next(iter(diagnostics.values())))
    texts, predicts = [], []
    for measure in measures:
        values = [diagnostics[name][measure] for name in costs]
        rank = statistics.rank_correlation(values, list(costs.values()), tests=len(measures))
        if rank is None:
            continue
        texts.append(f"{measure} {rank.value:+.2f} [{rank.low:+.2f}, {rank.high:+.2f}]")
        predicts += [measure] * (rank.low > 0 or rank.high < 0)
    verdict = f"{', '.join(predicts)} predict" + "s" * (len(predicts) == 1) if predicts else "none predicts"
    return [
        f"Does a measure of the base tell what freezing a matrix costs? Over {len(costs)} matrices, rank correlation "
        f"with its cost: {'; '.join(texts)}. By intervals for all together, {verdict} it."
    ]


def _at(params: PyTree, path: str) -> Any:
    node = params
    for part in path.split("/"):
        node = node[int(part) if part.isdecimal() and int(part) in node else part]
    return node
