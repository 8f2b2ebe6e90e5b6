"""Arrays that a pass fills row by row on disk, so that they take no memory and an interrupted pass continues.

A folder holds one file NAME.npy per array, and `rows.txt`. The first line of `rows.txt` has the number of samples and
a CRC-32 of the headers of all arrays. After the rows of a batch are written, a line with their number and their CRC-32
is added. Rows without a line, or with another checksum than their line states, do not count: whatever ends a process
or damages a file, zeros or half-written rows are never taken for results.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, NamedTuple

import numpy as np

from egal_bench.errors import BenchError
from egal_shards.threads import cores, ordered_map

JOURNAL = "rows.txt"
LINE = re.compile(rb"(\d{1,15}) ([0-9a-f]{8})\n")
PIECE = 1 << 20  # bytes that a check reads at a time


class Spool:
    """Arrays of `samples` rows, stored as NAME.npy in a folder and written in order, by one process at a time.

    `done` is the number of rows that are written and undamaged.

    Args:
        samples: rows of each array.
        folder: where an earlier pass over the same numbers may have stopped; None: a temporary folder.
        content: what the arrays are, for the message of a full disk.
    """

    def __init__(self, samples: int, folder: Path | None, content: str) -> None:
        self._temporary = TemporaryDirectory(prefix="egal-bench-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(str(folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.samples, self.content = samples, content
        batches = intact_batches(self.folder, samples)
        self.done = sum(batches)
        if batches:  # otherwise the first append creates all files
            lines = _journal(self.folder, samples)[: 1 + len(batches)]
            os.truncate(self.folder / JOURNAL, sum(len(line.text) for line in lines))

    def append(self, rows: dict[str, np.ndarray]) -> None:
        """Write the next rows of every array. Raises BenchError where the disk is full or too small."""
        if self.done == 0:
            self._create(rows)
        checksum = 0
        for array in _arrays(self.folder):
            values = np.ascontiguousarray(rows[array.file.stem])
            self._write(array.file, array.first_row + self.done * array.row_bytes, values.data)
            checksum = zlib.crc32(values.data, checksum)
        count = len(next(iter(rows.values())))
        self._write(self.folder / JOURNAL, None, _line(count, checksum))
        self.done += count

    def columns(self) -> dict[str, np.ndarray]:
        """Return the arrays, memory-mapped, once all rows are written."""
        return {file.stem: np.load(file, mmap_mode="r") for file in sorted(self.folder.glob("*.npy"))}

    def _create(self, like: dict[str, np.ndarray]) -> None:
        """Create the files of arrays whose rows have the shapes and types of those of `like`, without rows."""
        for stale in (self.folder / JOURNAL, *self.folder.glob("*.npy")):
            stale.unlink(missing_ok=True)
        shapes = {name: (self.samples, *values.shape[1:]) for name, values in like.items()}
        need = sum(math.prod(shapes[name]) * values.itemsize for name, values in like.items())
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise BenchError(
                f"{self.folder.parent}: the {self.content} need {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
                "choose another --out"
            )
        for name, values in like.items():
            header = {"descr": values.dtype.str, "fortran_order": False, "shape": shapes[name]}
            with (self.folder / f"{name}.npy").open("wb") as stream:
                np.lib.format.write_array_header_1_0(stream, header)
        self._write(self.folder / JOURNAL, None, _first_line(self.samples, self.folder))

    def _write(self, file: Path, position: int | None, content: bytes | memoryview) -> None:
        """Write `content` at a position of `file`, or at its end where `position` is None."""
        try:
            with file.open("ab" if position is None else "r+b") as stream:
                if position is not None:
                    stream.seek(position)
                stream.write(content)
        except OSError as error:
            raise BenchError(f"{file}: {error.strerror}; the same command resumes") from None


def damage(folder: Path, samples: int) -> str | None:
    """Return what is wrong with the arrays in `folder`, None where all rows are as they were written.

    Every byte is read, in all cores' threads.
    """
    if not (folder / JOURNAL).is_file():
        return "without checksums, as earlier versions wrote them"
    done = sum(intact_batches(folder, samples))
    return None if done == samples else f"damaged from row {done} on"


def intact_batches(folder: Path, samples: int) -> list[int]:
    """Return the numbers of rows of the batches in `folder` that are as they were written, up to the first other one.

    Args:
        folder: folder of a Spool.
        samples: the rows that each array must have; where it has another number, no batch counts.
    """
    lines = _journal(folder, samples)
    if not lines or lines[0].text != _first_line(samples, folder):
        return []
    arrays, batches = _arrays(folder), lines[1:]
    starts = accumulate((line.number for line in batches), initial=0)
    checks = ordered_map(
        lambda place: _checksum(arrays, *place),
        ((start, line.number) for start, line in zip(starts, batches, strict=False)),
        cores(), 2 * cores(),
    )  # fmt: skip
    counts: list[int] = []
    for line, checksum in zip(batches, checks, strict=True):
        if line.text != _line(line.number, checksum):
            checks.close()
            break
        counts.append(line.number)
    return counts


class _Line(NamedTuple):
    text: bytes
    number: int


class _Array(NamedTuple):
    file: Path
    first_row: int  # its position in bytes
    row_bytes: int


def _line(count: int, checksum: int) -> bytes:
    return b"%d %08x\n" % (count, checksum)


def _first_line(samples: int, folder: Path) -> bytes:
    checksum = 0
    for file in sorted(folder.glob("*.npy")):
        with file.open("rb") as stream:
            start = stream.read(10)  # ends with the length of the header
            checksum = zlib.crc32(
                file.name.encode() + start + stream.read(int.from_bytes(start[8:], "little")), checksum
            )
    return _line(samples, checksum)


def _journal(folder: Path, samples: int) -> list[_Line]:
    """Return the lines of the journal in `folder`, up to the first impossible one; [] where there is no journal."""
    try:
        with (folder / JOURNAL).open("rb") as stream:
            texts = stream.read(32 * (samples + 1)).splitlines(keepends=True)
    except OSError:
        return []
    lines: list[_Line] = []
    rows = -samples  # since the first line has the number of samples
    for text in texts:
        match = LINE.fullmatch(text)
        rows += int(match[1]) if match else 0
        if match is None or rows > samples:
            break
        lines.append(_Line(text, int(match[1])))
    return lines


def _arrays(folder: Path) -> list[_Array]:
    """Return the arrays in `folder`, sorted by name; their headers must be undamaged."""
    arrays = []
    for file in sorted(folder.glob("*.npy")):
        with file.open("rb") as stream:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            arrays.append(_Array(file, stream.tell(), math.prod(shape[1:]) * dtype.itemsize))
    return arrays


def _checksum(arrays: Sequence[_Array], start: int, count: int) -> int:
    """Return the CRC-32 of `count` rows from row `start` of each array, one array after the other."""
    checksum = 0
    for array in arrays:
        with array.file.open("rb", buffering=0) as stream:
            stream.seek(array.first_row + start * array.row_bytes)
            for piece in _pieces(stream, count * array.row_bytes):
                checksum = zlib.crc32(piece, checksum)
    return checksum


def _pieces(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the next `size` bytes of `stream`, or fewer where it ends, in pieces."""
    while size and (piece := stream.read(min(size, PIECE))):
        size -= len(piece)
        yield piece
