"""What to freeze at a tolerated loss: the fit on made losses whose answer is known, and the whole on a small model."""

import jax
import numpy as np
import pytest

import freezejax
from freezejax import UserError, models
from freezejax.cost import effects, recommendation
from freezejax.cost.effects import draw_subsets, fit, within
from freezejax.cost.recommendation import each_block_matrix, recommend, rules_of, shares_of
from freezejax.paths import by_path
from freezejax.training.batches import TokenBatches
from freezejax.training.config import OptimizerConfig, TrainConfig
from tests.training.conftest import Evaluated

NAMES = tuple("abcdef")
SHARES = np.array([0.3, 0.1, 0.2, 0.2, 0.1, 0.1])
TRUE = np.array([0.02, -0.01, 0.0, 0.03, 0.005, 0.0])  # nats
LEVEL, TOGETHER = 2.0, 0.2


def loss_of(row, noise=0.0):
    return LEVEL + row @ TRUE + TOGETHER * (row @ SHARES) ** 2 + noise


def made(rng, sd=0.005, count=24, seeds=3, together=True):
    rows = draw_subsets(6, count)
    levels = rng.normal(size=seeds)
    found = []
    for seed in range(seeds):
        for row in [np.zeros(6, bool), *rows[seed::seeds]]:
            extra = 0.0 if together else -TOGETHER * (row @ SHARES) ** 2
            found.append((seed, row, loss_of(row, levels[seed] * 0.1 + sd * rng.normal() + extra)))
    return found


def cost_of(row):
    return 100 * (loss_of(row) / LEVEL - 1)


def test_effects_are_found_whatever_the_levels_of_the_seeds():
    found = fit(NAMES, SHARES, made(np.random.default_rng(0), sd=1e-9))
    np.testing.assert_allclose(found.effects, [*TRUE, TOGETHER], atol=1e-6)
    for names in ("a", "bc", "abcdef", ""):
        row = np.array([name in names for name in NAMES])
        scale = found.level / LEVEL  # a cost is in percent of the mean level
        assert found.predict(list(names)).mean * scale == pytest.approx(cost_of(row), abs=1e-4)
    with pytest.raises(UserError, match="there is no group 'x'; those measured are a, b"):
        found.predict(["x"])


def test_nineteen_of_twenty_intervals_hold_what_a_new_pair_of_runs_gives():
    rng, sd, inside, of_mean = np.random.default_rng(1), 0.01, [], []
    for _ in range(300):
        found = fit(NAMES, SHARES, made(rng, sd))
        row = rng.random(6) < 0.5
        names = [name for name, frozen in zip(NAMES, row, strict=True) if frozen]
        whole, frozen = LEVEL + sd * rng.normal(), loss_of(row, sd * rng.normal())
        one, mean, scale = found.predict(names, runs=True), found.predict(names), found.level / 100
        inside.append(one.low * scale <= frozen - whole <= one.high * scale)
        of_mean.append(mean.low * scale <= loss_of(row) - LEVEL <= mean.high * scale)
    assert 0.91 < np.mean(inside) < 0.985
    assert 0.91 < np.mean(of_mean) < 0.985


def test_the_same_where_freezing_costs_differently_from_one_order_of_the_data_to_another(monkeypatch):
    """Each seed has a slope of its own; the counterpart is a fit that does not know."""
    coverage = {}
    for knows in (True, False):
        if not knows:
            monkeypatch.setattr(effects, "_variance_of_slopes", lambda slopes, covariance: 0.0)
        rng, inside, of_mean = np.random.default_rng(5), [], []
        for _ in range(300):
            slopes = rng.normal(size=9) * 0.04
            losses = [(s, row, loss + slopes[s] * (row @ SHARES)) for s, row, loss in made(rng, 0.004, 30, seeds=8)]
            found = fit(NAMES, SHARES, losses)
            row = np.ones(6, bool)
            new = loss_of(row, 0.004 * rng.normal()) + slopes[8] - LEVEL - 0.004 * rng.normal()
            one, mean, scale = found.predict(NAMES, runs=True), found.predict(NAMES), found.level / 100
            inside.append(one.low * scale <= new <= one.high * scale)
            of_mean.append(mean.low * scale <= loss_of(row) - LEVEL <= mean.high * scale)
        coverage[knows] = np.mean(inside), np.mean(of_mean)
    assert all(0.92 < share < 0.99 for share in coverage[True]), coverage
    assert all(share < 0.75 for share in coverage[False]), coverage


def test_the_seeds_levels_are_needed_for_that():
    rng, inside = np.random.default_rng(1), []
    for _ in range(100):
        losses = [(0, row, loss) for _, row, loss in made(rng, 0.002)]  # as if all were of one seed
        found = fit(NAMES, SHARES, losses)
        inside.append(found.predict(["a"]).high - found.predict(["a"]).low)
    honest = fit(NAMES, SHARES, made(np.random.default_rng(2), 0.002)).predict(["a"])
    assert np.median(inside) > 3 * (honest.high - honest.low)


