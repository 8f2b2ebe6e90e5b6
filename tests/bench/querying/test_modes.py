"""A strategy that is ranked shard by shard gives each sample the score that it has in the whole pool."""

import numpy as np
import pytest

from egal_bench.config import Config
from egal_bench.errors import BenchError
from egal_bench.querying.modes import Mode, check_usable, mode_of, preselection
from egal_bench.querying.pool_view import Labelled, Ranker
from egal_bench.strategies import find
from egal_bench.strategies.registry import built_in, strategy

POLICIES = [
    f"{name}(empty-roi={policy})" for name in ("egal", "egal-convex", "misalignment") for policy in ("zero", "exclude")
]


def usable(specification: str) -> bool:
    try:
        check_usable(find(specification))
    except BenchError:
        return False
    return True


def specifications():
    """Every built-in strategy and variant that `score` accepts."""
    names = [
        f"{name}({parameters})" if parameters else name
        for name, registered in built_in().items()
        for parameters in ("", *dict.fromkeys(p for members in registered.variants.values() for p in members))
    ]
    return [name for name in [*names, *POLICIES] if usable(name)]


ROW_WISE = [name for name in specifications() if mode_of(find(name)) is Mode.ROW_WISE]


def whole_pool_scores(bound, part, mean):
    """The scores of every sample when the strategy sees the whole pool at once, as in a comparison."""
    ranker = Ranker(bound, Config(), ("a", "b", "c"), mean)
    ties, rng = np.arange(len(part)), np.random.default_rng(0)
    query = bound(ranker.view(part, ties, rng, len(part), Labelled.none(), {"overlap": part.overlap}))
    scores = np.empty(len(part))
    scores[query.indices] = query.scores
    return scores


@pytest.mark.parametrize("specification", ROW_WISE)
def test_scores_by_parts_equal_those_of_the_whole_pool(specification, scored_part):
    part, bound = scored_part(300, seed=3), find(specification)
    known = part.overlap.misalignment[~np.isnan(part.overlap.misalignment)]
    ranker = Ranker(bound, Config(), ("a", "b", "c"), float(np.sum(known.astype(np.longdouble)) / len(known)))
    without_roi = np.flatnonzero(np.isnan(part.overlap.dice))
    others = np.setdiff1d(np.arange(300), without_roi)
    pieces = [without_roi[:20], np.concatenate([without_roi[20:], others[:50]]), others[50:51], others[51:]]
    scores = np.empty(300)
    for rows in pieces:  # one piece holds samples without ROI alone
        scores[rows] = ranker.scores_of_each(part[rows])
    np.testing.assert_array_equal(scores, whole_pool_scores(bound, part, None))


def test_egal_entropy_and_random_are_ranked_shard_by_shard():
    assert {"random", "entropy", "margin", "egal", "egal-convex", "misalignment"} <= set(ROW_WISE)


@pytest.mark.parametrize(
    ("specification", "mode"),
    [
        ("egal(normalise=minmax)", Mode.WHOLE_POOL),
        ("egal-convex(normalise=rank)", Mode.WHOLE_POOL),
        ("egal(area-matched=true)", Mode.WHOLE_POOL),
        ("badge", Mode.SET_WISE),
        ("kcenter", Mode.SET_WISE),
        ("egal-predicted", Mode.SET_WISE),
        ("egal(diverse=10)", Mode.SET_WISE),
    ],
)
def test_terms_over_the_pool_need_it_whole_and_features_need_candidates(specification, mode):
    assert mode_of(find(specification)) is mode


def test_a_flag_classes_a_strategy_as_its_parameter_does():
    assert mode_of(find("egal", Config(normalise="rank"))) is Mode.WHOLE_POOL


def test_a_strategy_of_the_users_own_sees_the_whole_pool(monkeypatch):
    monkeypatch.setattr("egal_bench.strategies.registry._REGISTERED", dict(built_in()))

    @strategy("mine-of-score")
    def mine(pool):
        return pool.rank(pool.entropy)

    assert mode_of(find("mine-of-score")) is Mode.WHOLE_POOL


@pytest.mark.parametrize(
    ("specification", "reason"),
    [
        ("class-balanced-random", "true labels of the pool"),
        ("egal(roi=shuffled)", "control for comparisons"),
        ("bald", "stochastic heads"),
    ],
)
def test_strategies_that_cannot_be_served_are_refused_with_the_reason(specification, reason):
    with pytest.raises(BenchError, match=f"--strategy .*{reason}"):
        check_usable(find(specification))


@pytest.mark.parametrize(
    ("specification", "before"),
    [("egal(diverse=10,lambda=2)", "egal"), ("badge", "entropy"), ("egal(diverse=5,normalise=rank)", "entropy")],
)
def test_candidates_come_from_the_same_strategy_where_it_can_stream(specification, before):
    chosen = preselection(find(specification), Config())
    assert (chosen.name, mode_of(chosen)) == (before, Mode.ROW_WISE)
    if before == "egal":
        assert chosen.parameters.lambda_ == 2
