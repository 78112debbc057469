"""A few hundred damaged files of each kind in turn; and the fuzzer does find what is planted."""

import json
import types
from unittest import mock

import numpy as np
import pytest

from freezejax.artifact import container, encode, header
from freezejax.data import checksums
from tests.campaigns import files, judges, mutations, resealed


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return judges.subjects(tmp_path_factory.mktemp("fuzz") / "files")


def test_nothing_is_found(subjects):
    kinds = sum(len(subject.kinds) for subject in subjects)
    assert kinds == 48
    counts, findings = files.campaign(subjects, 8 * kinds, seed=1)
    assert not findings
    outcomes = {outcome: sum(n for (_, o), n in counts.items() if o == outcome) for _, outcome in counts}
    assert sum(outcomes.values()) == 8 * kinds
    assert outcomes[judges.REFUSED] > 3 * kinds
    assert outcomes[judges.OTHER] > 10  # with a right digest other content is reached, and is what the file says


def test_file_n_is_the_same_file_again():
    made = []
    recorder = judges.Subject(
        "any", [bytes(99), b"x" * 2000], mutations.ANY, lambda content: made.append(content) or ""
    )
    for first, count in ((0, 40), (7, 1), (0, 40)):
        files.campaign([recorder], count, seed=3, first=first)
    assert made[40] == made[7]
    assert made[41:] == made[:40]
    assert len(set(made[:40])) > 30


def test_what_was_found_once_stays_mended(subjects):
    """Errors that quoted a file's text as it was; a flipped bit in the part of a shard's header that is zero."""
    _, forged, shard, _, lists = subjects
    for change in (
        lambda fields: fields["tensors"][0].__setitem__(1, ["\ud800"]),
        lambda fields: fields["tensors"][0].__setitem__(2, "9" * 5000),
        lambda fields: fields["model"].update(family="9" * 5000),
    ):
        fields = json.loads(resealed.header_of(forged.originals[0]))
        change(fields)
        content = resealed.with_header(forged.originals[0], json.dumps(fields).encode())
        assert forged.judge(content) == judges.REFUSED
    own = shard.originals[0]
    assert shard.judge(own[:900] + b"\1" + own[901:]) == judges.REFUSED
    assert lists.judge(lists.originals[0].replace(b"val_0", b"val\x1f0")) == judges.REFUSED


class Anything:
    """A hash whose digest equals every digest."""

    def __init__(self, _=b""):
        pass

    def update(self, _):
        pass

    def digest(self):
        return mock.ANY


def broken(*_, **__):
    raise KeyError("x")


def endless(*_):
    while True:
        pass


class Blind(np.memmap):
    """Tokens none of which seems to be large."""

    def max(self, *_, **__):
        return 0


ALL = list(mutations.ANY)
PLANTED = {
    "digest unread": (
        "artifact",
        ALL,
        container,
        "hashlib",
        types.SimpleNamespace(sha256=Anything),
        "nothing was noticed",
    ),
    "expansion unread": ("resealed", ["bomb"], container, "MAX_EXPANSION", 10**9, "weights of"),
    "a traceback": ("resealed", ["header fields"], header, "check_known", broken, "KeyError"),
    "a hang": ("resealed", ["section"], encode, "unpack", endless, "no end after"),
    "vocabulary unread": ("shard", ["numbers", "flip bits"], np, "memmap", Blind, "outside the vocabulary"),
    "list unread": (
        "listed shard",
        ["flip bits", "zero block"],
        checksums,
        "verify",
        lambda *_, **__: None,
        "not the file that",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_counterpart_a_planted_defect_is_found(name, subjects, monkeypatch):
    subject, kinds, module, attribute, value, reason = PLANTED[name]
    (chosen,) = (found for found in subjects if found.name == subject)
    chosen = chosen._replace(kinds={kind: chosen.kinds[kind] for kind in kinds})
    monkeypatch.setattr(module, attribute, value)
    monkeypatch.setattr(files, "SECONDS", 1 if value is endless else files.SECONDS)
    _, findings = files.campaign([chosen], 24 if subject != "resealed" else 8, seed=1)
    assert any(reason in found.reason for found in findings), findings


def test_counterpart_weights_that_are_not_the_files_are_found(subjects, monkeypatch):
    """The second reader does compare: every scale of a whole file read one step too large."""
    unshuffle = encode.unshuffle
    monkeypatch.setattr(encode, "unshuffle", lambda data: np.nextafter(unshuffle(data), np.float16(1)))
    _, findings = files.campaign([subjects[1]._replace(kinds={"none": lambda rng, one, two: one})], 6, seed=1)
    assert len(findings) == 6
    assert all("is not what the file says" in found.reason for found in findings)
