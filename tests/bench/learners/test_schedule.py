"""When a round ends, and at which learning rate each of its steps is made."""

import numpy as np
import pytest
import torch

from egal_bench.config import LONGEST_ROUND
from egal_bench.learners.schedule import OneCycle, UntilSettled


def rates(schedule, loss_of) -> list[float]:
    """Return the rates of a whole round, in which step i has the objective loss_of(i)."""
    made = []
    while (rate := schedule.rate(len(made))) is not None:
        schedule.record(torch.tensor(loss_of(len(made))))
        made.append(rate)
    return made


def test_loss_that_stays_settles_after_three_windows_without_a_fall():
    assert len(rates(UntilSettled(epoch=5), lambda _: 0.7)) == 100 + 50


def test_loss_that_falls_goes_on_until_it_stays():
    falling = rates(UntilSettled(epoch=5), lambda step: max(0.7 * 0.996**step, 0.7 * 0.996**400))
    assert 400 + 3 * 25 <= len(falling) / 1.5 <= 400 + 4 * 25


def test_slow_fall_of_less_than_5_percent_per_three_windows_is_settled():
    assert len(rates(UntilSettled(epoch=5), lambda step: 0.7 * 0.9995**step)) == 150


def test_fitted_network_does_not_wait():
    assert len(rates(UntilSettled(epoch=5), lambda _: 0.09)) == 25 + 13


def test_loss_that_never_settles_ends_at_the_longest_round():
    made = rates(UntilSettled(epoch=5), lambda step: 1000 * 0.994**step)
    assert len(made) == LONGEST_ROUND
    assert made[-1] < 1e-3


def test_nan_ends_a_round_early():
    assert len(rates(UntilSettled(epoch=5), lambda _: float("nan"))) < 150


def test_rate_rises_stays_and_falls_to_zero():
    made = np.array(rates(UntilSettled(epoch=5), lambda _: 0.7))
    assert np.all(np.diff(made[:25]) > 0)
    assert np.all(made[25:100] == 1)
    assert np.all(np.diff(made[99:]) < 0)
    assert made[-1] < 1e-3


@pytest.mark.parametrize(("epoch", "window"), [(1, 25), (7, 28), (25, 25), (26, 26), (60, 60)])
def test_windows_hold_whole_epochs(epoch, window):
    schedule = UntilSettled(epoch)
    assert [step for step in range(2 * window) if schedule.due(step)] == [window - 1, 2 * window - 1]


def test_rule_reads_the_loss_once_per_window():
    class Read(torch.Tensor):
        reads = 0

        def item(self):
            Read.reads += 1
            return super().item()

    schedule = UntilSettled(epoch=5)
    for _ in range(100):
        schedule.record(torch.tensor(0.7).as_subclass(Read))
    assert Read.reads == 4


def test_one_cycle_makes_its_steps_with_twenty_checks():
    schedule = OneCycle(37)
    made = rates(schedule, lambda _: 0.0)
    assert len(made) == 37
    assert sum(schedule.due(step) for step in range(37)) == 20
    assert schedule.due(36)
