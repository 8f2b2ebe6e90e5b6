"""CSV files with errors that name their lines."""

import csv
import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from egal_shards.errors import ShardError

_LONGEST_KEY = 80


@dataclass(frozen=True)
class Row:
    """One line of a table by column, and where it is, for errors."""

    where: str  # "labels.csv line 7"
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def filled(self, column: str) -> str:
        """The cell without surrounding blanks. ShardError where it is empty."""
        cell = self.cells[column].strip()
        if not cell:
            raise ShardError(f"{self.where}: {column} is empty; fill it in")
        return cell

    def integer(self, column: str) -> int:
        cell = self.filled(column)
        if not re.fullmatch(r"-?[0-9]{1,18}", cell):
            raise ShardError(f"{self.where}: {column} is {cell!r}, not an integer; mend it or choose another column")
        return int(cell)


@dataclass(frozen=True)
class Table:
    """A CSV file (UTF-8, comma, first line names the columns), read anew each time it is iterated over."""

    path: Path
    columns: tuple[str, ...]

    @classmethod
    def open(cls, path: Path, needs: Iterable[str]) -> "Table":
        """The table at `path`, which must have the columns `needs`."""
        header = next(_lines(path), (1, []))[1]
        table = cls(path, tuple(header))
        if len(set(header)) != len(header):
            raise ShardError(f"{path}: two columns have one name in {header}; rename one")
        for column in needs:
            table.need(column)
        return table

    def need(self, column: str) -> str:
        """The column's name. ShardError, with the columns that there are, where it is missing."""
        if column not in self.columns:
            raise ShardError(
                f"{self.path}: has no column {column!r}{nearest(column, self.columns)}; "
                f"its columns: {', '.join(self.columns)}"
            )
        return column

    def __iter__(self) -> Iterator[Row]:
        lines = _lines(self.path)
        next(lines)
        for line, cells in lines:
            where = f"{self.path.name} line {line}"
            if len(cells) != len(self.columns):
                raise ShardError(f"{where}: has {len(cells)} cells, the first line names {len(self.columns)} columns")
            yield Row(where, dict(zip(self.columns, cells, strict=True)))


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not blank."""
    reader = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise ShardError(f"{path}: is not UTF-8 text; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise ShardError(
            f"{path.name} line {reader.line_num if reader else 1}: is not CSV ({error}); mend it"
        ) from None


def nearest(word: str, options: Iterable[str]) -> str:
    """ " (did you mean 'x'?)", or "" where nothing comes close."""
    close = difflib.get_close_matches(word, list(options), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def file_key(path: str) -> str:
    """A sample's key for a path without its suffix: anything but A-Z a-z 0-9 _ - made _; the beginning of a long one
    becomes a digest."""
    key = re.sub(r"[^A-Za-z0-9_-]", "_", path, flags=re.ASCII)
    if len(key) > _LONGEST_KEY:
        key = f"{hashlib.sha256(path.encode()).hexdigest()[:16]}_{key[-(_LONGEST_KEY - 17) :]}"
    return key


def grouping(table: Table, spec: str) -> Callable[[Row], str]:
    """The group of a row: by COLUMN, or by `block:COLUMN:N`, contiguous blocks of N ids."""
    if not spec.startswith("block:"):
        column = table.need(spec)
        return lambda row: row.filled(column)
    parts = re.fullmatch(r"block:(.+):([1-9][0-9]{0,17})", spec)
    if not parts:
        raise ShardError(
            f"group {spec!r} is not COLUMN or block:COLUMN:N with N of 1 or more, such as block:slice_id:40"
        )
    column, size = table.need(parts[1]), int(parts[2])
    return lambda row: f"{column}-block-{row.integer(column) // size}"


def duplicates(table: Table, column: str | None) -> Callable[[Row], str]:
    """The near-duplicate group of a row; "" = none."""
    if column is None:
        return lambda _: ""
    name = table.need(column)
    return lambda row: row[name].strip()
