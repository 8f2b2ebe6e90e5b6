"""Arrays that a pass fills row by row on disk, so that they take no memory and an interrupted pass continues."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np

from egal_bench.errors import BenchError


class Spool:
    """Arrays of `samples` rows, stored as `NAME.npy` in a folder and written in order.

    `done` is the number of rows that all files hold.

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
        self.done = min((_rows(file) for file in self.folder.glob("*.npy")), default=0)

    def append(self, rows: dict[str, np.ndarray]) -> None:
        """Write the next rows of every array. Raises BenchError where the disk is full or too small."""
        if self.done == 0:
            self._create(rows)
        for name, values in rows.items():
            file = self.folder / f"{name}.npy"
            try:
                with file.open("r+b") as stream:
                    _, _, first_row = _header(stream)
                    stream.seek(first_row + self.done * values[0].nbytes)  # overwrites an incomplete row
                    stream.write(np.ascontiguousarray(values).data)
            except OSError as error:
                raise BenchError(f"{file}: {error.strerror}; the same command resumes") from None
        self.done += len(next(iter(rows.values())))

    def columns(self) -> dict[str, np.ndarray]:
        """Return the arrays, memory-mapped, once all rows are written."""
        return {file.stem: np.load(file, mmap_mode="r") for file in sorted(self.folder.glob("*.npy"))}

    def _create(self, like: dict[str, np.ndarray]) -> None:
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


def _rows(file: Path) -> int:
    """Return the number of complete rows in `file`, 0 where not even its header is complete."""
    with file.open("rb") as stream:
        try:
            shape, dtype, first_row = _header(stream)
        except ValueError:
            return 0
    return (file.stat().st_size - first_row) // (math.prod(shape[1:]) * dtype.itemsize)


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return the shape, the dtype and the offset of the first row of an .npy file."""
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, dtype, stream.tell()
