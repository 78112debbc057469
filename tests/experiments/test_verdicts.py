"""Who gets a verdict, and where a reader sees it: the paper's corpus, controls of the same bytes, a terminal."""

import pytest

from experiments.engine.variants import Contrast, Study, Variant
from experiments.report import page, tables
from tests.experiments.made_results import LOSSES, PAPER, SCHEDULE, put, rows_of, study_of, summarize


def same_bytes(workdir, capsys, control, model):
    """A study whose control's files have `control` bytes and those of the model `model`: summary, its renderings."""
    for name, size in (("baseline", 10), ("model", model), ("control", control)):
        for seed, loss in enumerate((3.0, 3.1, 3.2)):
            effect = {"model": 0.9, "control": 0.95}.get(name, 1.0)
            put(workdir, name, seed, loss * effect, artifact_bytes=size + seed)
    variants = [Variant(name, {}, {}, SCHEDULE, papers=PAPER) for name in ("baseline", "model")]
    variants.append(Variant("control", {}, {}, SCHEDULE, same_bytes_as="model", papers=PAPER))
    pairs = (("model", "control"), ("control", "model"), ("model", "baseline"))
    found = summarize(Study("s", variants, [Contrast(*pair, "?", PAPER) for pair in pairs]), workdir)
    tables.show(found)
    written = [capsys.readouterr().out, tables.as_markdown(found)]
    page.write(found, workdir)
    return found, [*written, (workdir / "report.html").read_text()]


@pytest.mark.parametrize(("size", "holds"), [(1000, True), (1019, True), (981, True), (1022, False), (978, False)])
def test_a_control_of_another_size_is_marked_everywhere_and_gets_no_verdict(tmp_path, capsys, size, holds):
    found, written = same_bytes(tmp_path, capsys, size, 1000)
    rows, (first, second, other) = rows_of(found), found["contrasts"]
    assert ("verdict" in rows["control"]) == ("verdict" in first) == ("verdict" in second) == holds
    assert rows["model"]["verdict"] == other["verdict"] == "reproduced"  # their sizes claim nothing
    assert "same_bytes" not in rows["model"].keys() | other.keys()
    expected = {"as": "model", "difference_pct": 100 * ((size + 1) / 1001 - 1), "holds": holds}
    assert rows["control"]["same_bytes"] == first["same_bytes"] == second["same_bytes"] == pytest.approx(expected)
    for text in written:
        assert ("sizes differ" in text.replace("Sizes differ:", "")) is not holds
        assert (f"{expected['difference_pct']:+.1f} %" in " ".join(text.split())) is not holds


def test_a_control_waits_for_what_it_is_to_match(tmp_path):
    for name in ("baseline", "control"):
        put(tmp_path, name, 0, 3.0)
    study = study_of("baseline", "model")
    control = Variant("control", {}, {}, SCHEDULE, same_bytes_as="model")
    found = summarize(Study("s", [*study.variants, control], [Contrast("control", "baseline", "?")]), tmp_path)
    assert "same_bytes" not in rows_of(found)["control"].keys() | found["contrasts"][0].keys()


def test_text_that_is_not_the_papers_gets_no_verdict(tmp_path):
    """Before, byte tokens of any text were judged against the paper's books."""
    for name, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            put(tmp_path, name, seed, loss)
    study = Study("s", study_of(*LOSSES, papers=PAPER).variants, [Contrast("better", "worse", "which?", PAPER)])
    for wanted, judged in (("auto", False), ("none", False), ("fineweb", True)):
        found = summarize(study, tmp_path, paper=wanted)
        for item in (*found["rows"], *found["contrasts"]):
            assert ("paper" in item) == ("verdict" in item) == judged
        assert found["paper_corpus"] == ("fineweb" if judged else "")
        assert ("reproduced" in tables.as_markdown(found)) == judged


def test_tables_on_a_terminal_fit_100_columns_and_keep_names_whole(tmp_path, capsys):
    names = ["baseline", "a" * 31, "b" * 37]
    for name in names:
        for seed, loss in enumerate((3.0, 3.1, 3.2)):
            put(tmp_path, name, seed, loss)
    contrasts = [Contrast(names[1], names[2], "?", PAPER), Contrast(names[2], names[0], "?", PAPER)]
    tables.show(summarize(Study("s", study_of(*names, papers=PAPER).variants, contrasts), tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    first = next(line for line in lines if line.startswith("variant"))
    assert "paper" in first  # what the paper has comes first
    assert all(any(line.startswith(name) for line in lines) for name in names)
    assert any(names[1] in line and names[2] in line for line in lines)
