"""Intensities: from what a file holds to the window shown, and from there to the dtype that is packed."""

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from egal_shards.errors import ShardError
from egal_shards.geometry import Placement, resize_image

if TYPE_CHECKING:
    from egal_shards.layout import ImageDtype

Window = tuple[float, float]  # the values shown as black and as white

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's "L"


def windowed(values: np.ndarray, window: Window) -> np.ndarray:
    """f32 of the shape of `values`, 0…1: linear from window[0] to window[1], clipped outside. NaN stays NaN."""
    low, high = window
    shown = values.astype(np.float64)
    shown -= low
    shown *= 1 / (high - low)
    return np.clip(shown, 0, 1, out=shown).astype(np.float32)


def check_window(window: Window | None) -> None:
    """ShardError unless it is None or two finite numbers, the lower first."""
    if window is not None and not (len(window) == 2 and all(map(math.isfinite, window)) and window[0] < window[1]):
        raise ShardError(f"window {window} is not LOW,HIGH with LOW below HIGH; give the values of black and white")


def fit_image(image: np.ndarray, at: Placement, channels: int, dtype: "ImageDtype") -> np.ndarray:
    """u8 or u16 [size,size] or, of 3 channels, [size,size,3]: placed, resized and rounded once, to nearest.

    image: u8, u16 or f32 in 0…1, [H,W] or [H,W,3]. u8 → u16 is ×257 and f32 spans the whole range of dtype, so white
    stays white; u16 → u8 has no rule here. Grey is repeated; colours become luma (BT.601).
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
