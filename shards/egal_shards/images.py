"""Image and mask files as arrays. Hostile files end in a ShardError that names them."""

from pathlib import Path, PurePath

import numpy as np
from PIL import ImageFile

from egal_shards.dicom import read_dicom
from egal_shards.dicom.parsing import begins_as_dicom
from egal_shards.errors import ShardError
from egal_shards.intensity import Window, windowed
from egal_shards.masks import roi_of
from egal_shards.polarity import MaskRoi, roi_side
from egal_shards.rasters import MAX_PIXELS, File, Raster, opened

__all__ = ["DICOM", "MAX_PIXELS", "SUFFIXES", "File", "is_dicom", "read_image", "read_mask", "without_suffix"]

DICOM = (".dcm", ".dicom", ".ima")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".tif", ".tiff", *DICOM)

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
_MODES_16 = ("I;16", "I;16B")
_MASK_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", *_MODES_16, "I")


def without_suffix(name: str) -> str:
    """Return a file's name or path without its suffix if that is one of `SUFFIXES`, in any case; else unchanged.

    Names of DICOM files often end in a number after a dot, which is no suffix.
    """
    suffix = PurePath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in SUFFIXES else name


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM: by its first bytes, or by its suffix where it is nothing else that is known."""
    return path.suffix.lower() in DICOM or begins_as_dicom(path)


def read_image(path: File, window: Window | None = None) -> np.ndarray:
    """Return the pixels of a file.

    Grey files give u8 or u16 [H,W], files in colour u8 [H,W,3]. A DICOM file, whatever its name, is always shown
    through a window: `read_dicom`. Other files are shown through `window` where one is given, as f32 in 0…1.

    Args:
        path: the file; alpha is dropped, EXIF orientation is not applied, and of a JPEG file with several pictures the
            first one is read.
        window: (LOW, HIGH) in pixel values, of a DICOM file in its rescaled units.
    """
    if isinstance(path, Path) and is_dicom(path):
        return read_dicom(path, window)
    with opened(path, _FORMATS) as raster:
        pixels = _pixels(raster, path)
    return windowed(pixels, window) if window else pixels


def _pixels(raster: Raster, path: File) -> np.ndarray:
    image = raster.image
    if image.mode in _MODES_16:
        pixels = np.asarray(image).astype(np.uint16)
        return pixels if raster.inverted_from is None else np.subtract(raster.inverted_from, pixels, out=pixels)
    if image.mode not in _MODES or _is_16_bit(image):
        raise ShardError(
            f"{path}: holds {'16-bit colour or signed' if _is_16_bit(image) else image.mode} pixels; "
            "8-bit grey or RGB and 16-bit grey are read, convert it to one of these"
        )
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def read_mask(path: File, mask_roi: MaskRoi | None = None) -> np.ndarray:
    """Return the ROI of a mask file, bool [H,W]; `masks.roi_of` says which pixels belong to it.

    Args:
        path: the file.
        mask_roi: the side of the mask that is the ROI; light unless the user chose.
    """
    with opened(path, _FORMATS) as raster:
        image = raster.image
        if image.mode not in _MASK_MODES:
            raise ShardError(
                f"{path}: a mask of mode {image.mode} is not read; save it as 8-bit PNG, 0 outside the ROI"
            )
        image.load()
        return roi_side(roi_of(image, raster.inverted_from, path), mask_roi)


def _is_16_bit(image: ImageFile.ImageFile) -> bool:
    """Return whether more than 8 bits are stored per sample, also in files that Pillow would cut down to 8."""
    return "16" in image.mode or any(";16" in str(tile[3]) for tile in image.tile)
