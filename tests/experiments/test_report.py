"""The report: well-formed, self-contained, repeatable, and robust to partial studies and odd names."""

import io
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.configs.progressive import get_config
from experiments.engine import summary
from experiments.engine.variants import CORPORA, Contrast, Paper, Study, Variant
from experiments.engine.workdir import Finished, write_result
from experiments.report import page
from experiments.report.curves import curves_of
from experiments.report.page import timelines
from experiments.report.plots import COLOR, render, spread
from experiments.report.statistics import interval
from freezejax.schedules import FreezeSchedule

STEPS, FREEZE_AT = 400, 133
FINEWEB = next(fingerprint for fingerprint, corpus in CORPORA.items() if corpus == "fineweb")
GROUPS = ("blocks/*/attn/qkv/kernel", "blocks/*/mlp/gate/kernel", "blocks/*/mlp/up/kernel", "tok_emb/embedding")
SIZES = {"small": (3, 96, 29_000), "medium": (4, 128, 85_000), "large": (6, 192, 186_000)}
KINDS = ("trained", "selective", "progressive", "progressive_dropout", "trained_same_scale")
PAPER = [Paper("fineweb", "PR 1301, section 3", 4.1189, -2.2, "-2.2% against the small baseline")]


def test_whole_study(tmp_path):
    found = make(tmp_path, seeds=3, sizes=("small", "medium", "large"))
    assert len(found["rows"]) == 15
    page = written(found, tmp_path)
    tree = ET.fromstring(page)
    for row in found["rows"]:
        assert f"<code>{row['name']}</code>" in page
    for item in [*found["rows"], *found["contrasts"]]:
        if "verdict" in item:
            assert f">{item['verdict']}<" in page
            assert f"{item['paper']['delta_pct']:+.1f}".replace("-", "−") in page
    titles = [heading.text for heading in tree.iter("h2")]
    assert titles == [
        "Variants",
        "Contrasts",
        "Effects of the contrasts",
        "Against the paper",
        "Loss over steps",
        "Stored bytes against bits/byte",
        "What trained when",
    ]
    assert "python -m experiments.progressive --config=experiments/configs/progressive.py:cpu --workdir=" in page
    assert str(tmp_path) not in page


def test_page_is_self_contained_and_accessible(tmp_path):
    page = written(make(tmp_path, seeds=2), tmp_path)
    tree = ET.fromstring(page)
    assert not re.search(r"https?:|//|<script|@import|src=", page.replace("xmlns", ""))
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', page))
    assert not any(stand_in in page for stand_in in COLOR.values())  # every colour follows the page's mode
    figures = list(tree.iter("figure"))
    assert len(figures) == 4
    for figure in figures:
        assert figure.find("figcaption").text
        assert figure.find("svg").get("role") == "img"
        assert figure.find("svg").get("aria-label")


def test_matplotlib_alone_is_neither_self_contained_nor_repeatable():
    def save() -> str:
        file = io.StringIO()
        figure = Figure()
        figure.subplots().plot([1, 2], [1, 2], "o")
        figure.savefig(file, format="svg")
        return file.getvalue()

    assert "http://" in save()
    assert save() != save()


