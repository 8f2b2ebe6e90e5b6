"""Which comparisons count as converged, by the training accuracy of their rounds."""

import pandas as pd
import pytest

from egal_bench.statistics.convergence import convergence_warning, unfitted


def rounds(accuracies, steps=100):
    return pd.DataFrame({"train_accuracy": accuracies, "steps": steps})


def test_rounds_below_95_percent_are_unfitted():
    assert unfitted(rounds([1.0, 0.95, 0.949, 0.3])) == 0.5


def test_a_head_that_was_solved_for_is_always_fitted():
    assert unfitted(rounds([0.5, 0.6], steps=0)) == 0


@pytest.mark.parametrize(("shares", "warned"), [({"a": 0.1, "b": 0.0}, False), ({"a": 0.11, "b": 0.0}, True)])
def test_more_than_a_tenth_of_unfitted_rounds_is_warned_of(shares, warned):
    assert (convergence_warning(shares) is not None) == warned


def test_warning_names_the_worst_strategy_and_counts_the_others():
    warning = convergence_warning({"random": 0.2, "egal": 0.5, "badge": 0.0})
    assert warning.startswith("in 50 % of the rounds of egal (and in more than 10 % of the rounds of 1 more)")
    assert warning.endswith("train longer (--steps auto, or more --epochs with --head prototypical)")
