"""Which pixels of a mask file are its ROI. Masks come from many tools, and few say what their values mean."""

import numpy as np
from PIL import Image

from egal_shards.errors import ShardError
from egal_shards.notes import note
from egal_shards.rasters import File

_LEVELS = 5  # a mask with at least this many grey levels may have been compressed with loss or smoothed
_NEAR = 16  # JPEG changes flat black or white areas by fewer grey levels than this
_FLAT = 0.4  # intermediate levels are labels if this share of their pixels equals the right and lower neighbour
_MIDDLE = 0.25  # a file of many levels is a picture if more than this share of its pixels is of middle grey


def roi_of(image: Image.Image, inverted_from: int | None, path: File) -> np.ndarray:
    """Return the ROI of a loaded mask, bool [H,W].

    - Grey and colour: pixels above 0 in any channel. Where levels between black and white come from JPEG or from
      smoothing, pixels above half of the highest level, and a note says so.
    - Values 254 and 255 alone are an inverted 0 and 1 (`~mask` in NumPy): pixels of 255.
    - Transparency decides where all pixels that are visible at all have one colour.
    - A palette of greys with black or white counts by colour, any other by index: index 0 is outside.

    Args:
        image: an image of mode 1, L, LA, P, RGB, RGBA, I or I;16.
        inverted_from: the largest stored value of a 16-bit file where 0 is white.
        path: for errors.
    """
    values, alpha = _values_and_alpha(image)
    if inverted_from is not None:
        values = inverted_from - values
    if alpha is not None and _alpha_decides(values, alpha):
        values = alpha
    if values.ndim == 3:
        values = values.max(axis=2)
    return _inside(values, image.format == "JPEG", path)


def _values_and_alpha(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Return values [H,W] or [H,W,3] and, where the image has transparency, alpha u8 [H,W]."""
    if image.mode == "P":
        if "transparency" not in image.info:
            return _palette_values(image), None
        rgba = np.asarray(image.convert("RGBA"))
        if _alpha_decides(rgba[..., :3], rgba[..., 3]):
            return rgba[..., :3], rgba[..., 3]
        return _palette_values(image), None
    pixels = np.asarray(image)
    if image.mode in ("LA", "RGBA"):
        return (pixels[..., 0] if image.mode == "LA" else pixels[..., :3]), pixels[..., -1]
    return pixels, None


def _alpha_decides(values: np.ndarray, alpha: np.ndarray) -> bool:
    """Return whether alpha varies and all visible pixels have one colour."""
    visible = values[alpha > 0]
    return bool((alpha != alpha[0, 0]).any() and (visible == visible[:1]).all())


def _palette_values(image: Image.Image) -> np.ndarray:
    """Return the grey levels of a palette image of greys that include black or white; of others the indices."""
    indices = np.asarray(image)
    colours = np.reshape(image.getpalette("RGB") or [], (-1, 3))
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=1))
    if used[-1] >= len(colours):
        return indices
    shown = colours[used]
    greys = shown[:, 0]
    is_grey = (shown == greys[:, None]).all() and len(set(greys.tolist())) == len(used)
    if not is_grey or not {0, 255} & set(greys.tolist()):
        return indices
    return colours[:, 0].astype(np.uint8)[indices]


def _inside(values: np.ndarray, is_lossy: bool, path: File) -> np.ndarray:
    """Return which values are the ROI, bool [H,W].

    Args:
        values: [H,W].
        is_lossy: whether the file format is known to change values.
        path: for errors.
    """
    if values.dtype != np.uint8:
        return values > 0
    counts = np.bincount(values.ravel(), minlength=256)
    levels = np.flatnonzero(counts)
    top, is_continuous = int(levels[-1]), _is_continuous(values, counts)
    if levels.tolist() == [254, 255]:
        note("masks of 254 and 255 only, an inverted 0 and 1: 255 is read as ROI")
        return values == 255
    if is_continuous and counts[top // 4 : top - top // 4].sum() > _MIDDLE * values.size:
        raise ShardError(
            f"{path}: holds {len(levels)} grey levels from {levels[0]} to {top}, like a picture, and is no mask; "
            "give the mask of this image, 0 outside the ROI"
        )
    if not (is_continuous or is_lossy or _is_nearly_black_and_white(levels)):
        return values > 0
    upper = values > top / 2
    if not np.array_equal(upper, values > 0):
        note("masks with grey levels between black and white (from JPEG or smoothing): the upper half is read as ROI")
    return upper


def _is_nearly_black_and_white(levels: np.ndarray) -> bool:
    """Return whether all levels are close to black or white as JPEG leaves flat areas, not labels and a void of 255."""
    near_black, near_white = levels < _NEAR, levels > 255 - _NEAR
    is_changed = levels[0] > 0 or np.count_nonzero(near_white) > 1
    return bool(near_black[0] and (near_black | near_white).all() and is_changed)


def _is_continuous(values: np.ndarray, counts: np.ndarray) -> bool:
    """Return whether intermediate levels change from pixel to pixel; those of labels and instances are flat areas.

    The most common level below the upper quarter is left out: it is the background, which JPEG may move from 0 to 1.
    """
    levels = np.flatnonzero(counts)
    top = int(levels[-1])
    if len(levels) < _LEVELS or top < 64:
        return False
    upper_quarter = top - top // 4
    background = int(np.argmax(counts[:upper_quarter]))
    pixel, right, below = values[:-1, :-1], values[:-1, 1:], values[1:, :-1]
    between = (pixel > 0) & (pixel < upper_quarter) & (pixel != background)
    flat = between & (pixel == right) & (pixel == below)
    return bool(np.count_nonzero(flat) < _FLAT * np.count_nonzero(between))
