"""Folders that we write, as two versions of transformers and PEFT read them in an environment of their own.

What those said is a fixture, a line per environment (`read_by_transformers.py` tells how to make it again); the SHA-256
of every file ties it to what is written today.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from freezejax import models
from tests.models import saved

READ = [json.loads(line) for line in (Path(__file__).with_name("read_by_transformers.jsonl")).read_text().splitlines()]
NAMES = [*saved.CASES, "lora_over_llama"]
# Version 4 has no Nemotron-H of its own.
READINGS = [(name, read) for read in READ for name in NAMES if name in read["folders"]]
every_reading = pytest.mark.parametrize(
    ("name", "read"),
    READINGS,
    ids=[f"{name}-transformers {read['versions']['transformers']}" for name, read in READINGS],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("saved")
    saved.write(made)
    return made


def test_both_layouts_of_config_json_were_read():
    versions = {read["versions"]["transformers"].partition(".")[0]: {*read["folders"]} for read in READ}
    assert versions == {"4": {*NAMES} - {"nemotron_h"}, "5": {*NAMES}}


@every_reading
def test_the_files_are_those_that_were_read_and_nothing_was_missing(name, read, folder):
    found = read["folders"][name]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / name).iterdir()}
    assert hashes == found["sha256"]
    assert found["wrong"] == {}


@every_reading
def test_logits_there_are_ours(name, read):
    model, params = saved.made("llama", weights=saved.LORA) if name == "lora_over_llama" else saved.made(name)
    ours = np.asarray(model.apply(params, saved.TOKENS)).ravel()
    np.testing.assert_allclose(ours, read["folders"][name]["logits"], atol=1e-5)


def test_counterpart_an_adapter_left_out_and_another_rope_are_seen():
    wanted = READ[0]["folders"]
    model, params = saved.made("llama")
    assert (
        np.abs(np.asarray(model.apply(params, saved.TOKENS)).ravel() - wanted["lora_over_llama"]["logits"]).max() > 0.1
    )
    model, params = saved.made("llama", rope_base=10000.0)  # what version 4 takes where rope_theta is not said
    assert np.abs(np.asarray(model.apply(params, saved.TOKENS)).ravel() - wanted["llama"]["logits"]).max() > 1e-3


@pytest.mark.parametrize("way", ["old", "new", "both", "none"])
def test_positions_are_said_as_the_folder_said_them_that_the_model_came_from(way, tmp_path):
    models.save_pretrained(tmp_path / "a", *saved.made("llama_linear"))
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    old, new = {"rope_theta", "rope_scaling"}, {"rope_parameters"}
    assert old | new <= config.keys()
    dropped = {"old": new, "new": old, "both": set(), "none": old | new}[way]
    said = {key: value for key, value in config.items() if key not in dropped}
    path.write_text(json.dumps(said))
    model = models.model_of(tmp_path / "a")
    assert (model.config.rope_scaling == "linear") == (way != "none")
    models.save_pretrained(tmp_path / "b", model, saved.made("llama_linear")[1], like=tmp_path / "a")
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == said
    # Of another model all is said anew.
    wider = models.build("llama", **{**vars(model.config), "rope_base": 77.0})
    models.save_pretrained(tmp_path / "c", wider, saved.made("llama_linear")[1], like=tmp_path / "a")
    assert (old | new) <= json.loads((tmp_path / "c" / "config.json").read_text()).keys()
    assert models.model_of(tmp_path / "c").config == wider.config
