"""PNG, JPEG, BMP and TIFF files, opened with bounded cost.

Every size that a file declares is bounded before it is used, and only the parts of a file that decide its pixels reach
Pillow, which decodes.
"""

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Literal, Protocol

from PIL import Image, ImageFile, UnidentifiedImageError

from egal_shards.errors import ShardError
from egal_shards.quiet import library_warnings_hidden
from egal_shards.rasters import jpeg, png, tiff
from egal_shards.sniffing import HEAD, describe

MAX_PIXELS = 100_000_000  # most pixels of a picture
MAX_SIDE = 65_535  # pixels, as JPEG and DICOM have it
MAX_ASPECT = 200  # largest ratio of the longer side to the shorter one
MAX_BYTES = 1 << 29  # largest file

# What Pillow's decoders raise on damaged bytes; anything else is a bug and stays loud.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, OverflowError, struct.error,
    zlib.error,
)  # fmt: skip


class File(Protocol):
    """A Path, or a file in an archive that can be opened like one."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]: ...


@dataclass(frozen=True)
class Raster:
    """A file that Pillow has opened and not yet decoded."""

    image: ImageFile.ImageFile
    inverted_from: int | None = None  # where 0 is white and Pillow does not invert: the largest stored value


@contextmanager
def opened(path: File, formats: tuple[str, ...]) -> Iterator[Raster]:
    """Open a file of one of these formats, whose size, sides and number of frames are bounded.

    Args:
        path: the file.
        formats: Pillow's names of formats.

    ShardError names a file that is none of them, holds several frames, is too large, or turns out to be damaged while
    the block decodes it.
    """
    try:
        with library_warnings_hidden(), _open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            if size > MAX_BYTES:
                raise ShardError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; export the image alone")
            file.seek(0)
            head = file.read(HEAD)
            file.seek(0)
            picture, inverted_from = _for_decoding(file, head, size, path)
            picture.seek(0)
            try:
                with Image.open(picture, formats=formats) as image:
                    check_sides(image.width, image.height, path)
                    yield Raster(image, inverted_from)
            except UnidentifiedImageError:
                raise ShardError(f"{path}: {_unidentified(head, formats)}") from None
    except ShardError:
        raise
    except Image.DecompressionBombError:
        raise ShardError(_too_many_pixels(path)) from None
    except _DAMAGE as error:
        raise ShardError(
            f"{path}: cannot be decoded, it is cut short or damaged ({in_one_line(error)}); replace it"
        ) from None


def check_sides(width: int, height: int, path: File) -> None:
    """Raise ShardError unless these are the sides, in pixels, of an image that may be real."""
    if width * height > MAX_PIXELS:
        raise ShardError(_too_many_pixels(path))
    if max(width, height) > min(MAX_SIDE, MAX_ASPECT * min(width, height)):
        raise ShardError(
            f"{path}: has {width}×{height} (w×h) pixels; sides of at most {MAX_SIDE} pixels are read, the longer one "
            f"at most {MAX_ASPECT} times the shorter one; crop it first"
        )


def in_one_line(error: Exception) -> str:
    """Return the message of an error without line breaks, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _open_regular(path: File) -> IO[bytes]:
    """Open a file, but wait for no pipe and read no device."""
    if isinstance(path, Path):
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ShardError(f"{path}: is a pipe, socket or device; put the image file itself there")
    return path.open("rb")


def _for_decoding(file: IO[bytes], head: bytes, size: int, path: File) -> tuple[IO[bytes], int | None]:
    """Return (the file with only what decides its pixels, `Raster.inverted_from`)."""
    if head.startswith(b"\xff\xd8"):
        return BytesIO(jpeg.for_decoding(file.read())), None
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        picture, frames = png.for_decoding(file)
        if frames > 1:
            raise ShardError(f"{path}: holds {frames} frames; save the one you want as its own file")
        return picture, None
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff_for_decoding(file, size, path)
    return file, None


def _tiff_for_decoding(file: IO[bytes], size: int, path: File) -> tuple[IO[bytes], int | None]:
    directory = tiff.read_directory(file, size)
    if directory is None:
        return file, None
    if directory.has_more_frames:
        raise ShardError(f"{path}: holds more than one frame; save the one you want as its own file")
    if directory.data_bytes > size:
        raise ShardError(f"{path}: declares {directory.data_bytes} bytes of tags and has {size} in all; replace it")
    if max(directory.tile) > MAX_SIDE or directory.tile[0] * directory.tile[1] > MAX_PIXELS:
        raise ShardError(f"{path}: has tiles of {'×'.join(map(str, directory.tile))} (w×h) pixels; save it in strips")
    if directory.is_signed and directory.bits <= 8:
        raise ShardError(f"{path}: holds signed 8-bit pixels; convert it to unsigned 8-bit or 16-bit grey")
    if not directory.white_is_zero or directory.bits not in (12, 16):
        return file, None
    file.seek(0)  # Pillow does not invert these, or does not read them: it gets them as if black were 0
    data = bytearray(file.read())
    at, black_is_zero = directory.photometric
    data[at : at + len(black_is_zero)] = black_is_zero
    return BytesIO(data), 2**directory.bits - 1


def _unidentified(head: bytes, formats: tuple[str, ...]) -> str:
    """Return why Pillow does not know a file, and how to fix it."""
    kind, fix = describe(head)
    if any(name in kind for name in formats):
        return f"is {kind} of a layout that is not read, or damaged; save it as 8-bit PNG, or 16-bit PNG in grey"
    return f"is not a {' or '.join(formats)} file{f' but {kind}' if kind else ''}; {fix or 'convert it to PNG'}"


def _too_many_pixels(path: File) -> str:
    return f"{path}: has more than {MAX_PIXELS // 1_000_000} million pixels; scale it down first"
