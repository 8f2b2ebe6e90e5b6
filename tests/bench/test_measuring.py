"""Timing in turns: who runs when, and intervals against the bootstrap's exact distribution and SciPy's."""

import numpy as np
import pytest
from scipy import stats

from egal_bench import measuring
from egal_bench.measuring import interleaved, paired_ratio, ratio_of_medians


class Clock:
    """In place of perf_counter: time passes only while a contender runs."""

    def __init__(self, monkeypatch):
        self.now, self.ran = 0.0, []
        monkeypatch.setattr(measuring, "perf_counter", lambda: self.now)

    def contender(self, name: str, seconds):
        def run():
            self.ran.append(name)
            self.now += seconds(self.ran.count(name)) if callable(seconds) else seconds

        return run


def test_each_contender_runs_once_a_round_after_one_warm_up_in_changing_order(monkeypatch):
    clock = Clock(monkeypatch)
    names = ["a", "b", "c"]
    told = []
    found = interleaved({name: clock.contender(name, 1.0) for name in names}, 20, np.random.default_rng(0), told.append)
    assert clock.ran[:3] == names  # the warm-up
    rounds = np.array(clock.ran[3:]).reshape(20, 3)
    assert all(sorted(one) == names for one in rounds.tolist())
    assert len({tuple(one) for one in rounds.tolist()}) == 6  # all orders
    assert {name: len(seconds) for name, seconds in found.items()} == dict.fromkeys(names, 20)
    assert told == [1] * 60


def test_times_are_of_the_run_itself_and_never_of_the_warm_up(monkeypatch):
    clock = Clock(monkeypatch)
    slow_first = clock.contender("a", lambda nth: 60.0 if nth == 1 else float(nth))
    found = interleaved({"a": slow_first, "b": clock.contender("b", 1.0)}, 4, np.random.default_rng(0))
    np.testing.assert_allclose(found["a"], [2, 3, 4, 5])
    np.testing.assert_allclose(found["b"], 1)


def test_a_short_contender_is_warmed_for_20_ms_before_each_timed_run_and_a_long_one_not(monkeypatch):
    clock = Clock(monkeypatch)
    short, long = clock.contender("short", 1 / 512), clock.contender("long", 0.5)  # 512: exact in binary
    interleaved({"short": short, "long": long}, 3, np.random.default_rng(0))
    assert clock.ran.count("long") == 1 + 3
    warm = int(0.02 * 512)  # runs that fit in 20 ms
    assert clock.ran.count("short") == 1 + 3 * (warm + 1)


def exact_interval(ratios: np.ndarray) -> tuple[float, float]:
    """Ends of the 95 % percentile-bootstrap interval of a median of an odd number n of values, without sampling.

    The bootstrap's median is at most the k-th least value iff (n + 1) / 2 of n draws are among the k least.
    """
    n, values = len(ratios), np.sort(ratios)
    at_most = stats.binom.sf((n + 1) // 2 - 1, n, np.arange(1, n + 1) / n)
    return values[np.searchsorted(at_most, 0.025)], values[np.searchsorted(at_most, 0.975)]


@pytest.mark.parametrize("n", [7, 11, 19])  # whose ends lie far from where 2000 draws could take the next value
def test_the_interval_of_a_paired_ratio_is_that_of_the_exact_bootstrap(n):
    rng = np.random.default_rng(n)
    b = rng.uniform(1, 2, n)
    a = b * rng.normal(1.5, 0.1, n)
    middle, low, high = paired_ratio(a, b)
    assert middle == np.median(a / b)
    np.testing.assert_allclose((low, high), exact_interval(a / b), rtol=1e-12)


def test_pairing_takes_out_what_slows_a_whole_round():
    rng = np.random.default_rng(0)
    busy = rng.uniform(1, 10, 25)  # the machine's, of each round
    _, low, high = paired_ratio(3 * busy, 2 * busy)
    np.testing.assert_allclose([low, high], 1.5, rtol=1e-12)
    _, low, high = ratio_of_medians(3 * busy, 2 * rng.permutation(busy))
    assert low < 1.2
    assert high > 1.8


def test_the_interval_of_a_ratio_of_medians_is_scipys():
    rng = np.random.default_rng(1)
    a, b = rng.normal(3, 0.2, 40), rng.normal(2, 0.2, 30)
    middle, low, high = ratio_of_medians(a, b)
    reference = stats.bootstrap(
        (a, b), lambda x, y, axis: np.median(x, axis=axis) / np.median(y, axis=axis), method="percentile",
        n_resamples=50_000, rng=2,
    ).confidence_interval  # fmt: skip
    assert middle == np.median(a) / np.median(b)
    np.testing.assert_allclose([low, high], [reference.low, reference.high], rtol=0.005)  # of 2000 draws
    assert high - low > 0.1  # so that the tolerance is a small part of it
