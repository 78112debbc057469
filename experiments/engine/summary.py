"""From finished runs to summary.json: rows, paired contrasts, verdicts by rule."""

import importlib
import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.engine.variants import Contrast, Paper, Run, Study, Variant
from experiments.engine.workdir import read_metrics, read_result
from experiments.report.statistics import (
    Figures,
    Interval,
    base_seed_sd,
    interval,
    over_base_seeds,
    paired_over_seeds,
    training_seed_sd,
    verdict,
)
from freezejax.data import Corpus
from freezejax.data.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.version import versions

Result = dict[str, Any]
_PACKAGES = ("freezejax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_SIZES = ("trainable_params", "frozen_params", "seeded_params", "stored_bytes_predicted")
_LOSSES = ("val_ce", "val_bpb", "packed_ce", "packed_bpb")


def write(study: Study, config: ConfigDict, corpus: Corpus, workdir: Path) -> dict[str, Any]:
    """Writes summary.json and the merged metrics.jsonl from the runs finished so far; returns the summary.

    The schema is docs/summary.md.
    """
    results = {variant.name: _results(workdir, variant.name) for variant in study.variants}
    finished = [variant for variant in study.variants if results[variant.name]]
    baseline = results[study.variants[0].name]
    found = {
        "experiment": study.name,
        "scale": config.scale,
        "command": command(config),
        "versions": {**versions(*_PACKAGES), "python": platform.python_version()},
        # The bits of a run depend on how many cores share a matmul, the figures do not.
        "machine": {"device": jax.devices()[0].device_kind, "cpu_cores": len(os.sched_getaffinity(0))},
        "data": {
            "source": corpus.source,
            "tokenizer": corpus.tokenizer.name,
            "fingerprint": corpus.fingerprint,
            "train_tokens": len(corpus.train),
            **{field: baseline[0][field] if baseline else None for field in ("tokens", "bytes")},
        },
        "rows": [_row(variant, results, baseline) for variant in finished],
        "contrasts": [
            _contrast(contrast, results)
            for contrast in study.contrasts
            if results[contrast.variant] and results[contrast.reference]
        ],
    }
    write_atomically(workdir / "summary.json", json.dumps(found, indent=2) + "\n")
    _merge_metrics(study, results, workdir)
    return found


def command(config: ConfigDict) -> str:
    """The command line that makes this study again, with every field that differs from its scale's default.

    >>> from experiments.configs.progressive import get_config
    >>> config = get_config("tiny")
    >>> config.train.steps = 30
    >>> command(config)
    'uv run python -m experiments.progressive --config=...progressive.py:tiny --config.train.steps=30 --workdir=DIR'
    """
    name, scale = config.experiment, config.scale
    try:
        defaults = importlib.import_module(f"experiments.configs.{name}").get_config(scale)
    except (ImportError, UserError):  # a config file of the user's own, whose path is nobody else's business
        return f"uv run python -m experiments.{name} --config=FILE.py:{scale} --workdir=DIR"
    before, now = flatten(json.loads(defaults.to_json())), flatten(json.loads(config.to_json()))
    changed = [
        f"--config.{field.replace('/', '.')}={value}" for field, value in now.items() if before.get(field) != value
    ]
    start = f"uv run python -m experiments.{name} --config=experiments/configs/{name}.py:{scale}"
    return " ".join([start, *(shlex.quote(flag) for flag in changed), "--workdir=DIR"])


def _results(workdir: Path, variant: str) -> list[Result]:
    paths = (workdir / "runs" / variant).glob("seed_*/result.json")
    return sorted((read_result(path.parent) for path in paths), key=_run)


def _run(result: Result) -> tuple[int, int]:
    return result["seed"], result["base_seed"]


def _row(variant: Variant, every: Mapping[str, Sequence[Result]], baseline: Sequence[Result]) -> dict[str, Any]:
    results = every[variant.name]
    times = [result["step_ms_median"] for result in results if result["step_ms_median"] is not None]
    step_ms = sorted(times)[len(times) // 2] if times else None
    tokens_per_step = results[0]["train_tokens"] / results[0]["steps"]
    effect = _paired(results, baseline, "val_ce")
    return {
        "name": variant.name,
        "seeds": sorted({result["seed"] for result in results}),
        "base_seeds": sorted({result["base_seed"] for result in results}),
        **{name: value for field in _LOSSES for name, value in _mean(results, field).items()},
        "training_seed_sd": training_seed_sd(_figures(results, "val_bpb")),
        "base_seed_sd": base_seed_sd(_figures(results, "val_bpb")),
        "delta_pct": effect and effect.mean,
        "delta_pct_ci95": effect and effect.ci95,
        **{field: results[0][field] for field in _SIZES},
        "artifact_bytes": round(interval([result["artifact_bytes"] for result in results]).mean),
        "steps": results[0]["steps"],
        "train_tokens": results[0]["train_tokens"],
        "step_ms_median": step_ms,
        "tokens_per_second": step_ms and 1e3 * tokens_per_step / step_ms,
        "params_sha256": [result["params_sha256"] for result in results],
        "model": results[0]["model"],
        "phases": results[0]["phases"],
        **_judged_row(variant, every, effect),
    }


def _judged_row(variant: Variant, every: Mapping[str, Sequence[Result]], effect: Interval | None) -> dict[str, Any]:
    """The paper's figure, judged by our effect against the variant that stands for the paper's reference."""
    if not variant.paper_reference:
        return _judged(variant.paper, effect)
    against = _paired(every[variant.name], every[variant.paper_reference], "val_ce")
    found = _judged(variant.paper, against)
    if against is None or not found:
        return {}
    ours = {"reference": variant.paper_reference, "effect_pct": against.mean, "effect_pct_ci95": against.ci95}
    return {**found, "judged": ours}


def _contrast(contrast: Contrast, results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    effect, packed = (
        _paired(results[contrast.variant], results[contrast.reference], field) for field in ("val_ce", "packed_bpb")
    )
    return {
        "variant": contrast.variant,
        "reference": contrast.reference,
        "question": contrast.question,
        "effect_pct": effect and effect.mean,
        "effect_pct_ci95": effect and effect.ci95,
        "packed_effect_pct": packed and packed.mean,
        "packed_effect_pct_ci95": packed and packed.ci95,
        **_judged(contrast.paper, effect),
    }


def _judged(paper: Paper | None, effect: Interval | None) -> dict[str, Any]:
    if paper is None or effect is None:
        return {}
    figures = {
        "source": paper.source,
        "value": paper.value,
        "delta_pct": paper.delta_pct,
        "claim": paper.claim,
    }
    return {"paper": figures, "verdict": verdict(effect, paper.delta_pct)}


def _paired(results: Sequence[Result], reference: Sequence[Result], field: str) -> Interval | None:
    same_maps = all(side and _has_maps(side[0]["model"]) for side in (results, reference))
    return paired_over_seeds(_figures(results, field), _figures(reference, field), same_maps=same_maps)


def _has_maps(model: Mapping[str, Any]) -> bool:
    return any(rule["kind"] == "map" for rule in model.get("weights", ()))


def _mean(results: Sequence[Result], field: str) -> dict[str, float | None]:
    found = interval(list(over_base_seeds(_figures(results, field)).values()))
    return {f"{field}_mean": found.mean, f"{field}_ci95": found.ci95}


def _figures(results: Sequence[Result], field: str) -> Figures:
    return {_run(result): result[field] for result in results}


def _merge_metrics(study: Study, results: Mapping[str, Sequence[Result]], workdir: Path) -> None:
    lines = [
        json.dumps({**run._asdict(), **record})
        for variant in study.variants
        for result, run in ((result, Run(variant.name, *_run(result))) for result in results[variant.name])
        for record in read_metrics(workdir / "runs" / variant.name / run.folder, result)
    ]
    write_atomically(workdir / "metrics.jsonl", "".join(line + "\n" for line in lines))


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Nested plain values as `{path: value}`, to compare two configs field by field.

    >>> flatten({"train": {"steps": 3}, "seeds": 1})
    {'train/steps': 3, 'seeds': 1}
    """
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {
        inner: value
        for key, child in tree.items()
        for inner, value in flatten(child, f"{path}/{key}" if path else str(key)).items()
    }
