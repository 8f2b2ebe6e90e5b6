"""The built-in strategies against their formulas, and the policies of their terms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.strategies.pools import changed, made_pool
from egal_bench.config import Config
from egal_bench.strategies import Pool, Query, available, find
from egal_bench.strategies.terms import fill_empty, scaled

WEIGHTS = Config(lambda_=1.7, convex_lambda=0.4)


def formula(name: str, p: np.ndarray, h: float, d: float) -> float:
    top = sorted(p, reverse=True)
    return {
        "entropy": h, "margin": top[1] - top[0], "least-confidence": 1 - top[0], "egal": h + 1.7 * d,
        "egal-convex": 0.4 * h + 0.6 * d, "misalignment": d,
    }[name]  # fmt: skip


def ranked(pool: Pool, name: str, config: Config | None = None) -> Query:
    """Return the whole pool in the order in which the strategy `name` would buy it."""
    return find(name, config)(changed(pool, budget=len(pool)))


@pytest.mark.parametrize("name", ["entropy", "margin", "least-confidence", "egal", "egal-convex", "misalignment"])
@pytest.mark.parametrize("seed", range(5))
def test_strategy_ranks_by_its_formula(name, seed):
    pool = made_pool(name, seed=seed)
    dice = made_pool("egal", seed=seed).overlap.dice
    samples = zip(pool.probabilities, pool.entropy, dice, strict=True)
    expected = np.array([formula(name, p, h, 1 - d) for p, h, d in samples])
    query = ranked(pool, name, WEIGHTS)
    assert query.indices.tolist() == np.argsort(-expected).tolist()
    np.testing.assert_allclose(query.scores, expected[query.indices], rtol=1e-12)


def test_random_is_a_permutation_of_the_pool():
    query = ranked(made_pool("random"), "random")
    assert sorted(query.indices.tolist()) == list(range(30))
    assert query.indices.tolist() != list(range(30))


def test_parameters_in_the_specification_override_the_flags():
    pool = made_pool("egal")
    by_flag = ranked(pool, "egal", Config(lambda_=0.2))
    by_specification = ranked(pool, "egal(lambda=0.2)", Config(lambda_=9.0))
    assert by_flag.indices.tolist() == by_specification.indices.tolist()
    assert by_flag.indices.tolist() != ranked(pool, "egal", Config(lambda_=9.0)).indices.tolist()


@pytest.mark.parametrize(("policy", "filled"), [("zero", 0.0), ("mean", 0.6), ("exclude", None)])
def test_empty_roi_policy_decides_where_samples_without_roi_rank(policy, filled):
    pool = made_pool("misalignment", 5, dice=np.array([0.2, np.nan, 0.6, np.nan, 0.4]))  # D .8, .4, .6: mean .6
    pool = changed(pool, tie_order=np.arange(5))
    query = ranked(pool, f"misalignment(empty-roi={policy})")
    order = {"zero": [0, 4, 2, 1, 3], "mean": [0, 1, 3, 4, 2], "exclude": [0, 4, 2, 1, 3]}
    scores = dict(zip(query.indices.tolist(), query.scores.tolist(), strict=True))
    if policy == "mean":  # 1, 3 and 4 are equal up to rounding
        assert (query.indices[0], query.indices[-1]) == (0, 2)
    else:
        assert query.indices.tolist() == order[policy]
    assert all(np.isnan(scores[i]) if filled is None else scores[i] == pytest.approx(filled) for i in (1, 3))


def test_zero_starves_samples_without_roi_and_mean_does_not():
    dice = np.where(np.arange(30) % 2, np.nan, np.linspace(0, 1, 30))
    for policy, remainders in (("zero", {0}), ("mean", {0, 1})):
        query = ranked(made_pool("misalignment", dice=dice), f"misalignment(empty-roi={policy})")
        assert set(query.indices[:15] % 2) == remainders


def test_pool_without_any_roi_is_ranked_by_entropy_alone():
    pool = made_pool("egal", dice=np.full(30, np.nan))
    assert ranked(pool, "egal").indices.tolist() == np.argsort(-pool.entropy).tolist()


def test_filling_leaves_the_original_alone():
    misalignment = np.array([0.5, np.nan])
    fill_empty(misalignment, "zero")
    assert np.isnan(misalignment[1])


@settings(max_examples=50)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.booleans(), st.sampled_from(["minmax", "rank"]))
def test_scaled_terms_span_0_to_1_and_keep_the_order(values, with_nan, scale):
    term = np.array(values + [np.nan] * with_nan)
    result = scaled(term, scale)
    known = ~np.isnan(term)
    assert np.isnan(result[~known]).all()
    assert result[known].min() >= 0
    assert result[known].max() <= 1
    i, j = np.meshgrid(np.flatnonzero(known), np.flatnonzero(known))
    assert (result[i] < result[j])[term[i] < term[j] - 1e-9].all()
    assert np.array_equal(result[i][term[i] == term[j]], result[j][term[i] == term[j]])


def test_rank_scale_gives_both_terms_the_same_weight():
    pool = made_pool("egal")
    narrow = changed(pool, entropy=pool.entropy * 1e-3)
    query, narrow_query = (ranked(either, "egal(normalise=rank)") for either in (pool, narrow))
    assert query.indices.tolist() == narrow_query.indices.tolist()


def test_only_strategies_of_rois_cost_masks():
    built_in = {name: strategy for name, strategy in available().items() if not strategy.source}
    assert {name for name in built_in if "roi" in built_in[name].needs} == {
        "egal", "egal-convex", "misalignment", "roi-area",
    }  # fmt: skip
    assert [name for name in built_in if built_in[name].oracle] == ["class-balanced-random"]
