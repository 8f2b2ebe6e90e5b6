"""The finished rounds of runs that are not finished: written after each round, so that a killed run continues there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from egal_bench.errors import BenchError
from egal_bench.runs.task import History
from egal_bench.tables.files import as_table, read, write_table
from egal_bench.tables.folder import RunTables
from egal_bench.tables.schemas import SCHEMAS
from egal_bench.tables.writing import patiently


class Checkpoint:
    """The finished rounds of one run, in memory and in `folder`.

    Args:
        results: the folder of the results.
        folder: the scratch folder of the run, below it; it holds at most one complete folder `round-N`.
        history: the rounds that are finished already; None: there are none.
        stored: whether rounds are written; where a round costs next to nothing they are not.
    """

    def __init__(self, results: Path, folder: Path, history: History | None, stored: bool) -> None:
        self.results, self.folder, self.stored = results, folder, stored
        self.tables: RunTables = {table: list(history.tables.get(table, ())) if history else [] for table in SCHEMAS}

    def add(self, tables: RunTables, files: Mapping[str, bytes]) -> None:
        """Add the rows of a round; `files` are what the next round needs."""
        for table, rows in tables.items():
            self.tables[table] += rows
        if self.stored:
            patiently(self.results, lambda: self._write(files))

    def _write(self, files: Mapping[str, bytes]) -> None:
        round_ = self.tables["rounds"][-1]["round"]
        temporary = self.folder / f".round-{round_}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for table, rows in self.tables.items():
                if rows:
                    write_table(as_table(table, rows, {}), temporary / f"{table}.parquet")
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            (temporary / "files.json").write_text(json.dumps(sorted(files)))
            temporary.rename(self.folder / f"round-{round_}")
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for older in self.folder.glob("round-*"):
            if older.name != f"round-{round_}":
                shutil.rmtree(older, ignore_errors=True)


def stored_history(folder: Path) -> History | None:
    """Return the finished rounds that a Checkpoint has written to `folder`; None where there are none, or damaged."""
    rounds = sorted(folder.glob("round-*"), key=lambda path: int(path.name.partition("-")[2]))
    for path in reversed(rounds):
        try:
            tables = {
                t: read(path / f"{t}.parquet", t).to_pylist() for t in SCHEMAS if (path / f"{t}.parquet").is_file()
            }
            files = {name: (path / name).read_bytes() for name in json.loads((path / "files.json").read_text())}
        except (BenchError, OSError, ValueError):
            continue  # damaged: the rounds before it, or none, are repeated
        if "rounds" in tables and "selections" in tables:
            return History(tables, files)
    return None
