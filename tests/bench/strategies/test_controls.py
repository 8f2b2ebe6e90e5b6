"""Controls: ROI area, class balance by an oracle, and the groups that name them."""

import numpy as np

from egal_bench.strategies import Strategy, available, expand, find, registry


def test_roi_area_buys_the_largest_roi_first(make):
    area = np.random.default_rng(0).permutation(40) * 10
    strategy, pool = make("roi-area", roi_area=area, budget=40)
    query = strategy(pool)
    assert area[query.indices].tolist() == sorted(area.tolist(), reverse=True)
    assert query.scores.tolist() == sorted(area.tolist(), reverse=True)


def test_class_balanced_random_fills_the_class_with_fewest_labels(make):
    labels = np.repeat([0, 1, 2], [30, 8, 2])
    strategy, pool = make(
        "class-balanced-random", labels=labels, labelled_labels=np.array([0, 0, 0, 0, 0, 1]), budget=15
    )
    bought = labels[strategy(pool).indices]
    counts = np.array([5, 1, 0]) + np.array([np.sum(bought == label) for label in range(3)])
    assert counts.tolist() == [10, 9, 2]  # both of the third class, all of the second


def test_class_balanced_random_draws_within_a_class_at_random(make):
    bought = set()
    for seed in range(30):
        strategy, pool = make(
            "class-balanced-random", labels=np.zeros(40, int), budget=1, rng=np.random.default_rng(seed)
        )
        bought.add(int(strategy(pool).indices[0]))
    assert len(bought) > 15


def test_an_oracle_is_flagged_by_its_needs():
    assert [name for name, found in available().items() if found.oracle] == ["class-balanced-random"]


def test_expand_replaces_groups_by_their_members():
    assert expand(["diversity"]) == ["kcenter", "badge", "typiclust", "probcover", "egal(diverse=10)"]
    assert expand(["controls"]) == [
        "egal(roi=shuffled)", "egal(area-matched=true)", "misalignment", "misalignment(roi=shuffled)", "roi-area",
        "class-balanced-random",
    ]  # fmt: skip
    assert expand(["baselines"]) == ["random", "entropy"]
    assert expand(["all-egal"]) == ["egal", "egal-convex", "misalignment", "egal-predicted"]


def test_expand_keeps_specifications_and_drops_repetitions():
    names = ["egal(lambda=2)", "entropy", "baselines", "mine:Strategy", "egal", "egal(lambda=2)"]
    assert expand(names) == ["egal(lambda=2)", "entropy", "random", "mine:Strategy", "egal"]


def test_all_is_every_built_in_strategyand_every_group():
    everything = expand(["all"])
    assert set(everything) >= {name for name, found in available().items() if not found.source}
    for group in ("baselines", "uncertainty", "diversity", "all-egal", "controls"):
        assert set(expand([group])) <= set(everything)
    for name in everything:
        assert find(name).name == name


def test_an_oracle_belongs_to_controls_and_all_alone(monkeypatch):
    oracle = Strategy("peeking", lambda pool: None, frozenset({"pool-labels"}), frozenset({"baselines", "controls"}))
    monkeypatch.setitem(registry._REGISTERED, "peeking", oracle)
    assert "peeking" not in expand(["baselines"])
    assert "peeking" in expand(["controls"])
    assert "peeking" in expand(["all"])
