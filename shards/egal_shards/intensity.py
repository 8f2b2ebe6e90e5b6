"""Intensities: from the values of a file to the window shown, and from there to the dtype that is packed."""

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from egal_shards.errors import ShardError
from egal_shards.geometry import Placement, resize_image

if TYPE_CHECKING:
    from egal_shards.layout import ImageDtype

Window = tuple[float, float]  # the values shown as black and as white

_BLOCK = 1 << 20  # values that are computed at a time in 64 bits
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's "L"


def windowed(values: np.ndarray, window: Window) -> np.ndarray:
    """Return f32 of the shape of `values`, 0…1: linear from window[0] to window[1], clipped outside. NaN stays NaN."""
    low, high = window
    flat, result = values.reshape(-1), np.empty(values.shape, np.float32)
    for start in range(0, flat.size, _BLOCK):
        shown = flat[start : start + _BLOCK].astype(np.float64)
        shown -= low
        shown *= 1 / (high - low)
        result.reshape(-1)[start : start + _BLOCK] = np.clip(shown, 0, 1, out=shown)
    return result


def check_window(window: Window | None) -> None:
    """Raise ShardError unless the window is None or two finite numbers, the lower first."""
    if window is not None and not (len(window) == 2 and all(map(math.isfinite, window)) and window[0] < window[1]):
        raise ShardError(f"window {window} is not LOW,HIGH with LOW below HIGH; give the values of black and white")


def fit_image(image: np.ndarray, at: Placement, channels: int, dtype: "ImageDtype") -> np.ndarray:
    """Return the image placed and resized, as u8 or u16 [size,size], or [size,size,3] where channels is 3.

    Values are rounded once, to the nearest. u8 becomes u16 by ×257, and f32 spans the whole range of `dtype`, so that
    white stays white. Grey is repeated in three channels; colours become luma (BT.601) in one.

    Args:
        image: u8, u16 or f32 in 0…1, [H,W] or [H,W,3]; u16 cannot become u8 here.
        at: where the image lies on the canvas.
        channels: 1 or 3.
        dtype: "uint8" or "uint16".
    """
    if image.dtype == np.uint8 and dtype == "uint8":
        if channels == 1 and image.ndim == 3:
            image = np.asarray(Image.fromarray(image).convert("L"))
        fitted = resize_image(image, at)
        return fitted if channels == 1 or fitted.ndim == 3 else np.repeat(fitted[..., None], 3, axis=2)
    top = np.iinfo(dtype).max
    scale = {"uint8": 257, "uint16": 1, "float32": top}[image.dtype.name]
    planes = np.atleast_3d(image).transpose(2, 0, 1)
    small = np.stack([resize_image(plane.astype(np.float32), at) for plane in planes], axis=-1)
    if channels == 1 and len(planes) == 3:
        small = small @ _LUMA
    fitted = np.rint(np.clip(small * scale, 0, top)).astype(dtype)
    return fitted.reshape(at.size, at.size) if channels == 1 else np.broadcast_to(fitted, (at.size, at.size, 3))
