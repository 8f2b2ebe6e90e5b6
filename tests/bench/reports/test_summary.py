"""The summary for the terminal: what it prints of `summarise`, in percent, with what a reader must know."""

import pandas as pd
import pytest
from rich.console import Console

from egal_bench.reports.summary import as_text, closing, summary_table
from egal_bench.statistics.summary import summarise


@pytest.fixture
def printed(capsys):
    """Return a function that prints the summary of accuracies {strategy: [seed][round]} at 10 and 20 labels."""

    def render(accuracy: dict[str, list[list[float]]], fitted: float = 1.0, oracles=()) -> str:
        rows = [
            {"dataset": "set", "strategy": name, "seed": seed, "round": r, "labels": 10 * (r + 1), "masks": 7 * r,
             "accuracy": value, "macro_auc": value / 2, "test_size": 100, "train_accuracy": fitted,
             "steps": 100}
            for name, runs in accuracy.items()
            for seed, values in enumerate(runs)
            for r, value in enumerate(values)
        ]  # fmt: skip
        Console(width=100).print(summary_table(summarise(pd.DataFrame(rows)), oracles))
        return capsys.readouterr().out

    return render


def row_of(text: str, strategy: str) -> str:
    return next(" ".join(line.split()) for line in text.splitlines() if line.split()[:1] == [strategy])


def test_gain_over_random_is_printed_with_the_seeds_won(printed):
    text = printed({"random": [[0.2, 0.4], [0.3, 0.5]], "egal": [[0.2, 0.6], [0.3, 0.5]]})
    assert row_of(text, "random") == "random 45.0 ± 7.1 22.5 ± 3.5 35.0 ± 7.1 20 7"
    assert row_of(text, "egal") == "egal 55.0 ± 7.1 27.5 ± 3.5 40.0 ± 0.0 +5.00 ± 7.07 1/2 20 7"
    assert "set: %, mean ± sd over 2 seeds, after 20 labels" in text
    assert "2 seeds cannot show a significant difference (exact paired test: p is at least 0.5)" in " ".join(
        text.split()
    )


def test_one_seed_has_no_spread_and_a_singular_noun(printed):
    text = printed({"random": [[0.2, 0.4]], "egal": [[0.2, 0.6]]})
    assert row_of(text, "egal") == "egal 60.0 30.0 40.0 +10.00 1/1 20 7"
    assert "over 1 seed, after" in text


def test_without_random_there_is_no_gain(printed):
    text = printed({"entropy": [[0.2, 0.4], [0.2, 0.4]]})
    assert row_of(text, "entropy") == "entropy 40.0 ± 0.0 20.0 ± 0.0 30.0 ± 0.0 20 7"


def test_enough_seeds_need_no_warning(printed):
    assert "cannot show" not in printed({"random": [[0.2, 0.4]] * 6})


def test_training_that_stopped_too_early_is_warned_of(printed):
    text = " ".join(printed({"random": [[0.2, 0.4]] * 6}, fitted=0.9).split())
    assert "Warning: in 100 % of the rounds of random the network has fitted less than 95 %" in text
    assert "Warning" not in printed({"random": [[0.2, 0.4]] * 6})


def test_an_oracle_is_marked_in_the_table_and_explained(printed):
    text = printed({"random": [[0.2, 0.4]] * 2, "egal": [[0.2, 0.6]] * 2}, oracles={"egal"})
    assert "egal †" in text
    assert "† oracle: egal reads labels of the pool" in text
    assert "†" not in printed({"random": [[0.2, 0.4]] * 2, "egal": [[0.2, 0.6]] * 2})


def test_plain_text_cuts_no_name_and_has_no_escapes(tmp_path):
    rows = [
        {"dataset": "set\x1b[31m", "strategy": name, "seed": seed, "round": 0, "labels": 10, "masks": 0,
         "accuracy": 0.5, "macro_auc": 0.5, "test_size": 9, "train_accuracy": 1.0, "steps": 5}
        for name in ("random", "a-name-that-is-longer-than-the-columns-of-a-terminal(lambda=0.123456789)")
        for seed in (0, 1)
    ]  # fmt: skip
    content = closing(summarise(pd.DataFrame(rows)), ["A sentence."], tmp_path / "a folder", ())
    text = as_text(content)
    assert "a-name-that-is-longer-than-the-columns-of-a-terminal(lambda=0.123456789)" in text
    assert "\x1b" not in text
    assert f"egal-bench report '{tmp_path}/a folder'" in " ".join(text.split())
