"""From finished runs to summary.json: rows, paired contrasts, verdicts by rule."""

import importlib
import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from experiments.engine.matching import has_maps
from experiments.engine.results import Session
from experiments.engine.variants import Contrast, Paper, Study, Variant, paper_corpus, paper_of
from experiments.engine.workdir import Finished, Result
from experiments.report import statistics
from experiments.report.statistics import Figures, Interval, interval
from freezejax.atomic import write_atomically
from freezejax.data import Corpus
from freezejax.errors import UserError
from freezejax.version import versions

_PACKAGES = ("freezejax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_OF_RUNS = ("seed", "base_seed", "seconds", "step_seconds")
_CONFIG_FILES = {"golf": "parameter_golf"}  # of a study whose config has another name
_SIZES = ("trainable_params", "frozen_params", "seeded_params", "stored_bytes_predicted")


def write(session: Session) -> dict[str, Any]:
    """Writes summary.json from the runs finished so far; returns it. The schema is docs/summary.md."""
    found = summarize(session.study, session.config, session.corpus, session.finished)
    write_atomically(session.workdir / "summary.json", json.dumps(found, indent=2) + "\n")
    return found


def summarize(study: Study, config: ConfigDict, corpus: Corpus, finished: Finished) -> dict[str, Any]:
    """What the finished runs of a study say, as plain values."""
    comparison = Comparison(study, finished, paper_corpus(study, config.paper, corpus.fingerprint))
    scored = next(iter(finished.of(study.variants[0].name)), {})
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
            **{field: scored.get(field) for field in ("tokens", "bytes")},
        },
        "paper_corpus": comparison.corpus,
        **({} if study.files else {"files": False}),
        "figures": [figure._asdict() for figure in study.figures],
        "rows": [comparison.row(variant) for variant in study.variants if finished.of(variant.name)],
        "contrasts": [
            comparison.contrast(contrast) for contrast in study.contrasts if all(map(finished.of, contrast.names))
        ],
    }
    findings = list(study.findings(found))
    return {**found, "findings": findings} if findings else found


def command(config: ConfigDict) -> str:
    """The command line that makes this study again, with every field that differs from its scale's default.

    >>> from experiments.configs.progressive import get_config
    >>> config = get_config("tiny")
    >>> config.train.steps = 30
    >>> command(config)
    'uv run python -m experiments.progressive --config=...progressive.py:tiny --config.train.steps=30 --workdir=DIR'
    """
    name, scale = config.experiment, config.scale
    file = _CONFIG_FILES.get(name, name)
    try:
        defaults = importlib.import_module(f"experiments.configs.{file}").get_config(scale)
    except (ImportError, UserError):  # a config file of the user's own, whose path is nobody else's business
        return f"uv run python -m experiments.{name} --config=FILE.py:{scale} --workdir=DIR"
    before, now = (flatten_dict(json.loads(one.to_json()), sep=".") for one in (defaults, config))
    changed = [f"--config.{field}={value}" for field, value in now.items() if before.get(field) != value]
    start = f"uv run python -m experiments.{name} --config=experiments/configs/{file}.py:{scale}"
    return " ".join([start, *map(shlex.quote, changed), "--workdir=DIR"])


