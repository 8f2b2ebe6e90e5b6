"""What strategies read, and which are oracles, without importing the code of a user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from egal_bench.strategies.registry import built_in, find

LAST_EPISODE = (
    "Flagged like an oracle: with --prototypes last-episode, the few samples of the last training episode stand for "
    "each class, as in the author's code. No study should do this."
)


def needs_of(strategy: str, record: Mapping[str, Any] | None = None) -> frozenset[str] | None:
    """Return what a strategy reads beyond the model's output; None where that is not known.

    Args:
        strategy: its canonical specification.
        record: the record of one of its runs, which says so; records of earlier versions do only for built-in ones.
    """
    if record and "needs" in record:
        return frozenset(record["needs"])
    if strategy.partition("(")[0] not in built_in():
        return None
    try:
        return find(strategy).needs
    except ValueError:
        return None


def oracles_of(records: Mapping[Any, Mapping[str, Any]]) -> frozenset[str]:
    """Return the strategies, of runs with these records, that read true labels of the pool."""
    needs = {run.strategy: needs_of(run.strategy, record) for run, record in records.items()}
    return frozenset(name for name, own in needs.items() if "pool-labels" in (own or ()))


def flagged_settings(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each setting of runs that is flagged as oracles are."""
    return [LAST_EPISODE] if any(own.get("prototypes") == "last-episode" for own in settings) else []
