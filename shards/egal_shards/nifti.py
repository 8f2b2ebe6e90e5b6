"""NIfTI-1 volumes as a stream of axial slices. nibabel reads the header, and every size in it is bounded before use."""

import gzip
import math
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from egal_shards.errors import ShardError

MAX_VOXELS = 1 << 26  # most voxels of a volume, checked before its data are read
MAX_SIDE = 2048
_HEADER = 348
_MAX_OFFSET = 1 << 20  # largest offset of the data, after header and extensions
_KINDS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


@dataclass(frozen=True)
class Volume:
    """What the header of a volume says about its voxels [X,Y,Z], and how a slice [X,Y] is turned upright."""

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    offset: int  # bytes before the data
    slope: float
    intercept: float
    axes: tuple[tuple[int, int], ...]  # one (anatomical axis, ±1) per array axis; +1 is right, anterior or superior

    @classmethod
    def open(cls, path: Path) -> "Volume":
        """Return the volume in a file.

        Dimensions of one after the third, as several tools write them, are left out. ShardError names a file that is no
        volume of three dimensions and bounded size, or whose third axis is not head to foot.
        """
        try:
            import nibabel
        except ImportError:
            raise ShardError(f"{path}: NIfTI files need an extra: pip install 'egal-bench[nifti]'") from None
        library: Any = nibabel  # which has no types
        with _bytes_of(path) as file:
            block = _exactly(file, _HEADER, path)
        try:
            header = library.Nifti1Header(block)
            shape, dtype = tuple(int(side) for side in header.get_data_shape()), header.get_data_dtype()
            offset, (slope, intercept) = int(header.get_data_offset()), header.get_slope_inter()
            axes = tuple((int(axis), int(sign)) for axis, sign in library.io_orientation(header.get_best_affine()))
            while len(shape) > 3 and shape[-1] == 1:
                shape = shape[:-1]
        except (library.spatialimages.HeaderDataError, ValueError, OverflowError, np.linalg.LinAlgError) as error:
            raise ShardError(f"{path}: is not a NIfTI-1 file ({' '.join(str(error).split())}); replace it") from None
        if len(shape) != 3 or not all(0 < side <= MAX_SIDE for side in shape) or math.prod(shape) > MAX_VOXELS:
            raise ShardError(
                f"{path}: declares {'×'.join(map(str, shape))} voxels; three sides of at most {MAX_SIDE} and "
                f"{MAX_VOXELS / 1e6:.0f} million voxels in all are read; save one such volume"
            )
        if dtype.str[1:] not in _KINDS or not _HEADER <= offset <= _MAX_OFFSET or header["magic"].item() != b"n+1":
            raise ShardError(f"{path}: holds {dtype} from byte {offset}, and only plain numbers are read; convert it")
        if axes[2][0] != 2:
            raise ShardError(f"{path}: its slices are not axial (its third axis is not head to foot); reorient it")
        return cls(path, shape, dtype, offset, float(slope or 1), float(intercept or 0), axes)

    def slices(self) -> Iterator[np.ndarray]:
        """Yield each slice along the third axis as f32 [rows,columns]: anterior up, the patient's right on the left."""
        width, height, depth = self.shape
        with closing(_bytes_of(self.path)) as file:
            _exactly(file, self.offset, self.path)
            for _ in range(depth):
                data = _exactly(file, width * height * self.dtype.itemsize, self.path)
                plane = np.frombuffer(data, self.dtype).reshape(height, width).T  # [X,Y], X fastest in the file
                yield self._upright(plane.astype(np.float64) * self.slope + self.intercept)
            if _read(file, 1, self.path):  # a gzip's checksum is compared where it ends
                raise ShardError(f"{self.path}: goes on after its header's last voxel; replace it")

    def _upright(self, plane: np.ndarray) -> np.ndarray:
        (first, step_x), (_, step_y), _ = self.axes
        steps = (-step_x, -step_y)  # towards left along a row, and towards posterior down the rows
        turned = plane[:: steps[0], :: steps[1]]
        return np.ascontiguousarray(turned.T if first == 0 else turned, np.float32)


def _bytes_of(path: Path) -> BinaryIO:
    """Open a file, decompressed where it is gzip, but wait for no pipe and read no device."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ShardError(f"{path}: is not a regular file; put the volume itself there")
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        return gzip.open(path, "rb") if is_gzip else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; check the path") from None


def _exactly(file: BinaryIO, size: int, path: Path) -> bytes:
    """Return the next `size` bytes. ShardError where the file ends before."""
    data = _read(file, size, path)
    if len(data) != size:
        raise ShardError(f"{path}: ends before its header says; replace it")
    return data


def _read(file: BinaryIO, size: int, path: Path) -> bytes:
    try:
        return file.read(size)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ShardError(f"{path}: cannot be read, it is cut short or damaged ({error}); replace it") from None
