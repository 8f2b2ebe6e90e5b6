"""Timing in turns: who runs when, and intervals against the bootstrap's exact distribution and SciPy's."""

import numpy as np
import pytest
from scipy import stats

from egal_bench.profiling import measuring
from egal_bench.profiling.measuring import interleaved, paired_ratio, ratio_of_medians


class Clock:
    """A clock whose time passes only while a contender runs."""

    def __init__(self):
        self.now, self.ran = 0.0, []

    def contender(self, name: str, seconds):
        """Return a run that takes `seconds`, a number or a function of how often the contender has run."""

        def run():
            self.ran.append(name)
            self.now += seconds(self.ran.count(name)) if callable(seconds) else seconds

        return run


@pytest.fixture
def clock(monkeypatch):
    """A Clock in place of perf_counter."""
    clock = Clock()
    monkeypatch.setattr(measuring, "perf_counter", lambda: clock.now)
    return clock


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_each_contender_runs_once_per_round_in_changing_order(clock, rng):
    names, advances = ["a", "b", "c"], []
    seconds = interleaved({name: clock.contender(name, 1.0) for name in names}, 20, rng, advances.append)
    assert clock.ran[:3] == names  # before the first round
    rounds = np.array(clock.ran[3:]).reshape(20, 3)
    assert all(sorted(order) == names for order in rounds.tolist())
    assert len({tuple(order) for order in rounds.tolist()}) == 6  # all orders
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys(names, 20)
    assert advances == [1] * 60


def test_times_are_those_of_the_runs_and_not_of_the_warm_up(clock, rng):
    slow_first = clock.contender("a", lambda nth: 60.0 if nth == 1 else float(nth))
    seconds = interleaved({"a": slow_first, "b": clock.contender("b", 1.0)}, 4, rng)
    np.testing.assert_allclose(seconds["a"], [2, 3, 4, 5])
    np.testing.assert_allclose(seconds["b"], 1)


def test_a_short_contender_is_warmed_for_20_ms_a_long_one_not(clock, rng):
    short, long = clock.contender("short", 1 / 512), clock.contender("long", 0.5)  # 512: exact in binary
    interleaved({"short": short, "long": long}, 3, rng)
    assert clock.ran.count("long") == 1 + 3
    warming = int(0.02 * 512)  # runs that fit in 20 ms
    assert clock.ran.count("short") == 1 + 3 * (warming + 1)


def exact_interval(ratios: np.ndarray) -> tuple[float, float]:
    """Return the ends of the 95 % percentile-bootstrap interval of a median, computed without sampling.

    Of an odd number n of values, the bootstrap's median is at most the k-th smallest value if and only if (n + 1) / 2
    of n draws are among the k smallest.
    """
    n, values = len(ratios), np.sort(ratios)
    at_most = stats.binom.sf((n + 1) // 2 - 1, n, np.arange(1, n + 1) / n)
    return values[np.searchsorted(at_most, 0.025)], values[np.searchsorted(at_most, 0.975)]


@pytest.mark.parametrize("n", [7, 11, 19])  # with these, 2000 draws cannot confuse an end with the next value
def test_the_interval_of_a_paired_ratio_is_the_exact_bootstraps(n):
    rng = np.random.default_rng(n)
    b = rng.uniform(1, 2, n)
    a = b * rng.normal(1.5, 0.1, n)
    middle, low, high = paired_ratio(a, b)
    assert middle == np.median(a / b)
    np.testing.assert_allclose((low, high), exact_interval(a / b), rtol=1e-12)


def test_pairing_removes_what_slows_a_whole_round(rng):
    load = rng.uniform(1, 10, 25)  # what other programs slow each round by
    _, low, high = paired_ratio(3 * load, 2 * load)
    np.testing.assert_allclose([low, high], 1.5, rtol=1e-12)
    _, low, high = ratio_of_medians(3 * load, 2 * rng.permutation(load))
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
    np.testing.assert_allclose([low, high], [reference.low, reference.high], rtol=0.005)  # sampling error of 2000 draws
    assert high - low > 0.1  # so that the tolerance is a small part of it
