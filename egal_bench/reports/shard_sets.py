"""The shard sets of the runs: a report reads images and names of classes from them where they are at hand."""

from __future__ import annotations

from pathlib import Path

from egal_bench.reports.joining import Joined
from egal_bench.reports.names import shown
from egal_bench.tables.folder import RunName
from egal_shards import ShardError, ShardSet
from egal_shards.urls import is_url

UNREADABLE = (ShardError, OSError, KeyError)  # what reading shards that were moved or changed can raise


def shards_of(joined: Joined, run: RunName) -> ShardSet:
    """Return the shard set of a run, where it was or in the results folder.

    Raises ShardError where it is not there any more, or holds other data now.
    """
    folder, name = joined.places[run]
    record = joined.records[run]
    where = str(record.get("shards", ""))
    if is_url(where):
        raise ShardError("they are remote, and a report fetches nothing")
    places = [Path(where), folder.path / "shards" / Path(where).name, folder.path / "shards" / name.dataset]
    path = next((place for place in places if (place / "manifest.json").is_file()), None)
    if not where or path is None:
        raise ShardError(f"{shown(where)} does not exist")
    shards = ShardSet(path)
    if shards.manifest.sha256 != record["settings"].get("data"):
        raise ShardError(f"{shown(where)} holds other data now")
    return shards
