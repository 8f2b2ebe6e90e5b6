"""Tables in text files (CSV and its relatives) with errors that name their lines."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from egal_shards.errors import ShardError
from egal_shards.sources.files import MAX_TABLE, open_regular
from egal_shards.sources.names import file_key, joined, nearest, normalised

__all__ = ["AnyTable", "Row", "Table", "duplicates", "file_key", "grouping", "nearest"]

_DELIMITERS = (",", ";", "\t")
_LONGEST_CELL = 1 << 24  # characters
_INVISIBLE = "\ufeff\u200b"  # byte-order mark and zero-width space, which programs leave around column names
_SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?\s*', re.IGNORECASE)  # first line for spreadsheet programs


@dataclass(frozen=True)
class Row:
    """One line of a table: its cells by column, and its place for errors."""

    where: str  # "labels.csv line 7"
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def filled(self, column: str) -> str:
        """Return the cell without surrounding blanks. Raise ShardError where it is empty."""
        cell = self.cells[column].strip()
        if not cell:
            raise ShardError(f"{self.where}: {column} is empty; fill it in")
        return cell

    def integer(self, column: str) -> int:
        """Return the cell as an integer. Raise ShardError where it is not one."""
        cell = self.filled(column)
        if not re.fullmatch(r"-?[0-9]{1,18}", cell):
            raise ShardError(f"{self.where}: {column} is {cell!r}, not an integer; correct it or choose another column")
        return int(cell)


class AnyTable(Protocol):
    """Rows with named columns, whatever the format of the file."""

    @property
    def path(self) -> Path: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    def need(self, column: str) -> str: ...

    def __iter__(self) -> Iterator[Row]: ...


def need(table: AnyTable, column: str) -> str:
    """Return the column's name. Raise ShardError, which lists the table's columns, where there is no such column."""
    if column not in table.columns:
        raise ShardError(
            f"{table.path}: has no column {column!r}{nearest(column, table.columns)}; "
            f"its columns: {joined(table.columns, 30)}"
        )
    return column


@dataclass(frozen=True)
class Table:
    """A CSV file whose first line names the columns. Every iteration reads the file anew.

    The file is UTF-8, or UTF-16 with a byte-order mark. Cells are separated by comma, semicolon or tab: by what a
    first line such as "sep=;" says, else by the first of these that gives the columns that are needed. Blank rows are
    ignored, and so are unnamed columns, such as the row numbers that pandas writes.
    """

    path: Path
    columns: tuple[str, ...]  # the named ones
    _names: tuple[str, ...]  # names of all columns, "" for an unnamed column
    _delimiter: str
    _encoding: str

    @classmethod
    def open(cls, path: Path, needs: Iterable[str]) -> "Table":
        """Return the table at `path`. Raise ShardError where one of the columns `needs` is missing."""
        encoding = _encoding(path)
        needed, delimiter, header = list(needs), ",", list[str]()
        for choice in _declared(path, encoding) or _DELIMITERS:
            _, cells = next(_lines(path, choice, encoding), (1, list[str]()))
            names = [cell.strip().strip(_INVISIBLE).strip() for cell in cells]
            if set(needed) <= set(names) or len(names) > max(1, len(header)):
                delimiter, header = choice, names
            if set(needed) <= set(names):
                break
        columns = tuple(name for name in header if name)
        table = cls(path, columns, tuple(header), delimiter, encoding)
        for name, uses in Counter(columns).items():
            if uses > 1:
                raise ShardError(f"{path}: {uses} columns have the name {name!r}; rename all but one of them")
        for column in needed:
            table.need(column)
        return table

    def need(self, column: str) -> str:
        """Return the column's name. Raise ShardError, which lists the columns, where there is no such column."""
        return need(self, column)

    def __iter__(self) -> Iterator[Row]:
        lines = _lines(self.path, self._delimiter, self._encoding)
        next(lines)
        named = len(self._names)  # columns up to the last one with a name
        while named and not self._names[named - 1]:
            named -= 1
        for line, cells in lines:
            where = f"{self.path.name} line {line}"
            if len(cells) < named or any(cell.strip() for cell in cells[named:]):
                raise ShardError(
                    f"{where}: has {len(cells)} cells, the first line names {len(self._names)} columns; "
                    'put a cell that contains the separator in quotes ("), or name the column'
                )
            yield Row(where, {name: cell for name, cell in zip(self._names, cells, strict=False) if name})


def _encoding(path: Path) -> str:
    """Return the encoding that the byte-order mark of a file declares: UTF-16, else UTF-8."""
    with open_regular(path, MAX_TABLE) as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _declared(path: Path, encoding: str) -> str | None:
    """Return the delimiter that a first line "sep=;" declares, else None."""
    with _opened(path, encoding) as file:
        match = _SEPARATOR.fullmatch(file.readline(80))
    return match[1] if match else None


def _lines(path: Path, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every line with a cell that is not blank, except for a first line "sep=;"."""
    with _opened(path, encoding) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            while (cells := _next_row(reader)) is not None:
                is_declaration = reader.line_num == 1 and _SEPARATOR.fullmatch(delimiter.join(cells))
                if any(cell.strip() for cell in cells) and not is_declaration:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise ShardError(f"{path.name} line {reader.line_num or 1}: is not CSV ({error}); correct it") from None


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """Return the next row, or None at the end of the file."""
    limit = csv.field_size_limit(_LONGEST_CELL)  # this limit holds for the whole process, so it is put back
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[TextIO]:
    """Open a table as text. Errors of the disk and of the encoding, in the block too, become ShardErrors."""
    try:
        with io.TextIOWrapper(open_regular(path, MAX_TABLE), encoding=encoding, newline="") as file:
            yield file
    except UnicodeError:
        raise ShardError(f"{path}: is not UTF-8 text; save it as CSV in UTF-8") from None
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; check the disk") from None


def grouping(table: AnyTable, spec: str) -> Callable[[Row], str]:
    """Return the function that gives the group of a row.

    Groups are compared in Unicode's composed form (NFC).

    Args:
        table: The table of the rows.
        spec: COLUMN, or block:COLUMN:N for contiguous blocks of N ids.
    """
    if not spec.startswith("block:"):
        column = table.need(spec)
        return lambda row: normalised(row.filled(column))
    parts = re.fullmatch(r"block:(.+):([1-9][0-9]{0,17})", spec)
    if not parts:
        raise ShardError(
            f"group {spec!r} is not COLUMN or block:COLUMN:N with N of 1 or more, such as block:slice_id:40"
        )
    column, size = table.need(parts[1]), int(parts[2])
    return lambda row: f"{column}-block-{row.integer(column) // size}"


def duplicates(table: AnyTable, column: str | None) -> Callable[[Row], str]:
    """Return the function that gives the near-duplicate group of a row, "" for none."""
    if column is None:
        return lambda _: ""
    name = table.need(column)
    return lambda row: normalised(row[name].strip())