def test_what_is_cheap_alone_and_dear_together_is_frozen_in_part(monkeypatch):
    """The paradox of paper 64: without the squared share each would seem to cost what it costs in company."""
    found = fit(NAMES, SHARES, made(np.random.default_rng(3), sd=1e-4))
    for tolerance in (0.5, 2.0, 5.0):
        frozen = within(found, tolerance)
        row = np.array([name in frozen for name in NAMES])
        assert 0 < row.sum() < 6
        assert cost_of(row) <= tolerance * 1.02
        left = [cost_of(row | (np.arange(6) == i)) for i in range(6) if not row[i]]
        assert min(left) > tolerance * 0.9  # nothing more would have fitted
    assert within(found, 50.0) == NAMES
    assert within(found, 1e-9) == () or cost_of(np.array([name in within(found, 1e-9) for name in NAMES])) <= 0
    noise = lambda rows, _: np.hstack([rows, 1.0 * (np.arange(len(rows)) % 2)[:, None]])  # noqa: E731
    alone = cost_of(np.arange(6) == 0)
    assert abs(found.predict(["a"]).mean - alone) < 0.1
    monkeypatch.setattr(effects, "_features", noise)  # the counterpart: nothing that knows of company
    blind = fit(NAMES, SHARES, made(np.random.default_rng(3), sd=1e-4))
    assert abs(blind.predict(["a"]).mean - alone) > 1


def test_every_subset_is_run_once_and_sizes_are_even():
    rows = draw_subsets(5, 20)
    assert np.bincount(rows.sum(axis=1)).tolist() == [0, 4, 4, 4, 4, 4]
    assert len({tuple(row) for row in rows}) > 12
    assert np.abs(rows.mean(axis=0) - 0.6).max() < 0.25


@pytest.mark.parametrize("groups", [2, 5, 8, 12])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_fewest_subsets_still_tell_the_groups_apart(groups, seeds):
    """Of some draws only sums of effects follow: the least squares of least norm would deal them out at will."""
    shares = np.full(groups, 1 / groups)
    chosen = effects.told_apart(shares, groups + 2, seeds)
    runs = [(seed, row) for seed in range(seeds) for row in [np.zeros(groups, bool), *chosen[seed::seeds]]]
    true = np.linspace(0.0, 0.25, groups)
    found = fit(list("abcdefghijkl"[:groups]), shares, [(seed, row, 2.0 + seed + row @ true) for seed, row in runs])
    np.testing.assert_allclose(found.effects, [*true, 0.0], atol=1e-9)


def test_groups_that_are_not_told_apart_are_refused():
    shares, together = np.full(2, 0.5), np.array([[True, True], [False, False]])
    losses = [(0, row, 2.0 + noise) for row in together for noise in (0.0, 0.1, 0.2)]
    with pytest.raises(UserError, match="6 runs cannot tell 2 groups apart"):
        fit("ab", shares, losses)
    one = fit("a", np.ones(1), [(0, row[:1], 2.0 + row[0]) for row in together for _ in range(2)])
    assert one.predict(["a"]).mean == pytest.approx(50.0)  # a group alone is its square: their sum is known


def test_an_evaluation_without_the_figure_is_told_before_a_step_is_run(setup):
    with pytest.raises(UserError, match="figure='val_acc': the objective's evaluation gives val_ce"):
        freezejax.recommend(*setup, tolerance_pct=1.0, figure="val_acc")


@pytest.fixture(scope="module")
def setup():
    model = models.build("gpt2", vocab_size=61, num_layers=2, model_dim=16, num_heads=2, positions=32)
    tokens = (np.arange(600) * 7 % 61).astype(np.uint16)
    held = np.arange(33)[None] * 7 % 61

    def score(params):
        return {"val_ce": float(model.apply(params, held[:, :-1], targets_BxT=held[:, 1:]).mean())}

    objective = Evaluated(model, "float32", score)
    config = TrainConfig(4, 2, 16, optimizer=OptimizerConfig(learning_rate=1e-2))
    return model, model.init(jax.random.key(0)), objective, lambda config: TokenBatches(tokens, config), config


def test_a_model_is_measured_and_what_comes_out_can_be_trained_with(setup):
    model, params, _, _, config = setup
    groups = {"attention": r"blocks/\d/attn/.*", "mlp": r"blocks/\d/mlp/.*", "norms": r"blocks/\d/ln\d/.*"}
    said = []
    with jax.numpy_dtype_promotion("standard"):
        found = freezejax.recommend(*setup, tolerance_pct=60.0, groups=groups, subsets=9, seeds=2, say=said.append)
    assert said == ["seed 0: 6 runs of 4 steps", "seed 1: 5 runs of 4 steps"]
    assert set(found.frozen) <= groups.keys()
    assert found.cost.high <= 60.0
    (phase,) = found.schedule.phases(params, config.steps)
    frozen = {path for path, trains in by_path(phase.mask).items() if not trains}
    wanted = freezejax.trainable_mask(params, rules_of(groups, found.frozen))
    assert frozen == {path for path, trains in by_path(wanted).items() if not trains}
    assert frozen
    assert 0 < found.saved["flops"] < 1
    assert 0 < found.saved["memory"] <= 1
    told = recommendation.describe(found)
    assert told["frozen"] == [*found.frozen]
    assert told["alone_pct"].keys() == groups.keys()
    assert told["cost_pct"]["high"] <= 60.0
    assert shares_of(model.abstract_params(), groups).sum() == pytest.approx(1.0)


def test_without_groups_every_matrix_of_the_blocks_is_one(setup):
    found = each_block_matrix(setup[0].abstract_params())
    assert len(found) == 8
    assert all(path.startswith("blocks/") and path.endswith("/kernel") for path in found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tolerance_pct": 0.0}, r"tolerance=0.0 %, seeds=6: expected a number above 0"),
        ({"seeds": 0}, "seeds=0"),
        ({"subsets": 5}, "subsets=5: 8 groups need at least 10 to be told apart"),
    ],
)
def test_what_cannot_be_told_is_refused(setup, fields, message):
    with pytest.raises(UserError, match=message):
        recommend(*setup, **{"tolerance_pct": 1.0, **fields})
