"""Image and mask files to arrays. Hostile files end in a ShardError that names them."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from egal_shards.errors import ShardError
from egal_shards.intensity import Window, windowed

MAX_PIXELS = 100_000_000  # checked before decoding

DICOM = (".dcm", ".dicom")

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_LOSSLESS = ("PNG", "BMP", "TIFF")
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_MODES_16 = ("I;16", "I;16B")
_MASK_MODES = (*_MODES, *_MODES_16, "I")
# What Pillow's decoders raise on damaged bytes; anything else is a bug and stays loud.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, struct.error, zlib.error)


class File(Protocol):
    """A Path, or a file in an archive that can be opened like one."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]: ...


def read_image(path: File, window: Window | None = None) -> np.ndarray:
    """u8 or u16 [H,W] of a grey file, u8 [H,W,3] of one in colour; f32 in 0…1 of one shown through a window.

    A file named .dcm or .dicom is DICOM, and always shown through a window: `read_dicom`. In the others `window`
    (LOW, HIGH) is in pixel values, alpha is dropped, and EXIF orientation is not applied.
    """
    if isinstance(path, Path) and path.suffix.lower() in DICOM:
        from egal_shards.dicom import read_dicom

        return read_dicom(path, window)
    pixels = _pixels(path)
    return windowed(pixels, window) if window else pixels


def _pixels(path: File) -> np.ndarray:
    with _opened(path, _FORMATS) as image:
        if image.mode in _MODES_16:
            return np.asarray(image).astype(np.uint16)
        if image.mode not in _MODES or _is_16_bit(image):
            raise ShardError(
                f"{path}: holds {'16-bit colour or signed' if _is_16_bit(image) else image.mode} pixels; "
                "8-bit grey or RGB and 16-bit grey are read, convert it to one of these"
            )
        mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
        return np.asarray(image if image.mode == mode else image.convert(mode))


def read_mask(path: File) -> np.ndarray:
    """bool [H,W]: pixels above 0 in any channel but alpha; of a palette file, those whose index is above 0."""
    with _opened(path, _LOSSLESS) as image:
        if image.mode not in _MASK_MODES:
            raise ShardError(
                f"{path}: a mask of mode {image.mode} is not read; save it as 8-bit PNG, 0 outside the ROI"
            )
        image.load()
        alpha = image.mode in ("LA", "RGBA")
        values = np.asarray(image.convert(image.mode[:-1]) if alpha else image)
        return values > 0 if values.ndim == 2 else np.any(values > 0, axis=2)


def _is_16_bit(image: ImageFile.ImageFile) -> bool:
    """Of files that Pillow would cut down to 8 bits, too: their stored layout says so."""
    return "16" in image.mode or any(";16" in str(tile[3]) for tile in image.tile)


@contextmanager
def _opened(path: File, formats: tuple[str, ...]) -> Iterator[ImageFile.ImageFile]:
    try:
        with path.open("rb") as file, Image.open(file, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ShardError(_too_large(path))
            frames = getattr(image, "n_frames", 1)
            if frames != 1:
                raise ShardError(f"{path}: holds {frames} frames; save the one you want as its own file")
            yield image
    except ShardError:
        raise
    except Image.DecompressionBombError:
        raise ShardError(_too_large(path)) from None
    except UnidentifiedImageError:
        raise ShardError(f"{path}: is not a {' or '.join(formats)} file; convert it to PNG") from None
    except _DAMAGE as error:
        raise ShardError(
            f"{path}: cannot be decoded, it is cut short or damaged ({_line(error)}); replace it"
        ) from None


def _too_large(path: File) -> str:
    return f"{path}: has more than {MAX_PIXELS // 1_000_000} million pixels; scale it down first"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
