"""Committed results: tables and README quote them as they are, and their verdicts follow from the rule."""

import functools
import importlib
import inspect
import json
import re
import warnings
from pathlib import Path

import pytest

from experiments import quotes
from experiments.bases import Base
from experiments.engine.variants import CORPORA, paper_corpus, paper_of
from experiments.report.page import picture
from experiments.report.quoted import QUOTES
from experiments.report.statistics import SAME_BYTES_PCT, Interval, verdict
from experiments.report.tables import as_markdown, is_packed
from freezejax import models

ROOT = Path(__file__).parents[1]
STUDIES = ("progressive", "selective", "adapters", "correction", "distillation", "ensemble")
TUNED = ("amplitude", "crystallization", "redundancy", "adaptive")  # of a base that is pretrained on the books
# The papers have no figures for these, of that text; of the last two none that is a comparison.
NOT_JUDGED = [("selective", "gutenberg")]
NOT_JUDGED += [(study, "fineweb") for study in ("correction", "distillation", "ensemble")]
NOT_JUDGED += [("amplitude", "python"), ("adaptive", "python")]
SUMMARIES = [path for name in (*STUDIES, *TUNED) for path in sorted(ROOT.glob(f"results/{name}/*/summary.json"))]


@pytest.fixture(params=SUMMARIES, ids=[f"{path.parts[-3]}-{path.parts[-2]}" for path in SUMMARIES])
def path(request):
    return request.param


@pytest.fixture
def found(path):
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache  # every test of a summary reads it
def study_of(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    config = importlib.import_module(f"experiments.configs.{found['experiment']}").get_config(found["scale"])
    if "parts" in config:  # of its matrices and groups those that were run
        config.parts = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))["config"]["parts"]
    make_study = importlib.import_module(f"experiments.{found['experiment']}").make_study
    given = {"base": Base(None, "")} if "base" in inspect.signature(make_study).parameters else {}
    if not given and not is_packed(found["rows"][0]):  # its version counted, and matched, int8
        config.artifact.codec = "int8"
    vocab_size = found["rows"][0]["model"]["vocab_size"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "weights: what is trained beside")  # a rank that is too high is a row, too
        return make_study(config, vocab_size, **given)


@pytest.fixture
def study(path):
    """The study that a summary is of, as the tree has it now."""
    return study_of(path)


def test_tables_are_those_of_the_summary(path, found):
    assert path.with_name("tables.md").read_text(encoding="utf-8") == as_markdown(found) + "\n"


