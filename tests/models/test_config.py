"""Every bad config is told in one line that names the field."""

import math

import jax
import pytest

from freezejax import models
from freezejax.errors import UserError

SHARED_ERRORS = [
    ({"num_layer": 2}, "no field 'num_layer'; nearest: num_layers"),
    ({"vocab_size": 0}, "vocab_size=0"),
    ({"num_layers": -1}, "num_layers=-1"),
    ({"num_layers": 2**63}, r"num_layers=9223372036854775808 must be at most 2,000"),
    ({"vocab_size": 2**31}, r"vocab_size=2147483648 must be at most 2,147,483,647"),
    ({"mlp_mult": 2.0**63}, r"mlp_mult=9\.2\d*e\+18 gives a width of .*, at most 2,147,483,647"),
    ({"num_layers": 2.5}, r"num_layers=2\.5"),
    ({"num_layers": True}, "num_layers=True"),
    ({"model_dim": 0}, "model_dim=0"),
    ({"num_heads": 0}, "num_heads=0"),
    ({"num_heads": 7}, "num_heads=7 must divide model_dim"),
    ({"model_dim": 24, "num_heads": 8}, "num_heads=8 gives heads of 3 dims, which must be even"),
    ({"mlp_mult": 0}, "mlp_mult=0"),
    ({"mlp_mult": math.inf}, "mlp_mult=inf"),
    ({"mlp_mult": "2"}, "mlp_mult='2'"),
    ({"mlp_mult": 1.001}, r"mlp_mult=1\.001 must give an integer width"),
    ({"rope_base": 0.0}, r"rope_base=0\.0"),
    ({"norm_eps": -1e-6}, "norm_eps=-1e-06"),
    ({"dropout": 1.0}, r"dropout=1\.0"),
    ({"dropout": -0.1}, r"dropout=-0\.1"),
    ({"dropout": math.nan}, "dropout=nan"),
]
OWN_ERRORS = [
    ("geglu", {"rope_dims": 0}, "rope_dims=0"),
    ("geglu", {"rope_dims": 3}, "rope_dims=3 must be even"),
    ("geglu", {"model_dim": 32, "num_heads": 4}, "rope_dims=16 must be even and at most the head, 8"),
    ("geglu", {"mlp_in_init": "fanin"}, "mlp_in_init='fanin' must be 'normal' or 'fan_in'"),
    ("geglu", {"init_std": 0}, "init_std=0"),
    ("geglu", {"num_kv_heads": 2}, "GegluConfig has no field 'num_kv_heads'"),
    ("parameter_golf", {"num_kv_heads": 0}, "num_kv_heads=0"),
    ("parameter_golf", {"num_kv_heads": 3}, "num_kv_heads=3 must divide num_heads=8"),
    ("parameter_golf", {"logit_softcap": 0}, "logit_softcap=0"),
    ("parameter_golf", {"qk_gain_init": 0}, "qk_gain_init=0"),
    ("parameter_golf", {"tied_embed_init_std": -1}, "tied_embed_init_std=-1"),
    ("nemotron_h", {"pattern": "MEX"}, r"pattern='MEX' must be letters of 'ME\*-': M Mamba-2, E experts"),
    ("nemotron_h", {"pattern": ""}, "pattern='' must be letters"),
    ("nemotron_h", {"pattern": 3}, "pattern=3 must be text"),
    ("nemotron_h", {"num_kv_heads": 3}, "num_kv_heads=3 must divide num_heads=32"),
    ("nemotron_h", {"mamba_groups": 5}, "mamba_groups=5 must divide mamba_heads=64"),
    ("nemotron_h", {"experts": 4}, "expert_choices=6 of 4 experts"),
    ("nemotron_h", {"expert_groups": 128, "group_choices": 8}, "expert_groups=128 must leave two experts or more"),
    ("nemotron_h", {"expert_groups": 4, "group_choices": 5}, "group_choices=5 of expert_groups=4 cannot be"),
    ("nemotron_h", {"latent_dim": -1}, "latent_dim=-1 must be an integer of at least 1 or 0"),
    ("nemotron_h", {"dt_min": 0.2, "dt_max": 0.1}, r"dt_max=0\.1 must be above dt_min=0\.2, or 0: no limit"),
]


@pytest.mark.parametrize(("config", "message"), SHARED_ERRORS)
def test_errors_of_both_families(own_family, config, message):
    with pytest.raises(UserError, match=message) as error:
        models.build(own_family, **config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("family", "config", "message"), OWN_ERRORS)
def test_errors_of_one_family(family, config, message):
    with pytest.raises(UserError, match=message):
        models.build(family, **config)


def test_unknown_family():
    with pytest.raises(UserError, match="no model family 'golf'; nearest: parameter_golf"):
        models.build("golf")


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("geglu", {"num_layers": 1, "model_dim": 16, "num_heads": 1, "mlp_mult": 0.25, "dropout": 0}),
        ("geglu", {"model_dim": 30, "num_heads": 3, "rope_dims": 10, "mlp_mult": 1.1}),
        (
            "parameter_golf",
            {"num_layers": 1, "model_dim": 2, "num_heads": 1, "num_kv_heads": 1, "vocab_size": 1},
        ),
        ("parameter_golf", {"num_layers": 2, "model_dim": 40, "num_heads": 4, "mlp_mult": 2.7}),
    ],
)
def test_odd_sizes_that_are_right(family, config):
    model = models.build(family, **config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    logits = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((2, 7), "int32"))
    assert logits.shape == (2, 7, model.config.vocab_size)


def test_configs_are_frozen_and_comparable():
    assert models.GegluConfig() == models.GegluConfig()
    with pytest.raises(AttributeError):
        models.GegluConfig().num_layers = 3  # type: ignore[misc]
