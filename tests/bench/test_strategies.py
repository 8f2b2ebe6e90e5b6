"""Strategies against their formulas, and the access and ties that make a comparison fair."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_bench.config import Config
from egal_bench.errors import BenchError
from egal_bench.strategies import BUILT_IN, Overlap, Pool, available, find, strategy

K = 4


def pool(name: str = "egal", n: int = 30, seed: int = 0, dice: np.ndarray | None = None, **config) -> Pool:
    """A pool of random logits and Dice values as `name` sees it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(n, K))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    counts = np.ones(n, int)
    return Pool(
        find(name),
        keys=np.array([f"k{i:03}" for i in range(n)]),
        logits=logits,
        entropy=-(p * np.log(p)).sum(1),
        labels_revealed=np.zeros(5, int),
        budget=5,
        rng=np.random.default_rng(7),
        config=Config(**config),
        overlap=Overlap(counts, counts, counts, rng.random(n) if dice is None else dice),
    )


def by_loop(scores: list[float]) -> list[int]:
    """Descending, ties by index, NaN last."""
    return sorted(
        range(len(scores)), key=lambda i: (scores[i] != scores[i], -scores[i] if scores[i] == scores[i] else 0, i)
    )


def formula(name: str, p: np.ndarray, h: float, d: float) -> float:
    top = sorted(p, reverse=True)
    return {
        "entropy": h, "margin": top[1] - top[0], "least-confidence": 1 - top[0], "egal": h + 1.7 * d,
        "egal-convex": 0.4 * h + 0.6 * d, "misalignment": d, "misalignment-only": d,
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"random"}))
@pytest.mark.parametrize("seed", range(5))
def test_strategy_ranks_by_its_formula(name, seed):
    view = pool(name, seed=seed, lambda_=1.7, convex_lambda=0.4)
    want = [
        formula(name, p, h, 1 - d) for p, h, d in zip(view.probabilities, view.entropy, view._overlap.dice, strict=True)
    ]
    assert find(name)(view).tolist() == by_loop(want)
    np.testing.assert_allclose(view.scores, want, rtol=1e-12)


def test_random_is_a_permutation_that_only_its_generator_decides():
    first, again = find("random")(pool("random", seed=1)), find("random")(pool("random", seed=2))
    assert sorted(first) == list(range(30))
    assert first.tolist() == again.tolist()  # other logits, same generator


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, float("nan"), -float("inf")]), min_size=1, max_size=20))
def test_rank_breaks_ties_by_key_and_puts_nan_last(scores):
    assert pool(n=len(scores)).rank(np.array(scores)).tolist() == by_loop(scores)


@pytest.mark.parametrize(("policy", "want"), [("zero", 0.0), ("mean", 0.6), ("exclude", None)])
def test_empty_roi_policy_decides_the_misalignment_of_a_sample_without_roi(policy, want):
    dice = np.array([0.2, np.nan, 0.6, np.nan, 0.4])  # D .8, .4, .6: mean .6
    view = pool("misalignment", n=5, dice=dice, empty_roi=policy)
    got = view.misalignment
    np.testing.assert_allclose(got[[0, 2, 4]], [0.8, 0.4, 0.6])
    if want is None:
        assert np.isnan(got[[1, 3]]).all()
        assert find("misalignment")(view).tolist() == [0, 4, 2, 1, 3]
    else:
        np.testing.assert_allclose(got[[1, 3]], want)


def test_zero_starves_samples_without_roi_and_mean_does_not():
    dice = np.where(np.arange(30) % 2, np.nan, np.linspace(0, 1, 30))
    assert set(find("misalignment")(pool("misalignment", dice=dice, empty_roi="zero"))[:15] % 2) == {0}
    assert set(find("misalignment")(pool("misalignment", dice=dice, empty_roi="mean"))[:15] % 2) == {0, 1}


def test_a_pool_without_any_roi_has_no_misalignment_to_speak_of():
    view = pool("egal", dice=np.full(30, np.nan), empty_roi="mean")
    assert find("egal")(view).tolist() == by_loop(view.entropy.tolist())


@settings(max_examples=50)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.booleans())
def test_normalised_terms_span_0_to_1_and_keep_the_order(values, with_nan):
    term = np.array(values + [np.nan] * with_nan)
    for scale in ("minmax", "rank"):
        got = pool(n=len(term), normalise=scale).scale(term)
        known = ~np.isnan(term)
        assert np.isnan(got[~known]).all()
        assert got[known].min() >= 0
        assert got[known].max() <= 1
        i, j = np.meshgrid(np.flatnonzero(known), np.flatnonzero(known))
        assert (got[i] < got[j])[term[i] < term[j] - 1e-9].all()
        assert np.array_equal(got[i][term[i] == term[j]], got[j][term[i] == term[j]])


def test_rank_normalisation_gives_both_terms_the_same_weight_whatever_their_scale():
    narrow, wide = pool(normalise="rank"), pool(normalise="rank")
    narrow.entropy = narrow.entropy * 1e-3
    assert find("egal")(narrow).tolist() == find("egal")(wide).tolist()


@pytest.mark.parametrize("what", ["acquisition", "misalignment", "features", "labelled_features"])
def test_a_strategy_sees_only_what_it_declares(what):
    @strategy("peeks")
    def peeks(view):
        return getattr(view, what)

    try:
        view = pool("peeks")
        with pytest.raises(BenchError, match=r"'peeks'.*does not declare: add `needs_(roi|features) = True`"):
            peeks(view)
    finally:
        del BUILT_IN["peeks"]


def test_cost_columns_follow_the_declarations():
    assert {name for name, found in BUILT_IN.items() if found.needs_roi} == {
        "egal", "egal-convex", "misalignment", "misalignment-only",
    }  # fmt: skip


def test_a_strategy_of_ones_own_is_found_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "of_a_user.py").write_text(
        "import numpy as np\n"
        "class Reverse:\n"
        "    needs_roi = needs_features = False\n"
        "    def __call__(self, pool): return np.arange(len(pool))[::-1]\n"
        "class Undeclared:\n"
        "    def __call__(self, pool): return np.arange(len(pool))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert find("of_a_user:Reverse")(pool())[0] == 29
    with pytest.raises(BenchError, match=r"set needs_roi and needs_features"):
        find("of_a_user:Undeclared")
    with pytest.raises(BenchError, match=r"no attribute 'Absent'"):
        find("of_a_user:Absent")
    with pytest.raises(BenchError, match=r"No module named 'nowhere'"):
        find("nowhere:X")


def test_a_strategy_is_found_by_entry_point(tmp_path, monkeypatch):
    (tmp_path / "plug.py").write_text(
        "def last(pool): return pool\nlast.needs_roi, last.needs_features = True, False\n"
    )
    info = tmp_path / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[egal_bench.strategies]\nfrom-plug = plug:last\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find("from-plug").needs_roi is True
    assert "from-plug" in available()


def test_an_unknown_strategy_is_answered_with_the_nearest():
    with pytest.raises(BenchError, match=r"unknown strategy 'entrpy': did you mean 'entropy'\?"):
        find("entrpy")
