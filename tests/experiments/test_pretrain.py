"""One model trained or fine-tuned by a command: what of it trains, by types of modules, in every family."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments import pretrain
from experiments.configs import pretrain as configs
from experiments.engine import lock
from experiments.engine.study import run_study
from freezejax import UserError, models, module_types, trainable_mask
from freezejax.paths import by_path
from tests.models.conftest import SMALL


@pytest.fixture
def base(tmp_path):
    """A model's folder."""
    model = models.build("gpt2", vocab_size=256, num_layers=1, model_dim=16, num_heads=2, positions=64)
    models.save_pretrained(tmp_path / "base", model, model.init(jax.random.key(0)))
    return tmp_path / "base"


@pytest.fixture
def standard():
    """For optax's Adam, in the threads that compile, too."""
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before)


@pytest.mark.usefixtures("standard")
def test_a_model_is_fine_tuned_one_type_of_module_alone(base, tmp_path, monkeypatch):
    monkeypatch.setenv("FREEZEJAX_CACHE", str(tmp_path / "cache"))
    config = configs.get_config("tiny")
    config.train.steps, config.train.batch_size, config.train.seq_len, config.data.val_sequences = 2, 2, 16, 8
    config.start, config.trainable = str(base), "c_proj"
    with lock.held:
        run_study(pretrain.make_study, config, tmp_path / "out")
    before, after = (
        by_path(models.load_pretrained(path)[1]) for path in (base, pretrain.save(config, tmp_path / "out"))
    )
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if "/c_proj/" in path}
    log = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert "attn/c_proj" in json.loads(log[0])["rules"][0]


def test_a_tokenizer_that_is_learned_from_the_text_is_none_of_a_model_that_has_its_own(base, tmp_path):
    config = configs.get_config("cpu")
    config.start = str(tmp_path / "model")
    shutil.copytree(base, config.start)
    pretrain.make_study(config, 256)  # of bytes
    (tmp_path / "model" / "spiece.model").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"config\.data\.tokenizer=bpe:14592: the model was trained with .*spiece\.model"
    ):
        pretrain.make_study(config, 256)


@pytest.mark.parametrize("family", sorted(SMALL))
def test_every_type_of_every_family_can_be_what_trains(family):
    config = configs.get_config("tiny")
    config.model = {"family": family, **SMALL[family]}
    shapes = models.build(**config.model.to_dict()).abstract_params()
    learns = [path for path, trains in by_path(trainable_mask(shapes, [(".*", True)])).items() if trains]  # no counter
    for name in module_types(shapes):
        config.trainable = name
        (variant,) = pretrain.make_study(config, 13).variants
        mask = by_path(variant.schedule.phases(shapes, 9)[0].mask)
        assert {path for path, trains in mask.items() if trains} == {path for path in learns if name in path.split("/")}
    config.trainable = "none_such"
    types = ", ".join(module_types(shapes))
    with pytest.raises(
        UserError, match=f"config.trainable: there is no module type 'none_such'; this model has {types}"
    ):
        pretrain.make_study(config, 13)
