"""EG-AL's variants: diverse queries, and D without its dependence on the area of the ROI."""

import numpy as np
import pytest

from egal_bench.errors import BenchError
from egal_bench.strategies import find


def test_diverse_draws_by_k_means_plus_plus_among_the_best(make, uniforms):
    numbers = np.random.default_rng(3).random(10)
    strategy, pool = make("egal(diverse=3)", n=50, budget=5, rng=uniforms(numbers))
    scores = pool.entropy + pool.overlap.misalignment
    best = np.argsort(-scores)[:15]
    rows, chosen = pool.features[best].astype(float), [0]
    for u in numbers[:4]:
        weights = np.array([min(((row - rows[c]) ** 2).sum() for c in chosen) for row in rows])
        chosen.append(int(np.searchsorted(np.cumsum(weights), u * weights.sum(), side="right")))
    query = strategy(pool)
    assert query.indices.tolist() == best[chosen].tolist()
    np.testing.assert_allclose(query.scores, scores[query.indices])


def test_diverse_of_one_is_the_plain_ranking_in_another_order(make):
    strategy, pool = make("egal(diverse=1)")
    plain, same = make("egal")
    assert set(strategy(pool).indices) == set(plain(same).indices)


def test_diverse_draws_no_excluded_sample_while_others_are_left(make):
    dice = np.where(np.arange(40) < 10, 0.5, np.nan)
    strategy, pool = make("egal(diverse=4,empty-roi=exclude)", dice=dice, budget=12)
    query = strategy(pool)
    assert set(query.indices[:10]) == set(range(10))
    assert np.isnan(query.scores[10:]).all()


def test_area_matched_is_the_residual_of_a_least_squares_line(make):
    area = np.random.default_rng(0).integers(10, 900, 40)
    dice = np.clip(area / 900 + np.random.default_rng(1).normal(scale=0.1, size=40), 0, 1)
    dice[[4, 9]] = np.nan
    strategy, pool = make("egal(area-matched=true,lambda=2)", dice=dice, roi_area=area, budget=40)
    query = strategy(pool)
    known = ~np.isnan(dice)
    line = np.polynomial.Polynomial.fit(area[known], 1 - dice[known], 1)
    residual = np.where(known, 1 - dice - line(area), 0.0) + (1 - dice[known]).mean()
    want = pool.entropy + 2 * residual
    np.testing.assert_allclose(query.scores, want[query.indices], rtol=1e-10)


def test_area_matched_with_equal_areas_is_plain_egal(make):
    same_area = np.full(40, 77)
    strategy, pool = make("egal(area-matched=true)", roi_area=same_area, budget=40)
    plain, same = make("egal", roi_area=same_area, budget=40)
    assert strategy(pool).indices.tolist() == plain(same).indices.tolist()


@pytest.mark.parametrize(
    ("specification", "needs"),
    [
        ("egal", {"roi"}),
        ("egal(diverse=10)", {"roi", "features"}),
        ("egal(roi=shuffled)", {"roi", "shuffled-roi"}),
        ("misalignment(roi=shuffled)", {"roi", "shuffled-roi"}),
        ("egal(diverse=0,roi=true)", {"roi"}),
    ],
)
def test_parameters_decide_what_egal_reads(specification, needs):
    assert find(specification).needs == needs


@pytest.mark.parametrize("wrong", ["egal(diverse=-1)", "egal(roi=random)", "probcover(purity=1)", "badge(k=3)"])
def test_a_wrong_parameter_of_a_variant_is_an_error(wrong):
    with pytest.raises(BenchError):
        find(wrong)


def test_per_class_buys_the_same_number_of_each_true_class(make):
    labels = np.random.default_rng(3).permutation(np.repeat([0, 1, 2], [6, 14, 20]))
    strategy, pool = make("egal-convex(per-class=true)", labels=labels, budget=12)
    plain, same = make("egal-convex", budget=40)
    ranking = plain(same)
    score = dict(zip(ranking.indices.tolist(), ranking.scores.tolist(), strict=True))
    query = strategy(pool)
    expected = np.concatenate([sorted(np.flatnonzero(labels == k), key=lambda i: -score[i])[:4] for k in range(3)])
    assert query.indices.tolist() == sorted(expected, key=lambda i: -score[i])
    assert query.scores.tolist() == [score[i] for i in query.indices]


def test_per_class_fills_up_with_the_best_of_the_others(make):
    labels = np.array([0, 0] + [1] * 19 + [2] * 19)
    strategy, pool = make("egal-convex(per-class=true)", labels=labels, budget=13)
    bought = strategy(pool).indices
    plain, same = make("egal-convex", budget=40)
    best = plain(same).indices.tolist()
    quota = {0, 1} | {i for k in (1, 2) for i in [i for i in best if labels[i] == k][:4]}
    others = [i for i in best if i not in quota]
    assert set(bought) == quota | set(others[:3])


def test_per_class_makes_an_oracle_of_the_author_s_variant():
    assert find("egal-convex(per-class=true)").needs == {"roi", "pool-labels"}
    assert find("egal-convex").needs == {"roi"}
