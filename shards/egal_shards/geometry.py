"""Image and ROI at the packed size. Every function here shares one placement, so that both stay aligned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from egal_shards.errors import ShardError
from egal_shards.records import Box
from egal_shards.resampling import resample

Resize = Literal["letterbox", "squash"]

_SLACK = 1e-3  # pixels by which a box may leave its image: rounding in the annotation, clipped
_ROWS = 256  # rows of a mask that are integrated at a time, to bound memory


@dataclass(frozen=True)
class Placement:
    """Where a width × height image lies: at [top : top+rows, left : left+columns] of a size × size canvas."""

    width: int
    height: int
    size: int
    left: int
    top: int
    columns: int
    rows: int


def place(width: int, height: int, size: int, resize: Resize) -> Placement:
    """Return the placement that keeps the aspect, centred ("letterbox"), or fills the canvas ("squash")."""
    if resize == "squash":
        return Placement(width, height, size, 0, 0, size, size)
    scale = size / max(width, height)
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
    return Placement(width, height, size, (size - columns) // 2, (size - rows) // 2, columns, rows)


def resize_image(image: np.ndarray, at: Placement) -> np.ndarray:
    """Return the image, u8 [H,W] or [H,W,3] or f32 [H,W], on a canvas of zeros, [size,size] or [size,size,3].

    The resizing is bilinear, antialiased where it shrinks.
    """
    if image.dtype == np.uint8:
        small = resample(image, at.rows, at.columns)
    else:
        small = np.asarray(Image.fromarray(image).resize((at.columns, at.rows), Image.Resampling.BILINEAR))
    if small.shape[:2] == (at.size, at.size):
        return small
    canvas = np.zeros((at.size, at.size, *small.shape[2:]), small.dtype)
    canvas[at.top : at.top + at.rows, at.left : at.left + at.columns] = small
    return canvas


def resize_mask(mask: np.ndarray, at: Placement) -> np.ndarray:
    """Return bool [size,size]: pixels of which the mask, bool [H,W], covers at least half.

    Where no pixel reaches half and the mask is not empty, the first of the best-covered pixels stays. Coverage is an
    exact integer, so that a pixel covered by precisely one half is inside.
    """
    across = _integrate(mask, at.columns)
    cover = _integrate(across.T, at.rows).T  # [rows,columns], each at most height·width
    inside = 2 * cover >= at.width * at.height
    if not inside.any() and cover.any():
        inside.flat[np.argmax(cover)] = True
    canvas = np.zeros((at.size, at.size), bool)
    canvas[at.top : at.top + at.rows, at.left : at.left + at.columns] = inside
    return canvas


def _integrate(values: np.ndarray, bins: int) -> np.ndarray:
    """Return integrals of the rows of values [R,N] over `bins` equal parts of [0,N], times `bins`, i64 [R,bins]."""
    return np.concatenate([_integrate_rows(values[row : row + _ROWS], bins) for row in range(0, len(values), _ROWS)])


def _integrate_rows(values: np.ndarray, bins: int) -> np.ndarray:
    count = values.shape[1]
    below = np.zeros((values.shape[0], count + 1), np.int64)
    np.cumsum(values, axis=1, out=below[:, 1:])
    edge, part = np.divmod(np.arange(bins + 1) * count, bins)  # bin edges lie at edge + part/bins
    after = np.minimum(edge + 1, count)
    return np.diff(below[:, edge] * (bins - part) + below[:, after] * part, axis=1)


def fit_boxes(boxes: Sequence[Box], width: int, height: int, where: str) -> tuple[Box, ...]:
    """Return the boxes, clipped to the image by at most 0.001 pixel.

    ShardError names a box that lies further out or has no area.
    """
    fitted = []
    for x0, y0, x1, y1 in boxes:
        if not (min(x0, y0) >= -_SLACK and x1 <= width + _SLACK and y1 <= height + _SLACK):
            raise ShardError(
                f"{where}: box {[x0, y0, x1, y1]} leaves its image of {width}×{height} (w×h) pixels; "
                "give x0,y0,x1,y1 in pixels of this very file"
            )
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ShardError(f"{where}: box {[x0, y0, x1, y1]} has no area; give x0 < x1 and y0 < y1")
        fitted.append(box)
    return tuple(fitted)


def draw_boxes(boxes: Sequence[Box], at: Placement) -> np.ndarray:
    """Return bool [size,size]: pixels whose centre lies in a box, upper edges exclusive; at least one pixel per box."""
    canvas = np.zeros((at.size, at.size), bool)
    for x0, y0, x1, y1 in boxes:
        columns = _centres(x0, x1, at.columns, at.width)
        rows = _centres(y0, y1, at.rows, at.height)
        canvas[at.top + rows.start : at.top + rows.stop, at.left + columns.start : at.left + columns.stop] = True
    return canvas


def _centres(low: float, high: float, pixels: int, extent: int) -> range:
    """Return the target pixels whose centre is in [low, high) of the source axis; if none, the one under its middle."""
    low, high = low * pixels / extent, high * pixels / extent
    inside = range(math.ceil(low - 0.5), math.ceil(high - 0.5))
    if inside:
        return inside
    middle = min(math.floor((low + high) / 2), pixels - 1)
    return range(middle, middle + 1)
