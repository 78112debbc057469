"""A low-rank correction beside a whole MLP: the seed's formulas, in numpy, and a start as the model without it."""

import jax
import numpy as np
import pytest
from scipy.special import erf

from freezejax import artifact, models
from freezejax.models import layers
from freezejax.roles import Role, leaves

FORMS = {"linear": lambda h: h, "gelu": lambda h: h * (1 + erf(h / np.sqrt(2))) / 2}
SIZES = {"num_layers": 1, "model_dim": 32, "num_heads": 2, "vocab_size": 13}
FAMILIES = {
    "geglu": {"family": "geglu", **SIZES},
    "parameter_golf": {"family": "parameter_golf", "num_kv_heads": 1, **SIZES},
}
TOKENS = np.arange(10, dtype=np.int32).reshape(2, 5)
KEY = jax.random.key(4)
every_form = pytest.mark.parametrize("form", FORMS)
every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
@every_form
def test_it_starts_as_the_model_without_it_and_adds_its_formula(family, form, monkeypatch):
    plain, model = (
        models.build(**FAMILIES[family], **more) for more in ({}, {"correction": form, "correction_rank": 5})
    )
    params = model.init(KEY)
    np.testing.assert_array_equal(model.apply(params, TOKENS), plain.apply(plain.init(KEY), TOKENS))
    seen = []

    def noted(self, x):
        seen.append((np.asarray(x, np.float64), np.asarray(found := called(self, x))))
        return found

    called = layers.Correction.__call__
    monkeypatch.setattr(layers.Correction, "__call__", noted)
    mlp = params["blocks"][0]["mlp"]["correction"]
    mlp["b"]["kernel"] = mlp["b"]["kernel"] + np.linspace(-1, 1, 5 * 32, dtype=np.float32).reshape(5, 32)
    assert np.abs(model.apply(params, TOKENS) - plain.apply(plain.init(KEY), TOKENS)).max() > 1e-3
    ((x, y),) = seen
    wanted = FORMS[form](x @ np.asarray(mlp["a"]["kernel"])) @ np.asarray(mlp["b"]["kernel"])
    np.testing.assert_allclose(y, wanted, atol=1e-4)


@every_family
def test_its_matrices_are_adapters_to_codecs_meshes_and_optimizers(family):
    params = models.build(**FAMILIES[family], correction="gelu").init(KEY)
    found = {leaf.path: leaf.role for leaf in leaves(params) if "correction" in leaf.path}
    assert found == {f"blocks/0/mlp/correction/{side}/kernel": Role.ADAPTER for side in "ab"}


@every_family
def test_it_packs_and_loads(family, tmp_path):
    config = {**FAMILIES[family], "correction": "linear", "correction_rank": 3}
    model = models.build(**config)
    params = model.init(KEY)
    artifact.save(tmp_path / "x.fjax", params, model=config)
    apply, loaded, _ = artifact.load(tmp_path / "x.fjax")
    np.testing.assert_array_equal(apply(loaded, TOKENS), model.apply(artifact.quantize(params), TOKENS))


@pytest.mark.parametrize(("field", "value"), [("correction", "quadratic"), ("correction_rank", 0)])
def test_bad_fields_are_told(field, value, check_refused):
    check_refused(lambda: models.build("geglu", **{field: value}), f"GegluConfig.{field}={value!r} must be")
