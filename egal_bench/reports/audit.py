"""The audit: whether the runs may be compared at all, as checks that pass, fail or cannot be made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import pandas as pd

from egal_bench.reports.joining import Joined
from egal_bench.reports.names import listed, shown
from egal_bench.reports.oracles import flagged_settings
from egal_bench.statistics.convergence import convergence_warning, unfitted
from egal_bench.statistics.outcomes import split

MOST_TIED = 0.1  # above this share of tied purchases, chance decides too much of what is bought
SAME_PRECISION = ("precision", "device", "threads")


class Check(NamedTuple):
    """One check of the audit."""

    name: str
    status: Literal["pass", "fail", "unknown"]
    detail: str


def audit(joined: Joined) -> list[Check]:
    """Return the checks, in the order in which they matter."""
    return [
        _per_dataset("Same initial sets", joined.selections, _initial_sets),
        _same_test_set(joined),
        _per_dataset("Complete seeds", joined.rounds, _complete_seeds),
        _one_setting(joined),
        _same_hardware(joined),
        _costs_declared(joined),
        _oracles(joined),
        _ties(joined),
        _per_dataset("Training converged", joined.rounds, _convergence),
    ]


def _verdict(name: str, problems: list[str], success: str) -> Check:
    return Check(name, "fail" if problems else "pass", " ".join(problems) or success)


def _per_dataset(name: str, table: pd.DataFrame, check: Callable[[pd.DataFrame], str]) -> Check:
    """Return the check `name`, for which `check` returns what is wrong with a data set's rows, or ""."""
    if table.empty:
        return Check(name, "unknown", "The runs have no such table.")
    problem_of = {key["dataset"]: check(rows) for key, rows in split(table, ["dataset"])}
    problems = [f"{shown(dataset)}: {problem}" for dataset, problem in problem_of.items() if problem]
    return _verdict(name, problems, f"True of {len(problem_of)} data set{'s' * (len(problem_of) != 1)}.")


def _initial_sets(rows: pd.DataFrame) -> str:
    initial = rows[rows["round"] == 0].groupby(["seed", "strategy"])["key"].agg(frozenset)
    differing = [str(seed) for seed, sets in initial.groupby("seed") if sets.nunique() > 1]
    return f"strategies start from different samples in seed {', '.join(differing)}." if differing else ""


def _same_test_set(joined: Joined) -> Check:
    name, predictions = "Same test set", joined.predictions
    if predictions.empty:
        sizes = joined.rounds.groupby("dataset")["test_size"].nunique()
        bad = [f"{shown(dataset)}: test sets of different sizes." for dataset in sizes.index[sizes > 1]]
        if bad:
            return Check(name, "fail", " ".join(bad))
        return Check(name, "unknown", "The sizes agree; without the table `predictions` the samples are not known.")
    return _per_dataset(name, predictions, _test_samples)


def _test_samples(rows: pd.DataFrame) -> str:
    sets = {
        (key["strategy"], key["seed"]): hash(tuple(sorted(zip(run["key"], run["group"], run["label"], strict=True))))
        for key, run in split(rows, ["strategy", "seed"])
    }
    return f"{len(set(sets.values()))} different test sets." if len(set(sets.values())) > 1 else ""


def _convergence(rows: pd.DataFrame) -> str:
    shares = {key["strategy"]: unfitted(runs) for key, runs in split(rows, ["strategy"])}
    warning = convergence_warning({shown(name): share for name, share in shares.items()})
    return f"{warning}." if warning else ""


def _complete_seeds(rows: pd.DataFrame) -> str:
    last, seeds = rows["labels"].max(), set(rows["seed"])
    finished = rows[rows["labels"] == last].groupby("strategy")["seed"].agg(set)
    missing = {
        name: sorted(seeds - finished.get(name, set()))
        for name in sorted(set(rows["strategy"]))
        if seeds - finished.get(name, set())
    }
    if not missing:
        return ""
    name, gaps = next(iter(missing.items()))
    others = f", and {len(missing) - 1} more strategies lack seeds" if len(missing) > 1 else ""
    return f"{shown(name)} has no finished run with seed {listed([str(gap) for gap in gaps])}{others}."


def _one_setting(joined: Joined) -> Check:
    success = "All runs of a data set share every setting but those of the strategy."
    return _verdict("One setting per data set", [f"{shown(text)}." for text in joined.separated], success)


def _same_hardware(joined: Joined) -> Check:
    name = "Same hardware and precision"
    hardware = {str(record.get("hardware", {}).get("device")) for record in joined.records.values()}
    if hardware == {"None"}:
        return Check(name, "unknown", "The runs do not record their hardware.")
    problems = [f"The runs come from {listed(sorted(hardware))}."] if len(hardware) > 1 else []
    for key in SAME_PRECISION:
        values = {str(record["settings"].get(key)) for record in joined.records.values()}
        if len(values) > 1:
            problems.append(f"{key}: {listed(sorted(values))}.")
    return _verdict(name, problems, f"{shown(next(iter(hardware)))}.")


def _costs_declared(joined: Joined) -> Check:
    """Return whether the masks of strategies that read ROIs are counted, on data that has any."""
    problems, unknown = [], []
    for key, rows in split(joined.rounds, ["dataset", "strategy"]):
        needs = joined.needs(key["strategy"])
        if needs is None:
            unknown.append(key["strategy"])
        elif "roi" in needs and rows["round"].max() > 0:
            bought = joined.selections
            own = bought[(bought["dataset"] == key["dataset"]) & (bought["strategy"] == key["strategy"])]
            if (own["roi_area"] > 0).any() and not rows["masks"].any():
                problems.append(f"{shown(key['strategy'])} on {shown(key['dataset'])} reads ROIs, and no mask counts.")
    if unknown and not problems:
        names = listed(sorted(set(unknown)))
        return Check("Costs declared", "unknown", f"Not built in, so what they read is not known here: {names}.")
    return _verdict("Costs declared", problems, "Masks are counted wherever a strategy reads ROIs.")


def _oracles(joined: Joined) -> Check:
    problems = flagged_settings(record["settings"] for record in joined.records.values())
    if oracles := sorted(joined.oracles):
        verb = "reads" if len(oracles) == 1 else "read"
        problems.append(f"{listed(oracles)} {verb} labels of the pool, as no real study can: for control only.")
    return _verdict("No oracle among the strategies", problems, "No strategy is known to read labels of the pool.")


def _ties(joined: Joined) -> Check:
    name = "Scores decide, not ties"
    bought = joined.selections[joined.selections["round"] > 0]
    if bought.empty:
        return Check(name, "unknown", "Nothing was bought.")
    shares = bought.groupby(["dataset", "strategy"])["tied"].mean().rename("share").reset_index()
    high = shares[shares["share"] > MOST_TIED].sort_values("share", ascending=False, kind="stable")
    problems = [
        f"{shown(row['strategy'])} on {shown(row['dataset'])}: {100 * row['share']:.0f} % of the purchases were tied, "
        "so chance chose."
        for row in high.head(4).to_dict("records")
    ]
    if len(high) > 4:
        problems.append(f"{len(high) - 4} more.")
    return _verdict(
        name, problems, f"At most {100 * shares['share'].max():.0f} % of any strategy's purchases were tied."
    )
