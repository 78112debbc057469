"""From finished runs to summary.json and the table: rows, paired contrasts, verdicts by rule."""

import importlib
import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments.statistics import Interval, interval, paired_effect_pct, verdict
from experiments.variants import Contrast, Paper, Study, Variant
from freezejax.data import Corpus
from freezejax.errors import UserError
from freezejax.training.metrics import read_json_lines, write_atomically

Result = dict[str, Any]
_PACKAGES = ("freezejax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_SIZES = ("trainable_params", "frozen_params", "seeded_params", "stored_bytes_predicted")


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
        "versions": {**{name: metadata.version(name) for name in _PACKAGES}, "python": platform.python_version()},
        # The bits of a run depend on how many cores share a matmul, the figures do not.
        "machine": {"device": jax.devices()[0].device_kind, "cpu_cores": len(os.sched_getaffinity(0))},
        "data": {
            "source": corpus.source,
            "tokenizer": corpus.tokenizer.name,
            "fingerprint": corpus.fingerprint,
            "train_tokens": len(corpus.train),
            **{field: baseline[0][field] if baseline else None for field in ("tokens", "bytes")},
        },
        "rows": [_row(variant, results[variant.name], baseline) for variant in finished],
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
    return sorted((json.loads(path.read_text(encoding="utf-8")) for path in paths), key=lambda result: result["seed"])


def _row(variant: Variant, results: Sequence[Result], baseline: Sequence[Result]) -> dict[str, Any]:
    ce, bpb = interval(_values(results, "val_ce")), interval(_values(results, "val_bpb"))
    times = [result["step_ms_median"] for result in results if result["step_ms_median"] is not None]
    step_ms = sorted(times)[len(times) // 2] if times else None
    tokens_per_step = results[0]["train_tokens"] / results[0]["steps"]
    effect = _paired(results, baseline)
    return {
        "name": variant.name,
        "seeds": [result["seed"] for result in results],
        "val_ce_mean": ce.mean,
        "val_ce_ci95": ce.ci95,
        "val_bpb_mean": bpb.mean,
        "val_bpb_ci95": bpb.ci95,
        "delta_pct": effect and effect.mean,
        "delta_pct_ci95": effect and effect.ci95,
        **{field: results[0][field] for field in _SIZES},
        "artifact_bytes": round(interval(_values(results, "artifact_bytes")).mean),
        "steps": results[0]["steps"],
        "train_tokens": results[0]["train_tokens"],
        "step_ms_median": step_ms,
        "tokens_per_second": step_ms and 1e3 * tokens_per_step / step_ms,
        "params_sha256": [result["params_sha256"] for result in results],
        "model": results[0]["model"],
        "phases": results[0]["phases"],
        **_judged(variant.paper, effect),
    }


def _contrast(contrast: Contrast, results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    effect = _paired(results[contrast.variant], results[contrast.reference])
    return {
        "variant": contrast.variant,
        "reference": contrast.reference,
        "question": contrast.question,
        "effect_pct": effect and effect.mean,
        "effect_pct_ci95": effect and effect.ci95,
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


def _paired(results: Sequence[Result], reference: Sequence[Result]) -> Interval | None:
    ours = {result["seed"]: result["val_ce"] for result in results}
    theirs = {result["seed"]: result["val_ce"] for result in reference}
    seeds = sorted(ours.keys() & theirs.keys())
    return paired_effect_pct([ours[s] for s in seeds], [theirs[s] for s in seeds]) if seeds else None


def _values(results: Sequence[Result], field: str) -> list[float]:
    return [result[field] for result in results]


def _merge_metrics(study: Study, results: Mapping[str, Sequence[Result]], workdir: Path) -> None:
    lines = [
        json.dumps({"variant": variant.name, "seed": result["seed"], **record})
        for variant in study.variants
        for result in results[variant.name]
        for record in read_json_lines(workdir / "runs" / variant.name / f"seed_{result['seed']}" / "metrics.jsonl")
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


def print_table(found: Mapping[str, Any]) -> None:
    """Prints the rows and the contrasts."""
    console = Console()
    if not console.is_terminal:
        console.width = 150  # a log file has no edge to wrap at
    rows = Table(title=f"{found['experiment']} ({found['scale']}), {found['data']['source']}")
    for column in ("variant", "val CE", "bits/byte", "vs baseline", "paper", "verdict"):
        rows.add_column(column, justify="left" if column in ("variant", "verdict") else "right")
    for column in ("trainable", "stored kB", "ms/step"):
        rows.add_column(column, justify="right")
    for row in found["rows"]:
        rows.add_row(
            row["name"],
            with_ci(row["val_ce_mean"], row["val_ce_ci95"], 4),
            with_ci(row["val_bpb_mean"], row["val_bpb_ci95"], 4),
            with_ci(row["delta_pct"], row["delta_pct_ci95"], 1, "%"),
            f"{row['paper']['delta_pct']:+.1f}%" if "paper" in row else "",
            row.get("verdict", ""),
            f"{row['trainable_params']:,}",
            f"{row['stored_bytes_predicted'] / 1e3:,.0f}",
            "" if row["step_ms_median"] is None else f"{row['step_ms_median']:.1f}",
        )
    console.print(rows)
    contrasts = Table(title="paired contrasts (negative = lower loss)")
    for column in ("variant", "against", "effect", "paper", "verdict", "question"):
        contrasts.add_column(column, justify="right" if column in ("effect", "paper") else "left")
    for item in found["contrasts"]:
        contrasts.add_row(
            item["variant"],
            item["reference"],
            with_ci(item["effect_pct"], item["effect_pct_ci95"], 1, "%"),
            f"{item['paper']['delta_pct']:+.1f}%" if "paper" in item else "",
            item.get("verdict", ""),
            item["question"],
        )
    if found["contrasts"]:
        console.print(contrasts)


def with_ci(mean: float | None, ci95: float | None, digits: int, unit: str = "") -> str:
    """A figure with its 95 % half-width; signed where it has a unit, empty where it is unknown.

    >>> with_ci(1.234, 0.05, 2), with_ci(-2.0, None, 1, "%")
    ('1.23 ±0.05', '-2.0%')
    """
    if mean is None:
        return ""
    text = f"{mean:+.{digits}f}" if unit else f"{mean:.{digits}f}"
    return f"{text}{unit}" if ci95 is None else f"{text} ±{ci95:.{digits}f}{unit}"
