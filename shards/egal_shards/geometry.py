"""Image and ROI to the packed size, together: every function here shares one placement."""

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
_ROWS = 256  # mask rows integrated at a time, to bound memory


@dataclass(frozen=True)
class Placement:
    """A width × height image lies at [top : top+rows, left : left+columns] of a size × size canvas."""

    width: int
    height: int
    size: int
    left: int
    top: int
    columns: int
    rows: int


def place(width: int, height: int, size: int, resize: Resize) -> Placement:
    """Placement that keeps the aspect, centred ("letterbox"), or fills the canvas ("squash")."""
    if resize == "squash":
        return Placement(width, height, size, 0, 0, size, size)
    scale = size / max(width, height)
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
    return Placement(width, height, size, (size - columns) // 2, (size - rows) // 2, columns, rows)


def resize_image(image: np.ndarray, at: Placement) -> np.ndarray:
    """[size,size] or [size,size,3] of u8 [H,W] or [H,W,3], or of f32 [H,W]: bilinear, antialiased when it shrinks,
    zero around it."""
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
    """bool [size,size]: pixels of which the mask covers at least half.

    Where no pixel of a mask that is not empty reaches half, the best-covered one (the first of them) stays.
    Coverage is an exact integer, so a pixel covered by precisely one half is in.
    """
    across = np.concatenate([_integrate(mask[i : i + _ROWS], at.columns) for i in range(0, at.height, _ROWS)])
    cover = _integrate(across.T, at.rows).T  # [rows,columns], of at most height·width
    inside = 2 * cover >= at.width * at.height
    if not inside.any() and cover.any():
        inside.flat[np.argmax(cover)] = True
    canvas = np.zeros((at.size, at.size), bool)
    canvas[at.top : at.top + at.rows, at.left : at.left + at.columns] = inside
    return canvas


def _integrate(values: np.ndarray, bins: int) -> np.ndarray:
    """int64 [R,bins]: integrals of the rows of values [R,N] over `bins` equal parts of [0,N], times `bins`."""
    count = values.shape[1]
    below = np.zeros((values.shape[0], count + 1), np.int64)
    np.cumsum(values, axis=1, out=below[:, 1:])
    edge, part = np.divmod(np.arange(bins + 1) * count, bins)  # bin edges lie at edge + part/bins
    after = np.minimum(edge + 1, count)
    return np.diff(below[:, edge] * (bins - part) + below[:, after] * part, axis=1)


def fit_boxes(boxes: Sequence[Box], width: int, height: int, where: str) -> tuple[Box, ...]:
    """The boxes, clipped to the image by at most 0.001 pixel. ShardError for one that lies further out or is empty."""
    fitted = []
    for x0, y0, x1, y1 in boxes:
        if not (min(x0, y0) >= -_SLACK and x1 <= width + _SLACK and y1 <= height + _SLACK):
            raise ShardError(
                f"{where}: box {[x0, y0, x1, y1]} leaves its image of {width}×{height} (w×h) pixels; "
                "give x0,y0,x1,y1 in pixels of this very file"
            )
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ShardError(f"{where}: box {[x0, y0, x1, y1]} has no area; give x0 < x1 and y0 < y1, or leave it out")
        fitted.append(box)
    return tuple(fitted)


def draw_boxes(boxes: Sequence[Box], at: Placement) -> np.ndarray:
    """bool [size,size]: pixels whose centre lies in a box (upper edges exclusive); at least one pixel a box."""
    canvas = np.zeros((at.size, at.size), bool)
    for x0, y0, x1, y1 in boxes:
        columns = _centres(x0, x1, at.columns, at.width)
        rows = _centres(y0, y1, at.rows, at.height)
        canvas[at.top + rows.start : at.top + rows.stop, at.left + columns.start : at.left + columns.stop] = True
    return canvas


def _centres(low: float, high: float, pixels: int, extent: int) -> range:
    """Target pixels whose centre is in [low, high) of the source axis; if none, the one under its middle."""
    low, high = low * pixels / extent, high * pixels / extent
    inside = range(math.ceil(low - 0.5), math.ceil(high - 0.5))
    if inside:
        return inside
    middle = min(math.floor((low + high) / 2), pixels - 1)
    return range(middle, middle + 1)
