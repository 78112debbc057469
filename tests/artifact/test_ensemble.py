"""Several files as one model, one file of it, and one line for files that do not go together."""

import jax
import numpy as np
import pytest

from freezejax import artifact
from freezejax.artifact import header
from freezejax.errors import UserError
from freezejax.models import ensemble

NAMES = ("maps", "parameter_golf")
MINE, OTHER = ({"name": name, "sha256": 64 * digit} for name, digit in (("mine", "0"), ("other", "1")))


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """A file of each member, with its tokenizer."""
    paths = [tmp_path_factory.mktemp("members") / f"{name}.fjax" for name in NAMES]
    for path, name in zip(paths, NAMES, strict=True):
        config, params = trained(name)
        artifact.save(path, params, model=config, tokenizer=MINE)
    return paths


def test_files_are_one_model_that_packs_into_one_file_with_the_same_bits(files, trained, tokens, tmp_path):
    apply, params, about = artifact.load_ensemble(files)
    logits = [np.asarray(jax.jit(one)(own, tokens)) for one, own, _ in map(artifact.load, files)]
    found = np.asarray(jax.jit(apply)(params, tokens))
    np.testing.assert_allclose(found, sum(logits) / 2, rtol=1e-5, atol=1e-5)
    assert about["bytes"] == sum(path.stat().st_size for path in files)
    assert about["tokenizer"] == MINE
    assert [member["model"] for member in about["members"]] == about["model"]["members"]
    whole = ensemble.join([trained(name)[1] for name in NAMES])
    saved = artifact.save(tmp_path / "one.fjax", whole, model=about["model"])
    assert saved.sizes["seed"] == 8
    _, packed, again = artifact.load(tmp_path / "one.fjax")
    jax.tree.map(np.testing.assert_array_equal, packed, params)
    assert again["model"] == about["model"]
    _, _, other = artifact.load_ensemble(files, combine="probabilities", budget=about["bytes"])
    assert other["model"] == {**about["model"], "combine": "probabilities"}


def test_files_that_do_not_go_together_are_told_in_one_line(files, trained, tmp_path):
    config, params = trained("geglu")
    artifact.save(tmp_path / "other.fjax", params, model=config, tokenizer=OTHER)
    small = {**config, "vocab_size": 69}
    cut = {**params, "tok_emb": {"embedding": params["tok_emb"]["embedding"][:69]}}
    artifact.save(tmp_path / "small.fjax", cut, model=small)
    artifact.save(tmp_path / "bare.fjax", params)
    total = sum(path.stat().st_size for path in files)
    for paths, budget, message in (
        (files, total - 1, f"{total:,} bytes together, 1 over {total - 1:,}"),
        ([*files, tmp_path / "other.fjax"], None, "other.fjax: its tokenizer is other, that of "),
        ([*files, tmp_path / "small.fjax"], None, "small.fjax: its vocabulary is of 69 tokens, that of "),
        ([tmp_path / "bare.fjax"], None, "it holds parameters alone"),
        ([], None, "an ensemble of no files"),
    ):
        with pytest.raises(UserError) as error:
            artifact.load_ensemble(paths, budget=budget)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"num_layers": 10**6}, "the model has 1000002 layers, but"),
        ({"weights": [{"pattern": "(a|b)*c", "kind": "map"}]}, "no repeated group"),
    ],
)
def test_a_header_is_held_to_its_bounds_in_every_member(member, message, trained):
    config, params = trained("geglu")
    model = {"family": "ensemble", "members": [{"family": "geglu"}, {**config, **member}]}
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        header.make_header(params, model)
