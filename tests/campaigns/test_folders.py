"""A damaged file of each kind that other programs write; what was found once; and that a planted defect is found."""

import json

import jax
import pytest

from freezejax.models import importers
from tests.campaigns import files, folders, judges


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return {subject.name: subject for subject in folders.subjects(tmp_path_factory.mktemp("fuzz") / "files")}


def test_nothing_is_found(subjects):
    kinds = sum(len(subject.kinds) for subject in subjects.values())
    counts, findings = files.campaign(list(subjects.values()), kinds, seed=2)
    assert not findings
    assert sum(n for (_, outcome), n in counts.items() if outcome == judges.REFUSED) > kinds / 2


def test_a_whole_file_is_taken(subjects):
    assert {subject.judge(subject.originals[0]) for subject in subjects.values()} == {judges.SAME}


def edited(subject, **changes):
    return json.dumps({**json.loads(subject.originals[0]), **changes}).encode()


def test_what_was_found_once_stays_mended(subjects):
    """Errors that named no file, or none at all: deep JSON, names that no file has, pieces that are no text, ids."""
    config, index = subjects["config"], subjects["sharded"]
    refused = [
        (config, edited(config, architectures=1.5)),
        (config, edited(config, num_hidden_layers=3)),
        (config, config.originals[0].replace(b": ", b": " + b"[" * 100_000, 1)),
        (index, edited(index, weight_map={"a": "9" * 5000})),
        (subjects["sentencepiece"], subjects["sentencepiece"].originals[0].replace("ä".encode(), b"\xc3\xff")),
    ]
    for subject, content in refused:
        assert content != subject.originals[0]
        assert subject.judge(content) == judges.REFUSED
    tokenizer = subjects["json_tokenizer"]
    found = json.loads(tokenizer.originals[0])
    for far, outcome in ((5, judges.OTHER), (10**6, judges.REFUSED)):  # a hole in the vocabulary; no vocabulary
        vocab = found["model"]["vocab"]
        moved = {token: at + far * (token == "z") for token, at in vocab.items()}
        content = json.dumps({**found, "model": {**found["model"], "vocab": moved, "merges": []}}).encode()
        assert tokenizer.judge(content) == outcome


def test_counterpart_a_planted_defect_is_found(subjects, monkeypatch):
    def broken(*_, **__):
        raise KeyError("x")

    whole = {"none": lambda rng, one, two: one}
    monkeypatch.setattr(importers, "params_from_torch", broken)
    _, findings = files.campaign([subjects["weights"]._replace(kinds=whole)], 1, seed=1)
    assert [found.reason for found in findings] == ["KeyError: 'x'"]
    monkeypatch.undo()
    monkeypatch.setattr(importers, "params_from_torch", lambda model, state, dtype: model.init(jax.random.key(9)))
    _, findings = files.campaign([subjects["weights"]._replace(kinds=whole)], 1, seed=1)
    assert "is not what the file says" in findings[0].reason