def test_ids_are_unique_and_references_resolve(tmp_path):
    page = written(make(tmp_path, seeds=2), tmp_path)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]*)"', page) + re.findall(r"url\(#([^)]*)\)", page)
    assert used
    assert set(used) <= set(ids)


def test_same_input_same_bytes(tmp_path):
    found = make(tmp_path, seeds=2)
    first = written(found, tmp_path)
    assert written(found, tmp_path) == first
    found["rows"][1]["val_bpb_mean"] += 0.5
    assert written(found, tmp_path) != first


def test_one_seed_has_dashes_for_intervals(tmp_path):
    found = make(tmp_path, seeds=1)
    page = written(found, tmp_path)
    ET.fromstring(page)
    assert all(row["val_ce_ci95"] is None for row in found["rows"])
    table = page[page.index("<tbody>") : page.index("</tbody>")]
    assert "±" not in table
    assert "±" in written(make(tmp_path / "two", seeds=2), tmp_path / "two").split("</tbody>")[0]


def test_missing_step_time_and_corpus_size_are_dashes(tmp_path):
    found = make(tmp_path, seeds=1)
    found["data"].update(tokens=None, bytes=None)
    for row in found["rows"][1:]:
        row.update(step_ms_median=None, tokens_per_second=None, delta_pct=None, delta_pct_ci95=None)
    page = written(found, tmp_path)
    assert "– tokens scored, – bytes of text" in page
    assert page.split("</tbody>")[0].count('<td class="number">–</td>') >= 2 * len(found["rows"][1:])


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_partial_study(tmp_path, rows):
    found = make(tmp_path, seeds=1)
    found.update(rows=found["rows"][:rows], contrasts=[])
    (tmp_path / "metrics.jsonl").unlink()
    page = written(found, tmp_path)
    titles = [heading.text for heading in ET.fromstring(page).iter("h2")]
    assert "Contrasts" not in titles
    assert "Loss over steps" not in titles
    assert ("What trained when" in titles) == (rows > 0)


def test_no_validation_records(tmp_path):
    found = make(tmp_path, seeds=2)
    path = tmp_path / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if "val_ce" not in line]
    path.write_text("".join(line + "\n" for line in lines))
    page = written(found, tmp_path)
    assert "training loss" in page
    assert "validation CE, nats/token" not in page
    assert "validation CE, nats/token" in written(make(tmp_path / "whole", seeds=2), tmp_path / "whole")


@pytest.mark.parametrize("name", ["a<b>&\"c'", "cost $5_$6^2$", "_hidden", r"back\slash{x}", "模型"])
def test_odd_names(tmp_path, name):
    found = json.loads(json.dumps(make(tmp_path, seeds=2)).replace("progressive_medium", json.dumps(name)[1:-1]))
    metrics = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(metrics.replace("progressive_medium", json.dumps(name)[1:-1]))
    tree = ET.fromstring(written(found, tmp_path))
    texts = ["".join(element.itertext()).strip() for element in tree.iter("text")]
    assert name in [element.text for element in tree.iter("code")]
    assert name in texts


def test_timeline_folds_what_is_alike():
    later = row("b", progressive())
    assert timelines([row("a", progressive()), later]).count('class="timeline"') == 1
    assert timelines([row("a", trained()), later]).count('class="timeline"') == 2
    both = timelines([later])
    assert both.count("<dt>") == 4  # gate with up, the rest, whole model, steps
    assert ">frozen<" in both
    assert ">seeded<" not in both
    assert ">seeded<" in timelines([row("c", selective(), seeded=9)])
    assert ">frozen<" in timelines([row("c", selective(), seeded=0)])


def test_curves_are_means_over_seeds_with_student_bands():
    values = {0: 1.0, 1: 2.0, 2: 4.0}
    records = [{"variant": "a", "seed": s, "step": 10, "val_ce": v} for s, v in values.items()]
    curve = curves_of(records, "val_ce")["a"]
    expected = interval(list(values.values()))
    assert (curve.mean[0], curve.ci95[0]) == expected
    assert curves_of(records[:1], "val_ce")["a"].ci95 is None
    assert curves_of(records, "loss") == {}


def test_long_curves_are_averaged_not_cut():
    records = [{"variant": "a", "seed": 0, "step": s, "loss": float(s)} for s in range(1, 6001)]
    curve = curves_of(records, "loss")["a"]
    assert len(curve.steps) == 60
    assert np.mean(curve.mean) == pytest.approx(3000.5)


def test_spread_keeps_order_gap_and_bounds():
    wanted = [0.2, 0.21, 0.9, 0.2, 1.4]
    placed = spread(wanted, 0.1, 0.0, 1.0)
    order = np.argsort(wanted, kind="stable")
    assert np.all(np.diff(np.asarray(placed)[order]) >= 0.1 - 1e-12)
    assert min(placed) >= 0.0
    assert max(placed) <= 1.0
    assert spread([0.1, 0.9], 0.1, 0.0, 1.0) == [0.1, 0.9]


def test_render_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    render("empty", "nothing", 1.0, lambda figure: None)
    assert dict(matplotlib.rcParams) == before


# The fabricated study: `summarize` makes the summary, so its schema is the real one.