class Comparison:
    """The finished runs of a study compared with each other and, on `corpus` of the paper ("" = none), with it."""

    def __init__(self, study: Study, finished: Finished, corpus: str) -> None:  # noqa: D107
        self.study, self.finished, self.corpus = study, finished, corpus
        self.first, self.last = study.figures[0], study.figures[-1]
        self.baseline = study.variants[0].name

    def row(self, variant: Variant) -> dict[str, Any]:
        """Figures of a variant that has a finished run."""
        results = self.finished.of(variant.name)
        first = results[0]
        times = [result["step_ms_median"] for result in results if result["step_ms_median"] is not None]
        step_ms = sorted(times)[len(times) // 2] if times else None
        fields = [name for figure in self.study.figures for name in (figure.trained, figure.packed)]
        fields = [name for name in fields if name in self.study.fields]
        effect, spread = self.effect(variant.name, self.baseline), _figures(results, self.last.trained)
        same_bytes = self.same_bytes(variant)
        return {
            "name": variant.name,
            "seeds": sorted({result["seed"] for result in results}),
            "base_seeds": sorted({result["base_seed"] for result in results}),
            **{name: value for field in fields for name, value in _mean(results, field).items()},
            **{f"{axis}_seed_sd": statistics.seed_sd(spread, axis) for axis in ("training", "base")},
            **_effect("delta_pct", effect),
            **{field: first[field] for field in _SIZES},
            **({"artifact_bytes": round(_bytes(results))} if self.study.files else {}),
            "steps": first["steps"],
            "steps_before": first.get("steps_before", 0),  # older runs were none of a chain
            "train_tokens": first["train_tokens"],
            "step_ms_median": step_ms,
            "tokens_per_second": step_ms and 1e3 * (first["train_tokens"] / first["steps"]) / step_ms,
            "runs": [{name: result.get(name) for name in (*_OF_RUNS, *fields)} for result in results],
            "params_sha256": [result["params_sha256"] for result in results],
            "meshes": [result.get("mesh") for result in results],
            "model": first["model"],
            "phases": first["phases"],
            **_measured(results),
            **same_bytes,
            **self.judged(variant.papers, effect, same_bytes, variant.name),
        }

    def contrast(self, contrast: Contrast) -> dict[str, Any]:
        """The effect of a variant against another; both have finished runs."""
        pair = (contrast.variant, contrast.reference)
        effect = self.interaction(contrast) if contrast.less else self.effect(*pair)
        packed = self.effect(*pair, field=self.last.packed) if self.study.files and not contrast.less else None
        controls = [v for v in self.study.variants if {v.name, v.same_bytes_as} == set(pair)]
        same_bytes = self.same_bytes(controls[0]) if controls else {}
        return {
            "variant": contrast.variant,
            "reference": contrast.reference,
            **({"less": [*contrast.less]} if contrast.less else {}),
            "question": contrast.question,
            **_effect("effect_pct", effect),
            **(_effect("packed_effect_pct", packed) if self.study.files else {}),
            **same_bytes,
            **self.judged(contrast.papers, effect, same_bytes),
        }

    def effect(self, variant: str, reference: str, field: str = "") -> Interval | None:
        """Relative difference of a figure, paired by seed; None where no training seed has finished in both."""
        both = [self.finished.of(name) for name in (variant, reference)]
        ours, theirs = (_figures(results, field or self.first.trained) for results in both)
        same_maps = all(results and has_maps(results[0]["model"]) for results in both)
        return statistics.paired_over_seeds(ours, theirs, same_maps=same_maps)

    def interaction(self, contrast: Contrast) -> Interval | None:
        """The effect of the parts together, less the sum of their effects alone, seed by seed."""
        names = (contrast.reference, contrast.variant, *contrast.less)
        return statistics.interaction_pct(*(_figures(self.finished.of(name), self.first.trained) for name in names))

    def same_bytes(self, control: Variant) -> dict[str, Any]:
        """Whether the files of a control are as large as those it is to match, once both are there."""
        ours, theirs = (self.finished.of(name) for name in (control.name, control.same_bytes_as))
        if not (ours and theirs):
            return {}
        difference = 100.0 * (_bytes(ours) / _bytes(theirs) - 1)
        holds = abs(difference) <= statistics.SAME_BYTES_PCT
        return {"same_bytes": {"as": control.same_bytes_as, "difference_pct": difference, "holds": holds}}

    def judged(
        self, papers: Sequence[Paper], effect: Interval | None, same_bytes: Mapping[str, Any], row: str = ""
    ) -> dict[str, Any]:
        """The paper's figure for an item and, unless a control is not of the size it claims, what the rule says of it.

        The paper may compare a row, given by its name, with another than the baseline.
        """
        paper = paper_of(papers, self.corpus)
        other = paper.reference if paper is not None and row else ""
        effect = self.effect(row, other) if other else effect
        if paper is None or effect is None:
            return {}
        found: dict[str, Any] = {"paper": {f: getattr(paper, f) for f in ("source", "value", "delta_pct", "claim")}}
        if same_bytes.get("same_bytes", {"holds": True})["holds"]:
            found["verdict"] = statistics.verdict(effect, paper.delta_pct)
        if other:
            found["judged"] = {"reference": other, **_effect("effect_pct", effect)}
        return found


def _effect(name: str, effect: Interval | None) -> dict[str, float | None]:
    return {name: effect and effect.mean, f"{name}_ci95": effect and effect.ci95}


def _mean(results: Sequence[Result], field: str) -> dict[str, float | None]:
    found = interval(list(statistics.over_base_seeds(_figures(results, field)).values()))
    return {f"{field}_mean": found.mean, f"{field}_ci95": found.ci95}


def _measured(results: Sequence[Result]) -> dict[str, Any]:
    """Every measure at every place, run by run."""
    each = [result.get("measured", {}) for result in results]
    found = {name: {place: [run[name][place] for run in each] for place in places} for name, places in each[0].items()}
    return {"measured": found} if found else {}


def _bytes(results: Sequence[Result]) -> float:
    return interval([result["artifact_bytes"] for result in results]).mean


def _figures(results: Sequence[Result], field: str) -> Figures:
    return {(result["seed"], result["base_seed"]): result[field] for result in results}
