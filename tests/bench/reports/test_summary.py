"""The summary for the terminal: what it prints of `summarise`, in percent, with what a reader must know."""

import pandas as pd
import pytest
from rich.console import Console

from egal_bench.reports.summary import summary_table
from egal_bench.statistics.summary import summarise


@pytest.fixture
def printed(capsys):
    """Return a function that prints the summary of accuracies {strategy: [seed][round]} at 10 and 20 labels."""

    def render(accuracy: dict[str, list[list[float]]]) -> str:
        rows = [
            {"dataset": "set", "strategy": name, "seed": seed, "round": r, "labels": 10 * (r + 1), "masks": 7 * r,
             "accuracy": value, "macro_auc": value / 2, "test_size": 100}
            for name, runs in accuracy.items()
            for seed, values in enumerate(runs)
            for r, value in enumerate(values)
        ]  # fmt: skip
        Console(width=100).print(summary_table(summarise(pd.DataFrame(rows))))
        return capsys.readouterr().out

    return render


def row_of(text: str, strategy: str) -> str:
    return next(" ".join(line.split()) for line in text.splitlines() if line.split()[:1] == [strategy])


def test_gain_over_random_is_printed_with_the_seeds_won(printed):
    text = printed({"random": [[0.2, 0.4], [0.3, 0.5]], "egal": [[0.2, 0.6], [0.3, 0.5]]})
    assert row_of(text, "random") == "random 45.0 ± 7.1 22.5 ± 3.5 35.0 ± 7.1 20 7"
    assert row_of(text, "egal") == "egal 55.0 ± 7.1 27.5 ± 3.5 40.0 ± 0.0 +5.00 ± 7.07 1/2 20 7"
    assert "set: %, mean ± sd over 2 seeds, after 20 labels" in text
    assert "2 seeds: an exact paired Wilcoxon test" in " ".join(text.split())


def test_one_seed_has_no_spread_and_a_singular_noun(printed):
    text = printed({"random": [[0.2, 0.4]], "egal": [[0.2, 0.6]]})
    assert row_of(text, "egal") == "egal 60.0 30.0 40.0 +10.00 1/1 20 7"
    assert "over 1 seed, after" in text


def test_without_random_there_is_no_gain(printed):
    text = printed({"entropy": [[0.2, 0.4], [0.2, 0.4]]})
    assert row_of(text, "entropy") == "entropy 40.0 ± 0.0 20.0 ± 0.0 30.0 ± 0.0 20 7"


def test_enough_seeds_need_no_warning(printed):
    assert "Wilcoxon" not in printed({"random": [[0.2, 0.4]] * 6})
