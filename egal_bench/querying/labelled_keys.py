"""The keys of labelled samples, which a query leaves out: a CSV with a column `key`, or one key per line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from egal_bench.errors import BenchError
from egal_shards import ShardError
from egal_shards.layout import KEY
from egal_shards.sources.files import read_bytes

MAX_BYTES = 1 << 28
MAX_CELL = 1 << 16  # characters


def read_keys(path: Path) -> frozenset[str]:
    """Return the keys that a file lists.

    Without a column `key`, every line is one key. An apostrophe before a key, as `query.csv` writes it before `-`, does
    not belong to the key.

    Raises:
        BenchError: the file cannot be read, is larger than 256 MiB or is no such list; the message names the line.
    """
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except ShardError as error:
        raise BenchError(f"--labelled {error}") from None
    except UnicodeDecodeError:
        raise BenchError(f"--labelled {path}: is not UTF-8 text; save it as CSV in UTF-8") from None
    before = csv.field_size_limit(MAX_CELL)
    try:
        return _keys(path, csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise BenchError(f"--labelled {path}: is not CSV ({error}); correct it") from None
    finally:
        csv.field_size_limit(before)


def _keys(path: Path, lines: Iterable[list[str]]) -> frozenset[str]:
    keys: set[str] = set()
    column = None
    for number, cells in enumerate(lines, 1):
        names = [cell.strip() for cell in cells]
        if not any(names):
            continue
        if column is None:
            column = names.index("key") if "key" in names else 0
            if "key" in names:
                continue
            if len(names) > 1:
                raise BenchError(f"--labelled {path}: has no column `key`; its columns: {', '.join(names[:10])}")
        key = names[column].removeprefix("'") if column < len(names) else ""
        if not KEY.fullmatch(key):
            raise BenchError(
                f"--labelled {path} line {number}: {key[:90]!r} is not a key of a sample (1 to 80 of A-Z a-z 0-9 _ -)"
            )
        keys.add(key)
    return frozenset(keys)
