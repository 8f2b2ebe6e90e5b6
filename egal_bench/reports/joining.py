"""Joining results folders: the tables of all their runs, and the record of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from egal_bench.config import Config, flag_of
from egal_bench.console import say
from egal_bench.errors import BenchError
from egal_bench.reports.missing import incomplete_runs, unequal_tables, usable_tables
from egal_bench.reports.oracles import needs_of, oracles_of
from egal_bench.tables.files import read
from egal_bench.tables.folder import ResultsFolder, RunName
from egal_bench.tables.schemas import ORDER, PARTITION, SCHEMAS
from egal_bench.tables.settings import DIGESTS, OF_STRATEGY, comparable
from egal_shards.errors import printable


@dataclass(frozen=True)
class Joined:
    """The runs of one or many results folders.

    Attributes:
        folders: as given.
        rounds: the `rounds` table.
        selections: the `selections` table.
        predictions: the rows of the last round of each run that has kept this table.
        records: the record of each run, see `tables.folder.ResultsFolder`.
        places: the folder of each run, and the run's name there.
        kept: the tables of each run that can be read.
        problems: sentences that name runs and tables that are missing or damaged.
        separated: sentences that say which data sets were split because their runs have different settings.
    Runs of one data set that cannot be compared stand under different names of the data set, such as
    "cheng (explain-loss 1.0)".
    """

    folders: tuple[Path, ...]
    rounds: pd.DataFrame
    selections: pd.DataFrame
    predictions: pd.DataFrame
    records: Mapping[RunName, Mapping[str, Any]]
    places: Mapping[RunName, tuple[ResultsFolder, RunName]]
    kept: Mapping[RunName, frozenset[str]]
    problems: tuple[str, ...]
    separated: tuple[str, ...]

    @property
    def datasets(self) -> list[str]:
        """Return the names of the data sets, sorted."""
        return sorted({run.dataset for run in self.records})

    @property
    def oracles(self) -> frozenset[str]:
        """Return the strategies that read true labels of the pool."""
        return oracles_of(self.records)

    def needs(self, strategy: str) -> frozenset[str] | None:
        """Return what a strategy reads beyond the model's output; None where that is not known."""
        return needs_of(strategy, next(record for run, record in self.records.items() if run.strategy == strategy))


def join(paths: Sequence[Path]) -> Joined:
    """Return the runs of the results folders at `paths`; what is missing or damaged is said on stderr, too.

    Raises:
        BenchError: a folder holds no finished run, the same run stands in two folders, or a table that every run needs
            is damaged.
    """
    problems: list[str] = []
    places: dict[tuple[str, str], dict[RunName, tuple[ResultsFolder, dict[str, Any]]]] = defaultdict(dict)
    for path in paths:
        folder = ResultsFolder(path)
        records = folder.records()
        if not records:
            raise BenchError(f"{path}: holds no finished run of a comparison; give the folder that `compare` wrote")
        problems += incomplete_runs(folder, records)
        for run, record in records.items():
            group = places[run.dataset, _group(record)]
            if run in group:
                raise BenchError(
                    f"{run} stands in {group[run][0].path} and in {path}: give every run only once, or only one of "
                    "the two folders"
                )
            group[run] = folder, record
    labels, separated = _labels(places)
    tables: dict[str, list[pd.DataFrame]] = {"rounds": [], "selections": [], "predictions": []}
    named, origins, all_kept, present = {}, {}, {}, {}
    for key, runs in places.items():
        for run, (folder, record) in runs.items():
            name = run._replace(dataset=labels[key])
            named[name], origins[name] = record, (folder, run)
            kept, damaged = usable_tables(folder, run)
            all_kept[name], present[name] = kept, kept | damaged.keys()
            problems += damaged.values()
            for table, parts in tables.items():
                if table in kept:
                    parts.append(_rows(folder, run, table).to_pandas().assign(**name._asdict()))
    problems += unequal_tables(present, named)
    for problem in problems:
        say(printable(problem))
    return Joined(
        tuple(paths),
        rounds=_table("rounds", tables["rounds"]),
        selections=_table("selections", tables["selections"]),
        predictions=_table("predictions", tables["predictions"]),
        records=dict(sorted(named.items())),
        places=origins,
        kept=all_kept,
        problems=tuple(problems),
        separated=tuple(separated),
    )


def _rows(folder: ResultsFolder, run: RunName, table: str) -> pa.Table:
    rows = read(folder.part(table, run), table)
    if table == "predictions":  # the report reads only the final models, and the other rounds are most of the bytes
        rows = rows.filter(pc.equal(rows["round"], pc.max(rows["round"])))
    return rows


def _table(name: str, parts: list[pd.DataFrame]) -> pd.DataFrame:
    if not parts:
        return SCHEMAS[name].empty_table().to_pandas()
    order = [*PARTITION, *ORDER[name]]
    return pd.concat(parts)[SCHEMAS[name].names].sort_values(order, ignore_index=True, kind="stable")


def _group(record: Mapping[str, Any]) -> str:
    """Return a digest of what runs of one data set must share to be compared."""
    return f"{comparable(record['settings'])} {record['settings'].get('data')}"


def _labels(places: Mapping[tuple[str, str], Mapping[RunName, Any]]) -> tuple[dict[tuple[str, str], str], list[str]]:
    """Return the name to show for each (data set, group), and a sentence per data set that has several groups."""
    labels, sentences = {}, []
    groups: dict[str, list[str]] = defaultdict(list)
    for dataset, group in places:
        groups[dataset].append(group)
    for dataset, own in groups.items():
        settings = {group: next(iter(places[dataset, group].values()))[1]["settings"] for group in own}
        names = sorted(set().union(*settings.values()) - OF_STRATEGY)
        differing = [name for name in names if len({repr(s.get(name)) for s in settings.values()}) > 1]
        for group in own:
            phrases = [_phrase(name, settings[group].get(name)) for name in differing]
            labels[dataset, group] = f"{dataset} ({', '.join(phrases)})" if len(own) > 1 else dataset
        if len(own) > 1:
            words = ", ".join(_word(name) for name in differing)
            sentences.append(
                f"{dataset}: its runs have {len(own)} different settings ({words}), which are shown as data sets of "
                "their own and never compared with each other"
            )
    return labels, sentences


def _word(name: str) -> str:
    return flag_of(name)[2:] if name in Config.model_fields else name


def _phrase(name: str, value: Any) -> str:
    return f"{_word(name)} {str(value)[:8] if name in DIGESTS else value}"
