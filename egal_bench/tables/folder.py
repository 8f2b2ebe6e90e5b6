"""A results folder: the runs that it holds, each with the record of its settings, and how a run is added."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from egal_bench.console import say
from egal_bench.errors import BenchError
from egal_bench.files import replacing
from egal_bench.tables.files import as_table, part, read, read_record, run_of, write_table
from egal_bench.tables.locks import FOLDER as LOCKS
from egal_bench.tables.locks import Lock, try_lock
from egal_bench.tables.schemas import OPTIONAL, ORDER, SCHEMAS
from egal_bench.tables.writing import patiently

EARLIER: dict[str, Any] = {"config_hash": "", "settings": {"numbers": 1}, "last_round": -1}
NETWORK = "network.safetensors"  # name of the file of a run's network
RunTables = dict[str, list[dict[str, Any]]]  # rows of each table, without the columns that name the run


class RunName(NamedTuple):
    """What names a run within a folder."""

    dataset: str
    strategy: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset}, {self.strategy}, seed {self.seed}"


@dataclass(frozen=True)
class ResultsFolder:
    """The folder at `path`.

    The record of a run is a dict. Every file of the run carries `config_hash` and `settings` (see tables/settings.py)
    and `last_round`. The file of `rounds`, which holds timings, also has `shards`, `hardware` and `needs`: the shard
    set, the machine, and what the strategy reads.
    """

    path: Path

    def __post_init__(self) -> None:
        # A folder that exists now and is absent later is away: it must not be made again where it should be mounted.
        object.__setattr__(self, "_existed", self.path.is_dir())

    @classmethod
    def create(cls, path: Path) -> ResultsFolder:
        """Return the folder at `path`, which is made if absent. Raises BenchError where it holds something else."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            own = ("config.yaml", "shards", LOCKS)
            if any(path.iterdir()) and not any((path / name).exists() for name in own):
                raise BenchError(f"--out {path} holds something other than a comparison: choose an empty or new folder")
            if not os.access(path, os.W_OK):
                raise BenchError(f"--out {path} is not writable: choose another folder")
        except OSError as error:
            raise BenchError(f"--out {path}: {error.strerror}; choose another folder") from None
        return cls(path)

    def part(self, table: str, run: RunName) -> Path:
        """Return the path of the run's file of `table`."""
        return part(self.path, table, *run)

    def network(self, run: RunName) -> Path:
        """Return the path of the network that `--save-network` keeps of a run."""
        return self.part("networks", run).with_name(NETWORK)

    def records(self, *, damaged_raise: bool = True) -> dict[RunName, dict[str, Any]]:
        """Return the record of every complete run, sorted by name.

        Args:
            damaged_raise: whether a damaged file raises BenchError; otherwise its run is left out.
        """
        files = sorted(self.path.glob("rounds/dataset=*/strategy=*/seed=*/part.parquet"))
        records = {}
        for run in sorted({RunName(*run_of(file)) for file in files}):
            try:
                record = self.record(run)
            except BenchError:
                if damaged_raise:
                    raise
                continue
            if record is not None and record != EARLIER:
                records[run] = record
        return records

    def record(self, run: RunName) -> dict[str, Any] | None:
        """Return the record of a complete run, None where its tables are absent or come from different runs.

        Tables that an earlier version of egal-bench has written have no record: theirs is EARLIER.
        """
        record = read_record(self.part("rounds", run))
        if record == {}:
            return EARLIER
        required = [read_record(self.part(table, run)) for table in SCHEMAS if table not in OPTIONAL]
        if record is None or any(other is None or _core(other) != _core(record) for other in required):
            return None
        return record

    def kept(self, run: RunName) -> list[str]:
        """Return the tables of a complete run that are present and belong to it.

        An optional table whose file cannot be opened counts as absent, and a note on stderr says so.
        """
        record, kept = self.record(run), []
        for table in SCHEMAS if record else ():
            try:
                if self._belongs(table, run, record):
                    kept.append(table)
            except BenchError as error:
                say(f"left out: {error}")
        return kept

    def _belongs(self, table: str, run: RunName, record: Mapping[str, Any] | None) -> bool:
        """Return whether the run's file of `table` carries `record`; no file carries None."""
        other = read_record(self.part(table, run))
        return other is not None and record is not None and _core(other) == _core(record)

    def is_intact(self, run: RunName) -> bool:
        """Return whether every table of a complete run can be read, each page as it was written."""
        try:
            record = self.record(run)
            for table in SCHEMAS:
                if self._belongs(table, run, record):
                    read(self.part(table, run), table)
        except BenchError:
            return False
        return True

    def tables(self, run: RunName) -> RunTables:
        """Return the rows of the tables of a complete run."""
        return {table: read(self.part(table, run), table).to_pylist() for table in self.kept(run)}

    def write(
        self, run: RunName, tables: Mapping[str, list[dict[str, Any]]], record: Mapping[str, Any],
        network: bytes | None = None,
    ) -> None:  # fmt: skip
        """Write the tables of a run, each sorted by its ORDER, and its network, so that they appear together.

        All files are written under temporary names first. `rounds` is the last table to be renamed; whoever is killed
        between two renames leaves tables with different records, which `record` takes for an absent run. The network
        of the old tables is removed before the first rename, and the new one is renamed after `rounds`; so no tables
        ever stand beside the network of other tables.

        Raises:
            BenchError: the disk is full, or the file system stays away; see `patiently`. The old tables remain.
        """
        if not self._existed:  # type: ignore[attr-defined]
            self.path.mkdir(parents=True, exist_ok=True)
        patiently(self.path, lambda: self._write(run, tables, record, network))

    def _write(
        self, run: RunName, tables: Mapping[str, list[dict[str, Any]]], record: Mapping[str, Any],
        network: bytes | None,
    ) -> None:  # fmt: skip
        with ExitStack() as renames:  # the last entered is renamed first
            if network is not None:
                self.network(run).parent.mkdir(parents=True, exist_ok=True)
                renames.enter_context(replacing(self.network(run))).write_bytes(network)
            for table in ("rounds", *(name for name in SCHEMAS if name != "rounds")):
                path = self.part(table, run)
                if tables.get(table):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    temporary = renames.enter_context(replacing(path))
                    carried = record if table == "rounds" else _core(record)
                    rows = sorted(tables[table], key=itemgetter(*ORDER[table]))
                    write_table(as_table(table, rows, carried), temporary)
                else:
                    path.unlink(missing_ok=True)
            self.network(run).unlink(missing_ok=True)

    def claim(self, run: RunName) -> Lock | None:
        """Return the right to execute `run`, None while another process has it.

        What a killed process may have left half-written of the run is removed.
        """
        lock = patiently(self.path, lambda: try_lock(self.path, str(run)))
        if lock is not None:
            for table in SCHEMAS:
                for leftover in self.part(table, run).parent.glob(".*.part.parquet"):
                    leftover.unlink(missing_ok=True)
            for leftover in self.network(run).parent.glob(f".*.{NETWORK}"):
                leftover.unlink(missing_ok=True)
        return lock

    def scratch(self, run: RunName, config_hash: str) -> Path:
        """Return the folder for what an interrupted run need not compute again."""
        return part(self.path / "unfinished", config_hash, *run).parent

    def remove_scratch(self, run: RunName, config_hash: str) -> None:
        """Remove what `scratch` holds, and its parents where they are empty."""
        folder = self.scratch(run, config_hash)
        shutil.rmtree(folder, ignore_errors=True)
        while (folder := folder.parent) != self.path:
            try:
                folder.rmdir()
            except OSError:
                return


def _core(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a record that every file of the run carries, so that equal rows are equal bytes."""
    return {name: record.get(name) for name in ("config_hash", "settings", "last_round")}
