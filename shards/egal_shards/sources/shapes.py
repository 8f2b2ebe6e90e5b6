"""Shapes that annotation tools draw (polygons, boxes, circles, run lengths), and how they become masks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from egal_shards.errors import ShardError
from egal_shards.records import Box

_SLACK = 1.0  # pixels by which a point may leave its image, as annotation tools let it; it is clipped
_LONGEST_OUTLINE = 1e6  # pixels along the outline of a polygon; drawing takes memory in proportion
_LARGEST = 1e9  # no coordinate is larger


@dataclass(frozen=True, slots=True)
class Polygon:
    """An area within a closed outline."""

    points: tuple[tuple[float, float], ...]  # (x, y) in pixels

    @property
    def area(self) -> float:
        """Pixels, by the shoelace formula."""
        x, y = np.array(self.points).T
        return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)

    def draw(self, width: int, height: int, where: str) -> np.ndarray:
        """Return bool [height,width], true inside the outline; at least one pixel."""
        try:
            from pycocotools import mask as coco  # type: ignore[import-untyped, unused-ignore]
        except ImportError:
            raise ShardError(f"{where}: polygons need an extra: pip install 'egal-bench[coco]'") from None
        points = _inside(np.array(self.points), width, height, where)
        outline = np.abs(points - np.roll(points, -1, axis=0)).max(axis=1).sum()
        if outline > _LONGEST_OUTLINE:
            raise ShardError(f"{where}: a polygon has an outline of {outline:.0f} pixels; simplify it")
        [encoded] = coco.frPyObjects([points.ravel().tolist()], height, width)
        mask = runs(encoded | {"counts": encoded["counts"].decode()}, where).draw(width, height, where)
        if not mask.any():  # thinner than a pixel
            x, y = points.mean(axis=0)
            mask[min(int(y), height - 1), min(int(x), width - 1)] = True
        return mask


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A box."""

    box: Box

    @property
    def area(self) -> float:
        """Pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    def clipped(self, width: int, height: int, where: str) -> Box:
        """Return the box within an image of this size."""
        (x0, y0), (x1, y1) = _inside(np.array(self.box).reshape(2, 2), width, height, where).tolist()
        return x0, y0, x1, y1

    def draw(self, width: int, height: int, where: str) -> np.ndarray:
        """Return bool [height,width], true where the centre of a pixel is inside."""
        x0, y0, x1, y1 = self.clipped(width, height, where)
        mask = np.zeros((height, width), bool)
        mask[math.ceil(y0 - 0.5) : math.ceil(y1 - 0.5), math.ceil(x0 - 0.5) : math.ceil(x1 - 0.5)] = True
        if not mask.any():
            mask[min(int(y0), height - 1), min(int(x0), width - 1)] = True
        return mask


@dataclass(frozen=True, slots=True)
class Circle:
    """A disc."""

    x: float
    y: float
    radius: float

    @property
    def area(self) -> float:
        """Pixels."""
        return math.pi * self.radius**2

    def draw(self, width: int, height: int, where: str) -> np.ndarray:
        """Return bool [height,width], true where the centre of a pixel is inside; a disc may leave its image."""
        across = (np.arange(width) + 0.5 - self.x) ** 2
        down = (np.arange(height) + 0.5 - self.y) ** 2
        mask = across[None] + down[:, None] <= self.radius**2
        if not mask.any():
            x, y = _inside(np.array([[self.x, self.y]]), width, height, where)[0]
            mask[min(int(y), height - 1), min(int(x), width - 1)] = True
        return mask


@dataclass(frozen=True, slots=True)
class Runs:
    """A mask as lengths of runs along columns, alternately outside and inside: the run-length encoding of COCO."""

    counts: tuple[int, ...]
    size: tuple[int, int]  # width, height

    @property
    def area(self) -> float:
        """Pixels."""
        return float(sum(self.counts[1::2]))

    def draw(self, width: int, height: int, where: str) -> np.ndarray:
        """Return bool [height,width]."""
        if self.size != (width, height):
            raise ShardError(
                f"{where}: its run-length mask is {self.size[0]}×{self.size[1]} (w×h) and the image {width}×{height}; "
                "they must be of one size"
            )
        inside = np.arange(len(self.counts)) % 2 == 1
        return np.ascontiguousarray(np.repeat(inside, self.counts).reshape(width, height).T)


Shape = Polygon | Rectangle | Circle | Runs


def union(shapes: Iterable[Shape], width: int, height: int, where: str) -> np.ndarray:
    """Return bool [height,width], true in any of the shapes."""
    mask = np.zeros((height, width), bool)
    for shape in shapes:
        mask |= shape.draw(width, height, where)
    return mask


def polygon(numbers: Any, where: str) -> Polygon:
    """Return the polygon of a list [x0,y0,x1,y1,…] from a JSON file. Raise ShardError for anything else."""
    if not are_numbers(numbers) or len(numbers) < 6 or len(numbers) % 2:
        raise ShardError(
            f"{where}: a polygon is {str(numbers)[:60]}; it must be three points or more, [x0,y0,x1,y1,x2,y2,…]"
        )
    return Polygon(tuple(zip(map(float, numbers[::2]), map(float, numbers[1::2]), strict=True)))


def runs(encoding: dict[str, Any], where: str) -> Runs:
    """Return the run-length encoded mask {"size": [height,width], "counts": …} of a JSON file.

    `counts` is a list of run lengths, or their compressed text. The runs must fill the image exactly.
    """
    size, counts = encoding.get("size"), encoding.get("counts")
    is_size = isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n < 1 << 20 for n in size)
    if not is_size:
        raise ShardError(f"{where}: a run-length mask has the size {str(size)[:60]}; it must be [height,width]")
    assert isinstance(size, list)
    height, width = size
    lengths = _decompressed(counts) if isinstance(counts, str) else counts
    if (
        not isinstance(lengths, list)
        or not all(type(length) is int and length >= 0 for length in lengths)
        or sum(lengths) != height * width
    ):
        raise ShardError(f"{where}: the runs of a mask do not fill its {width}×{height} (w×h) pixels; export it again")
    return Runs(tuple(lengths), (width, height))


def are_numbers(values: Any) -> bool:
    """Return whether a value from a JSON file is a list of finite numbers of a reasonable size."""
    return isinstance(values, list) and all(type(v) in (int, float) and abs(v) < _LARGEST for v in values)


def _decompressed(text: str) -> list[int] | None:
    """Return the run lengths that COCO's compressed text holds, None where it is not such a text.

    Each character carries 5 bits of a number, the lowest first, and a bit that says whether the number goes on; numbers
    are signed, and from the fourth on are differences to the number two before.
    """
    lengths: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value, shift = 0, 0
    return lengths if shift == 0 else None


def _inside(points: np.ndarray, width: int, height: int, where: str) -> np.ndarray:
    """Return points [N,2], clipped to the image. Raise ShardError for one that is outside by more than a pixel."""
    extent = np.array([width, height], float)
    outside = ((points < -_SLACK) | (points > extent + _SLACK)).any(axis=1)
    if outside.any():
        x, y = points[outside][0].tolist()
        raise ShardError(
            f"{where}: the point ({x:g}, {y:g}) leaves its image of {width}×{height} (w×h) pixels; "
            "give coordinates in pixels of this very file"
        )
    return points.clip(0, extent)
