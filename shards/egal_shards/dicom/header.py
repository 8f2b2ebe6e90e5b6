"""What the elements of a data set say, checked before any pixel is decoded."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from egal_shards.dicom.syntaxes import JPEG, JPEG2000, NATIVE, RLE
from egal_shards.errors import ShardError
from egal_shards.notes import note
from egal_shards.rasters import MAX_PIXELS, check_sides

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
MAX_VALUE = 1 << 22  # bytes of an element that describes the image; lookup tables take the most

_DESCRIBING = (0x0028, 0x2050)  # groups of elements that describe the image


def check_header(dataset: "Dataset", path: Path) -> None:
    """Raise ShardError unless there is one frame of a kind that is read, of a bounded size."""
    for tag in dataset.keys():  # noqa: SIM118, since iterating over a data set decodes its values
        value = dataset.get_item(tag).value if tag.group in _DESCRIBING else None
        if isinstance(value, bytes) and len(value) > MAX_VALUE:
            raise ShardError(f"{path}: its element {tag} has {len(value)} bytes; no image needs so many, replace it")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in (*NATIVE, RLE, *JPEG, *JPEG2000):
        raise ShardError(
            f"{path}: its transfer syntax {syntax.name} is not read; convert it to Explicit VR Little Endian"
        )
    if "PixelData" not in dataset or not dataset.PixelData:
        raise ShardError(f"{path}: has no pixel data; export the image itself, not a report or presentation of it")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ShardError(f"{path}: holds {frames} frames; save the one you want as its own file")
    rows, columns, planes = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
    interpretation = str(dataset.PhotometricInterpretation)
    expected = 3 if interpretation in COLOUR else 1
    if interpretation not in (*GREY, *COLOUR, "PALETTE COLOR") or planes != expected:
        raise ShardError(
            f"{path}: {interpretation} of {planes} {'sample' if planes == 1 else 'samples'} per pixel is not read; "
            "convert it to MONOCHROME2"
        )
    if dataset.BitsAllocated not in (8, 16, 32) or not 1 <= dataset.BitsStored <= dataset.BitsAllocated:
        raise ShardError(
            f"{path}: {dataset.BitsStored} bits stored in {dataset.BitsAllocated} are not read; "
            "convert it to 8 or 16 bits allocated"
        )
    if not 0 < rows * columns * planes <= MAX_PIXELS:
        raise ShardError(
            f"{path}: declares {columns}×{rows} (w×h) pixels; 1 to {MAX_PIXELS // 1_000_000} million are read"
        )
    check_sides(columns, rows, path)


@overload
def number(dataset: "Dataset", name: str) -> float | None: ...
@overload
def number(dataset: "Dataset", name: str, default: float) -> float: ...
def number(dataset: "Dataset", name: str, default: float | None = None) -> float | None:
    """Return the first value of an element of decimal strings; `default` where it is missing or empty.

    A decimal comma is read as a point, as some software writes it. ValueError where the value is no finite number.
    """
    if name not in dataset:
        return default
    value = dataset.get_item(name).value
    if isinstance(value, bytes):
        text = value.decode("latin-1")
    else:
        text = str(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "insert") else value or "")
    text = text.partition("\\")[0].strip(" \0")
    if not text:
        return default
    if "," in text:
        note("DICOM numbers with a decimal comma: the comma is read as a point")
    try:
        result = float(text.replace(",", "."))
    except ValueError:
        raise ValueError(f"{name} is {text[:40]!r}, not a number") from None
    if not math.isfinite(result):
        raise ValueError(f"{name} is {result}")
    return result


def words(dataset: "Dataset", name: str) -> tuple[np.ndarray, str | None]:
    """Return (the 16-bit words of an element of VR US, SS or OW as u16 [N], the VR that the file itself gives).

    Whether they are signed is often ambiguous, and left to the caller. A missing element has no words.
    """
    element = dataset.get_item(name) if name in dataset else None
    if element is None or element.value is None:
        return np.zeros(0, np.uint16), None
    vr = element.VR if element.VR in ("US", "SS") else None
    if isinstance(element.value, bytes):
        order = "<" if getattr(element, "is_little_endian", True) else ">"
        data = element.value[: len(element.value) // 2 * 2]
        return np.frombuffer(data, order + "u2").astype(np.uint16), vr
    return (np.atleast_1d(np.asarray(element.value, np.int64)) & 0xFFFF).astype(np.uint16), vr
