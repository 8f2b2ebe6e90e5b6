"""Arrays that a pass fills row by row on disk: nothing of them stays in memory, and an interrupted pass goes on."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np

from egal_bench.errors import BenchError


class Spool:
    """Arrays of `samples` rows, `NAME.npy` in `folder`, written in order; as many rows are `done` as their files hold.

    Args:
        folder: where a pass of the same numbers may have stopped; None: a temporary one.
        what: its content, for the message of a full disk.
    """

    def __init__(self, samples: int, folder: Path | None, what: str) -> None:
        self._temporary = TemporaryDirectory(prefix="egal-bench-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(str(folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.samples, self.what = samples, what
        found = {file.stem: _rows(file) for file in self.folder.glob("*.npy")}
        self.done = min(found.values(), default=0)

    def append(self, rows: dict[str, np.ndarray]) -> None:
        """Write the next rows, of every array. Raises BenchError where the disk is or will be full."""
        if self.done == 0:
            self._begin(rows)
        for name, values in rows.items():
            file = self.folder / f"{name}.npy"
            try:
                with file.open("r+b") as stream:
                    _, _, begin = _header(stream)
                    stream.seek(begin + self.done * values[0].nbytes)  # over what was cut off
                    stream.write(np.ascontiguousarray(values).data)
            except OSError as error:
                raise BenchError(f"{file}: {error.strerror}; the same command resumes") from None
        self.done += len(next(iter(rows.values())))

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays, memory-mapped, once all rows are done."""
        return {file.stem: np.load(file, mmap_mode="r") for file in sorted(self.folder.glob("*.npy"))}

    def _begin(self, like: dict[str, np.ndarray]) -> None:
        shapes = {name: (self.samples, *values.shape[1:]) for name, values in like.items()}
        need = sum(math.prod(shapes[name]) * values.itemsize for name, values in like.items())
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise BenchError(
                f"{self.folder.parent}: the {self.what} need {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
                "choose another --out"
            )
        for name, values in like.items():
            header = {"descr": values.dtype.str, "fortran_order": False, "shape": shapes[name]}
            with (self.folder / f"{name}.npy").open("wb") as stream:
                np.lib.format.write_array_header_1_0(stream, header)


def _rows(file: Path) -> int:
    """Whole rows in `file`; 0 where not even its header is whole."""
    with file.open("rb") as stream:
        try:
            shape, dtype, begin = _header(stream)
        except ValueError:
            return 0
    return (file.stat().st_size - begin) // (math.prod(shape[1:]) * dtype.itemsize)


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype, int]:
    """(shape, dtype, offset of the first row) of an .npy file."""
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, dtype, stream.tell()