@pytest.mark.parametrize("path", [*SUMMARIES, *sorted(ROOT.glob("results/frontier/*/*.json"))], ids=str)
def test_a_folder_is_of_the_text_that_it_is_called_after(path):
    """By fingerprint: a folder of other books, of the same name, would pass for the paper's."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if "fingerprint" not in found.get("data", {}):
        pytest.skip("it says nothing of its text; the summaries beside it do")
    if path.parts[-2] == "python":
        pytest.skip("the Python reference of whoever ran it: each version has another")
    assert CORPORA[found["data"]["fingerprint"]] == path.parent.name.rpartition("_")[2]


PAGES = [page for page in (ROOT / "README.md", ROOT / "results" / "README.md") if page.exists()]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_quoted_effect_and_verdict_is_that_of_its_own_comparison(page):
    text = page.read_text(encoding="utf-8")
    assert quotes.rewritten(text, ROOT / "results") == text


def test_every_known_comparison_is_quoted():
    lines = [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]
    assert [start for start in QUOTES if not any(line.startswith(start) for line in lines)] == []


@pytest.mark.parametrize("heading", ["## Pretrained models", "## Freeze-except"])
def test_figures_in_prose_are_those_of_the_tables_it_names(heading):
    """To the digits that are told; of the sections that quote no summary."""
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    section = text[text.index(heading) :].partition("```")[0]
    files = [ROOT / "results" / file for file in re.findall(r"\]\((\S+\.md)\)", section)]
    number = re.compile(r"(?<![\w.])\d+\.(\d+)")  # prose may say "gains 1.6 %" of -1.6
    there = [float(found[0]) for file in files for found in number.finditer(file.read_text(encoding="utf-8"))]
    for found in number.finditer(section):
        digits = len(found[1])
        assert any(abs(float(found[0]) - value) <= 0.5001 * 10**-digits for value in there), found[0]


def test_the_picture_of_bytes_is_what_its_command_draws():
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    summary, path, names = re.search(r"--summary=(\S+) --picture=(\S+) --variants=([\w,]+)\n", text).groups()
    assert f"](../{path})" in text
    found = json.loads((ROOT / summary).read_text(encoding="utf-8"))
    assert (ROOT / path).read_text(encoding="utf-8") == picture(found, names.split(","))


def test_counterpart_a_figure_of_another_row_is_written_anew(check_refused):
    line = "| gate and up frozen, 6L 192d | baseline | -2.1 % | +0.1 ±0.1 % | not reproduced | -9.9\n±9.9 % |"
    found = quotes.rewritten(f"Before.\n\n{line}\n\nAfter.", ROOT / "results")
    ours = [quotes.compared(ROOT / "results", *each) for each in quotes.comparisons_of(line)]
    first, second = ((f"{item['effect_pct']:+.1f}", f"{item['effect_pct_ci95']:.1f}") for item in ours)
    told = f"| -2.1 % | {first[0]} ±{first[1]} % | {ours[0]['verdict']} | {second[0]}\n±{second[1]} % |"
    assert found == f"Before.\n\n| gate and up frozen, 6L 192d | baseline {told}\n\nAfter."
    assert found != line
    check_refused(lambda: quotes.rewritten("| a row of nobody's | -0.7 ±0.6 % |", ROOT), "0 comparisons are known")
    short = line.replace(" | -9.9\n±9.9 %", "")
    check_refused(lambda: quotes.rewritten(short, ROOT / "results"), "quotes 1 effects, its comparisons are 2")
    check_refused(lambda: quotes.main(["no_page.md"], ROOT / "results"), "--pages=no_page.md: no such file")
    check_refused(lambda: quotes.rewritten(line, ROOT / "tests"), "summary.json: no such file, and pages quote it")


def test_verdicts_follow_from_the_corpus_and_the_intervals(path, found, study):
    """The paper's figures stand where, by fingerprint, the text is one of its own; nobody has to say so."""
    corpus = paper_corpus(study, "auto", found["data"]["fingerprint"])
    items = [*found["rows"], *found["contrasts"]]
    judged = [item for item in items if "paper" in item]
    assert bool(judged) == bool(corpus) == (path.parts[-3:-1] not in NOT_JUDGED)
    papers = [paper_of(item.papers, corpus) for item in (*study.variants, *study.contrasts)]
    assert [item["paper"]["delta_pct"] for item in judged] == [paper.delta_pct for paper in papers if paper]
    for item in judged:
        item_or_reference = item.get("judged", item)  # the paper's reference need not be the study's baseline
        ours = "delta_pct" if "delta_pct" in item_or_reference else "effect_pct"
        effect = Interval(item_or_reference[ours], item_or_reference[f"{ours}_ci95"])
        expected = verdict(effect, item["paper"]["delta_pct"])
        assert item.get("verdict") == (expected if item.get("same_bytes", {"holds": True})["holds"] else None)


def test_controls_of_the_same_bytes_have_them_or_are_marked(found, study):
    """The rule of `experiments.engine.summary`; on figures that are older than it nothing is to be marked."""
    marks = {row["name"]: row.get("same_bytes", {"holds": True})["holds"] for row in found["rows"]}
    sizes = {row["name"]: row.get("artifact_bytes") for row in found["rows"]}
    controls = [variant for variant in study.variants if variant.same_bytes_as]
    assert bool(controls) == study.files
    for control in controls:
        same = sizes[control.name] == pytest.approx(sizes[control.same_bytes_as], rel=SAME_BYTES_PCT / 100)
        assert same == marks[control.name], control.name


@pytest.mark.filterwarnings("ignore:weights. what is trained beside")  # a rank that is too high is a row, too
def test_every_variant_and_seed_is_there(found, study):
    assert [row["name"] for row in found["rows"]] == [variant.name for variant in study.variants]
    for row, variant in zip(found["rows"], study.variants, strict=True):
        assert row["seeds"] == [0, 1, 2] + [3, 4] * (not study.files)
        assert row.get("base_seeds", [0]) == ([0, 1] if variant.base_seeds else [0])
        assert models.build(**row["model"]).config == models.build(**variant.model).config
        assert row["steps"] == variant.train["steps"]
        assert len(row["phases"]) == len(variant.schedule.entries)


def test_maps_stand_where_the_study_has_them(found, study):
    if study.files and not is_packed(found["rows"][0]):
        pytest.skip("of a version whose random weights were no part of the model")
    for row, variant in zip(found["rows"], study.variants, strict=True):
        assert row["model"].get("weights") == variant.model.get("weights")
