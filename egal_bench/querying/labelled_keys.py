"""The keys of labelled samples, which a query leaves out: a CSV with a column `key`, or one key per line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from egal_bench.errors import BenchError
from egal_shards import ShardError
from egal_shards.layout import KEY
from egal_shards.sources.files import read_bytes

MAX_BYTES = 1 << 28
MAX_CELL = 1 << 16  # characters
DELIMITERS = (",", ";", "\t")
DECLARATION = re.compile(r'"?sep=([^"\r\n])"?[ \t]*\r?\n', re.IGNORECASE)  # first line for spreadsheet programs


def read_keys(path: Path) -> frozenset[str]:
    """Return the keys that a file lists.

    Without a column `key`, in small letters or capitals, every line is one key. Cells are separated by what a first
    line such as "sep=;" says, else by the comma, semicolon or tab that gives a column `key`. An apostrophe before a
    key, as `query.csv` writes it before `-`, does not belong to the key.

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
        return _keys(path, text)
    except csv.Error as error:
        raise BenchError(f"--labelled {path}: is not CSV ({error}); correct it") from None
    finally:
        csv.field_size_limit(before)


def _keys(path: Path, text: str) -> frozenset[str]:
    declared = DECLARATION.match(text)
    table, skipped = (text[declared.end() :], 1) if declared else (text, 0)
    headers = {choice: _header(table, choice) for choice in (declared[1] if declared else DELIMITERS)}
    delimiter = max(headers, key=lambda choice: (_key_column(headers[choice]) is not None, len(headers[choice])))
    lines, column = _lines(table, delimiter), _key_column(headers[delimiter])
    if column is not None:
        next(lines)
    elif len(headers[delimiter]) > 1:
        raise BenchError(f"--labelled {path}: has no column `key`; its columns: {', '.join(headers[delimiter][:10])}")
    keys: set[str] = set()
    for number, cells in lines:
        key = cells[column or 0].removeprefix("'") if (column or 0) < len(cells) else ""
        if not KEY.fullmatch(key):
            raise BenchError(
                f"--labelled {path} line {number + skipped}: {key[:90]!r} is not a key of a sample (1 to 80 of A-Z a-z "
                "0-9 _ -)"
            )
        keys.add(key)
    return frozenset(keys)


def _lines(table: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells without surrounding blanks) of every line that is not blank."""
    reader = csv.reader(io.StringIO(table, newline=""), delimiter=delimiter, strict=True)
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield reader.line_num, cells


def _header(table: str, delimiter: str) -> list[str]:
    """Return the cells of the first line, none where another delimiter is needed to read it as CSV."""
    try:
        return next(_lines(table, delimiter), (0, []))[1]
    except csv.Error:
        return []


def _key_column(header: list[str]) -> int | None:
    """Return the position of the column `key`, in small letters or capitals; None where there is none."""
    names = header if "key" in header else [name.casefold() for name in header]
    return names.index("key") if "key" in names else None
