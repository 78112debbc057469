"""The command that recommends what to freeze: on a Llama of one block, validated on another; what it refuses."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import recommend
from experiments.report.statistics import Interval
from freezejax import UserError, models
from freezejax.cost import effects, recommendation
from tests.experiments.test_cli import check_one_line

SIZES = {"vocab_size": 256, "num_layers": 1, "model_dim": 16, "num_heads": 2}
LLAMA = {**SIZES, "num_kv_heads": 1, "head_dim": 8, "mlp_mult": 2}
SHORT = ["--data={text}", "--tokenizer=bytes", "--steps=2", "--batch_size=2", "--seq_len=16", "--val_sequences=4"]
FEW = ["--groups=types", "--subsets=10", "--seeds=1", "--tolerance=50%"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders: a text, the model, one of another width, one of another family, one of too few tokens."""
    found = {name: tmp_path_factory.mktemp("recommend") / name for name in ("text", "one", "two", "gpt2", "narrow")}
    found["text"].mkdir()
    (found["text"] / "a.txt").write_text("".join(f"{i} mice ran up {i * 7 % 31} clocks\n" for i in range(200)))
    of = dict.fromkeys(("one", "two", "narrow"), ("llama", LLAMA)) | {"gpt2": ("gpt2", {**SIZES, "positions": 16})}
    changes = {"two": {"model_dim": 24}, "narrow": {"vocab_size": 64}}
    for seed, (name, (family, sizes)) in enumerate(of.items()):
        model = models.build(family, **{**sizes, **changes.get(name, {})})
        models.save_pretrained(found[name], model, model.init(jax.random.key(seed)))
    return found


def arguments(places, *more):
    return [f"--model={places['one']}", *(flag.format(text=places["text"]) for flag in SHORT), *FEW, *more]


def test_a_recommendation_with_its_costs_and_savings_is_validated_on_another_model(command, places, tmp_path):
    workdir = tmp_path / "out"
    ended = command("experiments.recommend", *arguments(places, f"--workdir={workdir}", f"--validate={places['two']}"))
    assert ended.code == 0, ended.err
    found = json.loads((workdir / recommend.FILE).read_text())
    assert len(found["alone_pct"]) == 7
    assert found["frozen"]
    saved = found["saved"]
    assert 0 < saved["flops"] < 1
    assert 0 < saved["memory"] < 1
    assert saved["time_pct"]["ci95"] > 0  # measured, so it has an interval
    assert f"of its FLOPs, {saved['memory']:.0%} of the bytes" in ended.out
    assert f"here {saved['time_pct']['mean']:.0f} % [" in ended.out
    assert [checked["model"] for checked in found["validated"]] == ["one", "two"]
    low, high = (found["cost_of_one_run_pct"][end] for end in ("low", "high"))
    for checked in found["validated"]:
        assert len(checked["costs_pct"]) == len(checked["inside"]) == 1  # of a seed that nothing was fitted on
        assert checked["inside"] == [low <= cost <= high for cost in checked["costs_pct"]]
    inside = sum(checked["inside"][0] for checked in found["validated"])
    assert f"{inside} of 2 measured costs lie in the interval" in ended.out
    assert f"Writes {workdir / recommend.FILE}" in ended.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--validate={gpt2}"], "gpt2: this model has no group 'attn_k_proj'"),
        (["--validate={two}", "--validate={narrow}"], "narrow: the text's tokenizer has 256 tokens, the model fewer"),
        (["--validate=/nowhere"], "--validate=/nowhere: /nowhere: no such folder"),
        (["--tolerance=0"], "--tolerance=0: expected a percentage above 0"),
        (["--model="], "--model is missing: give a folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_measured(flags, message, command, places, tmp_path):
    given = [flag.format(**places) for flag in flags]
    ended = command("experiments.recommend", *arguments(places, *given, f"--workdir={tmp_path / 'out'}"))
    assert message in check_one_line(ended)
    assert "runs of 2 steps" not in ended.out
    assert not (tmp_path / "out").exists()


def test_groups_hold_every_matrix_of_the_blocks_once(places):
    model = models.model_of(places["one"])
    kernels = set(recommendation.each_block_matrix(model.abstract_params()).values())
    for kind, count in {"matrices": 7, "types": 7, "layers": 1}.items():
        groups = recommend.groups_of(model, kind)
        assert len(groups) == count
        members = [pattern for joined in groups.values() for pattern in joined.split(")?|")]
        assert {member.removesuffix(")?") for member in members} == {kernel.removesuffix(")?") for kernel in kernels}
        assert len(members) == 7


def test_what_is_printed_is_in_the_order_of_costs(capsys):
    shares = np.full(2, 0.5)
    rows = effects.draw_subsets(2, 12)
    losses = [(0, row, 5.0 + row @ [0.2, 0.1]) for row in [*rows, *(rows[:2] & False)]]
    fit = effects.fit(["dear", "cheap"], shares, losses)
    cost = fit.predict(["cheap"])
    found = type("Found", (), {"fit": fit, "frozen": ("cheap",), "cost": cost, "saved": {"flops": 0.25, "memory": 0.5}})
    recommend.show(found, 3.0, Interval(12.0, 2.0))
    first, second, third, last = capsys.readouterr().out.splitlines()
    assert "percent of a loss of 5.0000" in first
    assert second.split()[0] == "cheap"
    assert second.endswith("freeze")
    assert third.split()[0] == "dear"
    assert not third.endswith("freeze")
    assert "25% of its FLOPs, 50% of the bytes" in last
    assert "here 12 % [10, 14] of its time" in last


def test_without_a_workdir_the_folder_is_named_after_the_model():
    assert recommend.default_workdir("models/base/") == "runs/recommend_base"
    with pytest.raises(UserError, match="tolerance"):
        recommend._percent("half")


def test_the_page_tells_what_the_committed_recommendations_were_worth():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "pretrained.md").read_text(encoding="utf-8")
    own = others = 0
    for family in ("gpt2", "llama"):
        found = json.loads((root / "results" / "recommend" / family / recommend.FILE).read_text(encoding="utf-8"))
        one, inside = found["cost_of_one_run_pct"], [sum(each["inside"]) for each in found["validated"]]
        told = f"{one['mean']:+.2f} % [{one['low']:+.2f}, {one['high']:+.2f}] | {sum(inside)} of 24 |"
        assert f"| {family} | {len(found['frozen'])} of {len(found['alone_pct'])} | {told}" in page
        own, others = own + inside[0], others + sum(inside[1:])
        for each in found["validated"]:
            assert all(ok or cost < one["low"] for ok, cost in zip(each["inside"], each["costs_pct"], strict=True))
    assert f"{own} of 12 costs lie inside, of the others {others} of 36" in page
