"""Whether a folder may take a query: results of other commands and shard sets stay as they are."""

from __future__ import annotations

import os
import re
from pathlib import Path

from egal_bench.errors import BenchError
from egal_bench.tables.locks import FOLDER as LOCKS

SCORES = "scores"
WRITTEN = {SCORES, LOCKS, "query.csv", "query.parquet", "contact_sheet.png", "environment.json", "summary.txt"}
FOREIGN = {"manifest.json": "a shard set", "rounds": "the results of a comparison", "config.yaml": "a comparison"}
_TEMPORARY = re.compile(r"\.[0-9]+\.")  # the start of a temporary name, see files.replacing


def check_out(out: Path) -> None:
    """Raise BenchError unless `out` can become a query folder, or is one: it has scores, or only a query's files.

    Nothing is written.
    """
    if out.is_symlink() and not out.exists():
        raise BenchError(
            f"--out {out} is a symbolic link to {os.readlink(out)}, which does not exist: make that folder, or choose "
            "another --out"
        )
    if not out.exists():
        return
    if not out.is_dir():
        raise BenchError(f"--out {out} is not a folder: choose another --out")
    try:
        names = {entry.name for entry in out.iterdir()}
    except OSError as error:
        raise BenchError(f"--out {out}: {error.strerror}; choose another --out") from None
    for name, content in FOREIGN.items():
        if name in names:
            raise BenchError(f"--out {out} holds {content} ({name}): choose an empty or new folder as --out")
    foreign = sorted(name for name in names if _TEMPORARY.sub("", name, count=1) not in WRITTEN)
    if foreign and SCORES not in names:
        raise BenchError(
            f"--out {out} holds something other than a query ({foreign[0]}): choose an empty or new folder as --out"
        )
