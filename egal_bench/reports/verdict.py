"""The verdict in words and for machines: verdict.json, and a sentence per data set and per strategy."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from egal_bench import __version__
from egal_bench.reports.names import listed, number, p_value, shown, titled
from egal_bench.reports.question import LABELS, OUTCOMES, PRIMARY, Question, factor, unit
from egal_bench.statistics.outcomes import area, curves, split
from egal_bench.statistics.power import exact_floor
from egal_bench.statistics.verdicts import verdicts

if TYPE_CHECKING:
    from egal_bench.reports.analysis import Analysis
    from egal_bench.reports.audit import Check

FIELDS = (
    "verdict", "reason", "pairs", "difference", "low", "high", "sd", "won", "tied", "effect", "improvement", "p",
    "p_holm", "p_equivalence", "p_equivalence_holm", "comparisons", "seeds_needed",
)  # fmt: skip
MOST_NAMED = 5  # strategies of one verdict that a sentence names; of more it names one less, and counts the others
HALF = 0.5  # of the test samples: with a larger class, the accuracy says little about the others
COUNTS = ("pairs", "won", "tied", "comparisons", "seeds_needed")


def verdict_json(analysis: Analysis, checks: list[Check]) -> dict[str, Any]:
    """Return the content of verdict.json; numbers are in units of the metric, what is unknown or infinite is null."""
    question = analysis.question
    return {
        "egal_bench": __version__,
        "question": {
            "baseline": question.baseline, "metric": question.metric, "outcome": PRIMARY, "test": question.test,
            "margin": question.margin / 100, "alpha": question.alpha,
        },
        "folders": [str(folder) for folder in analysis.joined.folders],
        "runs": len(analysis.joined.records),
        "datasets": {name: _dataset(analysis, name) for name in analysis.joined.datasets},
        "audit": [{"check": check.name, "status": check.status, "detail": check.detail} for check in checks],
        "notes": list(analysis.notes),
    }  # fmt: skip


def _dataset(analysis: Analysis, name: str) -> dict[str, Any]:
    question, oracles = analysis.question, analysis.joined.oracles
    rounds = analysis.joined.rounds
    own = rounds[rounds["dataset"] == name]
    rows = _rows(analysis, name)
    strategies: dict[str, Any] = {}
    for outcome in OUTCOMES:
        judged = rows[rows["outcome"] == outcome]
        for row in judged.to_dict("records"):
            entry = strategies.setdefault(row["strategy"], {})
            fields = {field: plain(row[field], whole=field in COUNTS) for field in FIELDS}
            if outcome == PRIMARY:
                entry |= {"verdict": row["verdict"], "sentence": strategy_sentence(row, question, oracles)}
            entry[outcome] = fields
    obstacle, main = _obstacle(own, question), rows[rows["outcome"] == PRIMARY]
    return {
        "sentence": dataset_sentence(name, main, question, obstacle, oracles),
        "next_step": " ".join(filter(None, [too_few_seeds(main, question), seeds_to_decide(main, oracles)])),
        "caution": _unequal_classes(analysis, name),
        "seeds": int(own["seed"].nunique()),
        "labels": int(own["labels"].max()),
        "test_size": int(own["test_size"].max()),
        "strategies": strategies,
    }


def _rows(analysis: Analysis, name: str) -> pd.DataFrame:
    rows = analysis.of_question(analysis.verdicts)
    return rows[rows["dataset"] == name]


def _obstacle(rounds: pd.DataFrame, question: Question) -> str:
    """Return why no strategy of the data set with these `rounds` has a verdict."""
    names = set(rounds["strategy"])
    if question.baseline not in names:
        return f"{shown(question.baseline)} was not run"
    if len(names) == 1:
        return f"only {shown(question.baseline)} was run"
    return f"no strategy has a value of {LABELS[question.metric]} at every budget"


def short_verdict(rounds: pd.DataFrame, question: Question, oracles: Collection[str] = ()) -> list[str]:
    """Return the verdict of the report on comparable runs, as sentences for the terminal.

    There is a sentence per data set. Where it does not name all strategies, a sentence per family follows: the
    variants of one strategy, such as `egal` and `egal(lambda=0.3)`. Where a strategy is undecided, the last sentence
    on the data set says how many seeds would decide.

    Args:
        rounds: the `rounds` table.
        question: what is asked; it decides the same as in a report on the same runs.
        oracles: strategies to mark as such.
    """
    rows = verdicts(
        area(curves(rounds, [question.metric]).dropna(subset=["value"])), question.baseline,
        margin=question.margin / 100, alpha=question.alpha, test=question.test, rng=question.generator(),
    )  # fmt: skip
    sentences = []
    for key, own in split(rounds, ["dataset"]):
        judged = rows[rows["dataset"] == key["dataset"]]
        parts = [judged]
        if judged["verdict"].value_counts().max() > MOST_NAMED:
            families = judged["strategy"].str.partition("(")[0]
            parts += [variants for _, variants in judged.groupby(families) if len(variants) > 1]
        obstacle = _obstacle(own, question)
        sentences += [dataset_sentence(key["dataset"], part, question, obstacle, oracles) for part in parts]
        sentences += filter(None, [seeds_to_decide(judged, oracles)])
    return sentences


def too_few_seeds(rows: pd.DataFrame, question: Question) -> str:
    """Return a sentence where the undecided rows of a data set have too few seeds for any difference, else ""."""
    undecided = _undecided(rows)
    if undecided.empty or question.test == "t":
        return ""
    seeds, floor = int(undecided["pairs"].max()), exact_floor(int(undecided["comparisons"].max()), question.alpha)
    return f"{seeds} seeds cannot show a difference; {floor} can." if seeds < floor else ""


def seeds_to_decide(rows: pd.DataFrame, oracles: Collection[str] = ()) -> str:
    """Return a sentence on the seeds that would decide the undecided rows of a data set, "" where none is known."""
    undecided = _undecided(rows).dropna(subset=["seeds_needed"])
    if undecided.empty:
        return ""
    low, high = (
        "more than 1000" if math.isinf(n) else f"{n:.0f}" for n in undecided["seeds_needed"].agg(["min", "max"])
    )
    names = undecided["strategy"].tolist()
    what = titled(names[0], oracles) if len(names) == 1 else "the undecided strategies"
    return f"About {low if low == high else f'{low} to {high}'} seeds would decide {what}."


def _undecided(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["verdict"] == "undecided") & (rows["pairs"] > 1)]


def _unequal_classes(analysis: Analysis, name: str) -> str:
    """Return advice where the accuracy rests mainly on one class of the test set; "" where it does not, or unknown."""
    rows = analysis.joined.predictions
    labels = rows[rows["dataset"] == name].drop_duplicates("key")["label"]
    share = labels.value_counts(normalize=True).max() if len(labels) else 0.0
    if analysis.question.metric != "accuracy" or share <= HALF:
        return ""
    return (
        f"The classes are unequal ({100 * share:.0f} % of the test samples have one class): also read "
        "--metric balanced_accuracy."
    )


def dataset_sentence(
    name: str, rows: pd.DataFrame, question: Question, obstacle: str, oracles: Collection[str] = ()
) -> str:
    """Return the verdict on a data set in one sentence.

    Args:
        name: name of the data set.
        rows: its rows of `verdicts`, one per strategy.
        question: what is asked.
        obstacle: the reason to give where nothing was compared.
        oracles: strategies to mark as such.
    """
    place, baseline = f"On {shown(name)}", shown(question.baseline)
    if rows.empty or not rows["pairs"].any():
        return f"{place}, nothing can be concluded: {obstacle}."
    if rows["pairs"].max() == 1:
        return f"{place}, nothing can be concluded: a verdict needs at least 2 seeds of {baseline} and of a strategy."
    groups = {verdict: [titled(n, oracles) for n in part["strategy"]] for verdict, part in _split_verdicts(rows)}
    words = {
        "better": f"better than {baseline}",
        "worse": f"worse than {baseline}",
        "equivalent": f"equivalent to {baseline} within {margin_text(question)}",
        "undecided": f"undecided against {baseline}",
    }
    clauses = [f"{_verb(groups[verdict])} {words[verdict]}" for verdict in words if verdict in groups]
    text = clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"
    return f"{place}, {text}."


def _split_verdicts(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each verdict with its rows, the largest difference first."""
    ordered = rows.assign(size=-rows["difference"].abs()).sort_values("size", kind="stable")
    return ((key["verdict"], part) for key, part in split(ordered, ["verdict"]))


