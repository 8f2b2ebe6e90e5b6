"""Stored values: what the decoder returns, aligned, and which of them are padding."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from egal_shards.dicom.header import words
from egal_shards.dicom.streams import precision
from egal_shards.dicom.syntaxes import NATIVE, RLE

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True)
class Stored:
    """The stored values of a grey image."""

    values: np.ndarray  # integers [H,W]
    padding: np.ndarray | None  # bool [H,W]: what is no measurement; None where the file names no padding
    low: int  # the smallest and the largest value that can be stored
    high: int


def decoded(dataset: "Dataset") -> np.ndarray:
    """Return the pixels as pydicom decodes them."""
    from pydicom.pixels.utils import pixel_array

    # One decoder for all compressed files, so that a file gives the same image wherever Pillow or GDCM are, too.
    plugin = "" if dataset.file_meta.TransferSyntaxUID in NATIVE else "pylibjpeg"
    return pixel_array(dataset, decoding_plugin=plugin)


def stored_values(dataset: "Dataset") -> Stored:
    """Return the stored values of a grey image, from the bits below HighBit, with their sign."""
    bits, stored, signed = int(dataset.BitsAllocated), int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
    top = int(dataset.get("HighBit", stored - 1)) + 1
    if not stored <= top <= bits:  # an impossible HighBit, which viewers do not look at
        top = stored
    limits = _padding_limits(dataset, signed)
    if dataset.file_meta.TransferSyntaxUID in (*NATIVE, RLE):
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
        raw = decoded(dataset)
        raw = raw.astype(raw.dtype.newbyteorder("="), copy=False)
        outside = _between(raw.view(f"i{bits // 8}") if signed else raw, limits) if limits else None
        values = _aligned(raw, bits, stored, top, signed)
    else:
        if top > stored and precision(dataset) == top:
            dataset.BitsStored = top
            values = decoded(dataset) >> (top - stored)
        else:
            values = decoded(dataset)
        outside = None
    if limits and low <= limits[0] and limits[1] <= high:
        outside = _between(values, limits)
    return Stored(values, outside, low, high)


def _aligned(raw: np.ndarray, bits: int, stored: int, top: int, signed: bool) -> np.ndarray:
    """Return the `stored` bits below bit `top` of unsigned words of `bits` bits, with their sign.

    Words that use bits below these and none above BitsStored contradict a HighBit above BitsStored - 1; their values
    end at BitsStored - 1.
    """
    if stored == bits:
        return raw.view(f"i{bits // 8}") if signed else raw
    if top > stored:
        used = int(np.bitwise_or.reduce(raw, axis=None))
        if used < 1 << stored and used & ((1 << top - stored) - 1):
            top = stored
    values = np.left_shift(raw, bits - top)
    values = values.view(f"i{bits // 8}") if signed else values
    return np.right_shift(values, bits - stored, out=values)


def _padding_limits(dataset: "Dataset", signed: bool) -> tuple[int, int] | None:
    """Return the lowest and highest value of pixel padding (PS3.3 C.7.5.1.1.2); None where the file has none."""
    value, _ = words(dataset, "PixelPaddingValue")
    if not value.size:
        return None
    limit, _ = words(dataset, "PixelPaddingRangeLimit")
    ends = np.array([value[0], limit[0] if limit.size else value[0]], np.uint16)
    low, high = sorted((ends.view(np.int16) if signed else ends).tolist())
    return low, high


def _between(values: np.ndarray, limits: tuple[int, int]) -> np.ndarray:
    return (values >= limits[0]) & (values <= limits[1])