def make(workdir: Path, seeds: int, sizes: tuple[str, ...] = ("small", "medium")) -> dict:
    rng = np.random.default_rng(0)
    variants = [variant(kind, size) for size in sizes for kind in KINDS]
    for position, each in enumerate(variants):
        for seed in range(seeds):
            directory = workdir / "runs" / each.name / f"seed_{seed}"
            directory.mkdir(parents=True)
            lines, final = run(each, seed, 2.6 - 0.02 * position + 0.01 * rng.normal(), rng)
            (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            write_result(directory, final)
    contrasts = [
        Contrast("progressive_medium", "selective_medium", "does freezing later beat random freezing?", PAPER),
        *(
            Contrast(f"{kind}_{size}", f"trained_{size}", f"{kind} against training, {size}")
            for size in sizes
            for kind in KINDS[1:4]
        ),
    ]
    corpus = SimpleNamespace(
        source="embedded", fingerprint=FINEWEB, train=range(444_799), tokenizer=SimpleNamespace(name="bytes")
    )
    study = Study("progressive", variants, contrasts)
    config = get_config("cpu")
    config.seeds = seeds
    finished = Finished(workdir)
    finished.read_all(study)
    records = finished.records(study)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return summary.summarize(study, config, corpus, finished)


def variant(kind: str, size: str) -> Variant:
    layers, width, _ = SIZES[size]
    papers = PAPER if kind in ("selective", "progressive") and size != "small" else ()
    model = {"family": "geglu", "num_layers": layers, "model_dim": width}
    return Variant(f"{kind}_{size}", model, {}, FreezeSchedule([(0, [(".*", True)])]), papers=papers)


def run(each: Variant, seed: int, level: float, rng: np.random.Generator) -> tuple[list[dict], dict]:
    size = each.name.rsplit("_", 1)[1]
    stored = SIZES[size][2]
    seeded = each.name.startswith("selective")
    frozen = each.name.startswith("progressive")
    lines = []
    for step in range(10, STEPS + 1, 10):
        loss = level + 3.0 * math.exp(-step / 60)
        lines.append({"step": step, "phase": 0, "grad_norm": 1.0, "loss": loss + 0.05 * rng.normal()})
        if step % 50 == 0:
            lines.append({"step": step, "val_ce": loss, "val_bpb": loss / math.log(2)})
    final = {
        "variant": each.name,
        "seed": seed,
        "base_seed": 0,
        "model": dict(each.model),
        "tokenizer": "bytes",
        "val_ce": lines[-1]["val_ce"],
        "val_bpb": lines[-1]["val_bpb"],
        "packed_ce": lines[-1]["val_ce"] + 0.01,
        "packed_bpb": lines[-1]["val_bpb"] + 0.01,
        "tokens": 16_320,
        "bytes": 16_320,
        "trainable_params": stored,
        "frozen_params": stored // 3 if frozen else 0,
        "seeded_params": stored // 3 if seeded else 0,
        "stored_bytes_predicted": stored * 2 // 3 if seeded else stored,
        "artifact_bytes": stored * 9 // 10,
        "params_sha256": "0" * 64,
        "steps": STEPS,
        "train_tokens": STEPS * 1024,
        "step_ms_median": 12.5,
        "phases": selective() if seeded else progressive() if frozen else trained(),
    }
    return lines, final


def trained() -> list[dict]:
    return [phase(0, STEPS, 1.0)]


def selective() -> list[dict]:
    return [phase(0, STEPS, 0.0)]


def progressive() -> list[dict]:
    return [phase(0, FREEZE_AT, 1.0), phase(FREEZE_AT, STEPS, 0.0)]


def phase(start: int, stop: int, share: float) -> dict:
    shares = {group: share if "mlp" in group else 1.0 for group in GROUPS}
    return {"start": start, "stop": stop, "trainable": {**shares, "total": 0.64 + 0.36 * share}}


def row(name: str, phases: list[dict], seeded: int = 0) -> dict:
    return {"name": name, "seeded_params": seeded, "phases": phases}


def written(found: dict, workdir: Path) -> str:
    page.write(found, workdir)
    return (workdir / "report.html").read_text(encoding="utf-8")