def _verb(names: list[str]) -> str:
    return f"{listed(names, MOST_NAMED - 1)} {'is' if len(names) == 1 else 'are'}"


def strategy_sentence(row: Mapping[Any, Any], question: Question, oracles: Collection[str] = ()) -> str:
    """Return what a row of `verdicts` says, in one or two sentences; a strategy of `oracles` is marked as such."""
    name, baseline, scale = titled(row["strategy"], oracles), shown(question.baseline), factor(question.metric)
    words = {
        "better": f"is better than {baseline}", "worse": f"is worse than {baseline}",
        "equivalent": f"is equivalent to {baseline}", "undecided": f"is undecided against {baseline}",
    }  # fmt: skip
    if row["pairs"] < 2:
        return f"{name} {words['undecided']}: {_shown_reason(row, question)}."
    low, high = (number(scale * row[end], sign=True) for end in ("low", "high"))
    size = (
        f"{number(scale * row['difference'], sign=True)} {unit(question.metric)} of {LABELS[question.metric]} "
        f"{OUTCOMES[row['outcome']]}, 95 % interval {low} to {high}, {row['won']:.0f} of {row['pairs']} seeds won, "
        f"{p_value(row['p_holm'])} after Holm over {row['comparisons']} "
        f"comparison{'s' * (row['comparisons'] != 1)}"
    )
    text = f"{name} {words[row['verdict']]}: {_shown_reason(row, question)} ({size})."
    if row["verdict"] == "undecided" and not np.isnan(row["seeds_needed"]):
        needed = row["seeds_needed"]
        seeds = "more than 1000" if math.isinf(needed) else f"{needed:.0f}"
        text += f" About {seeds} seeds would decide (approximate)."
    return text


def _shown_reason(row: Mapping[Any, Any], question: Question) -> str:
    """Return the reason of a row with its margin in the unit that the report shows."""
    reason = str(row["reason"]).replace(f"margin of {question.margin / 100:g}", f"margin of {margin_text(question)}")
    return reason.replace(question.baseline, shown(question.baseline))


def margin_text(question: Question) -> str:
    """Return the margin with its unit, such as "1 point"."""
    if question.metric == "nll":
        return f"{question.margin / 100:g} nats"
    return f"{question.margin:g} point{'s' * (question.margin != 1)}"


def plain(value: Any, *, whole: bool = False) -> Any:
    """Return a value that JSON can hold: a number, text, or None for what is not finite.

    Args:
        whole: whether the value is a count.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return int(value) if whole else value
