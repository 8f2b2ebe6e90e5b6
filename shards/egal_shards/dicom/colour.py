"""Images in colour."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from egal_shards.dicom.decoding import decoded
from egal_shards.errors import ShardError
from egal_shards.intensity import Window, windowed

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def shown_colour(dataset: "Dataset", window: Window | None, path: Path) -> np.ndarray:
    """Return u8 [H,W,3], or f32 [H,W,3] in 0…1 of an image of more than 8 bits. ShardError where a window is given."""
    from pydicom.pixels.processing import apply_color_lut

    if window:
        raise ShardError(f"{path}: is in colour, and a window is for grey values; leave the window or the file out")
    bits = int(dataset.BitsStored)
    if bits < dataset.BitsAllocated and int(dataset.get("HighBit", bits - 1)) >= bits:
        raise ShardError(
            f"{path}: the {bits} bits stored of its colours end at bit {dataset.HighBit}; convert it to 8 bits"
        )
    if str(dataset.PhotometricInterpretation).startswith("YBR_FULL") and dataset.BitsAllocated != 8:
        raise ShardError(f"{path}: YBR_FULL of {dataset.BitsAllocated} bits allocated is not read; convert it to RGB")
    values = decoded(dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)[..., :3]
        bits = 8 * values.dtype.itemsize
    return values if bits == 8 and values.dtype == np.uint8 else windowed(values, (0, 2**bits - 1))
