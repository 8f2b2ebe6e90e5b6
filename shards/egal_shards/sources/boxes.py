"""Boxes as annotation tools write them: their notations, and the signs that a table uses another one than expected."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from egal_shards.errors import ShardError
from egal_shards.records import Box
from egal_shards.sources.names import plural

BoxFormat = Literal["xyxy", "xywh", "cxcywh", "xyxy-normalised", "xywh-normalised", "cxcywh-normalised"]

_LARGEST = 1e9  # pixels; no coordinate is larger
_SHARE = 1.01  # largest coordinate of a box that is given in shares of its image, with rounding
_AMBIGUOUS = 8  # in fewer images than this, all boxes may fit both xyxy and xywh by chance


@dataclass(frozen=True)
class Notation:
    """How the four numbers of a box are read."""

    format: BoxFormat = "xyxy"
    is_explicit: bool = False  # whether the user chose it, so that no other notation is suspected

    @classmethod
    def of(cls, choice: str | None) -> "Notation":
        """Return the notation that the user chose, xyxy without a choice. Raise ShardError for an unknown one."""
        if choice is None:
            return cls()
        for known in get_args(BoxFormat):
            if choice == known:
                return cls(known, True)
        raise ShardError(f"boxes {choice!r} is none of {', '.join(get_args(BoxFormat))}")

    @property
    def is_normalised(self) -> bool:
        """Whether coordinates are shares of the image's width and height, from 0 to 1."""
        return self.format.endswith("-normalised")

    @property
    def corners(self) -> str:
        """The names of the four numbers."""
        return {"xyxy": "x0,y0,x1,y1", "xywh": "x,y,width,height", "cxcywh": "xcentre,ycentre,width,height"}[
            self.format.partition("-")[0]
        ]

    def read(self, cell: str, where: str) -> tuple[Box, ...]:
        """Return the boxes of a cell as x0, y0, x1, y1, in pixels or in shares of the image.

        Args:
            cell: JSON, a list of lists of four numbers; blank for no box.
            where: Place of the cell, for errors, such as "labels.csv line 2: boxes of a.png".
        """
        try:
            values = json.loads(cell.strip() or "[]")
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, list) or not all(_are_four_numbers(value) for value in values):
            raise ShardError(f"{where} are {cell.strip()[:60]!r}; write JSON [[{self.corners}],…]")
        return tuple(self._box(value, where) for value in values)

    def _box(self, numbers: Sequence[float], where: str) -> Box:
        a, b, c, d = map(float, numbers)
        if not self.is_explicit and max(map(abs, (a, b, c, d))) <= _SHARE and any(v != int(v) for v in (a, b, c, d)):
            raise ShardError(
                f"{where} are {list(numbers)}, which are shares of the image, not pixels; "
                f"set boxes to {_either('xyxy-normalised', 'xywh-normalised (COCO)', 'cxcywh-normalised (YOLO)')}"
            )
        if self.is_normalised and max(map(abs, (a, b, c, d))) > _SHARE:
            raise ShardError(
                f"{where} are {list(numbers)}, and boxes {self.format} lie between 0 and 1; "
                f"for pixels set boxes to {self.format.removesuffix('-normalised')}"
            )
        if self.format.startswith("xywh"):
            box = (a, b, a + c, b + d)
        elif self.format.startswith("cxcywh"):
            box = (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
        else:
            box = (a, b, c, d)
        if box[0] < box[2] and box[1] < box[3]:
            return box
        if self.format.startswith("xyxy"):
            raise ShardError(
                f"{where} are {list(numbers)}, and x0 < x1 and y0 < y1 do not hold; correct them, or, for a width and "
                f"height, set boxes to {_either('xywh (COCO)', 'cxcywh (YOLO)')}, -normalised for shares of the image"
            )
        raise ShardError(f"{where} are {list(numbers)}, and width or height is not above 0; correct them")


def check_plausible(boxes: Sequence[tuple[Path, Sequence[Box]]], notation: Notation, where: str) -> None:
    """Raise ShardError where all boxes of a table look like another notation than xyxy, unless the user chose one.

    Boxes within the first pixel are shares of the image. Boxes that all fit their images as x0,y0,x1,y1 and as
    x,y,width,height as well have their centres in the upper left quarter: chance does not put many of them there.

    Args:
        boxes: Image file and boxes per sample.
        notation: Notation in which the boxes were read.
        where: Path of the table, for the error.
    """
    boxed = [(path, own) for path, own in boxes if own]
    if notation.is_explicit or not boxed:
        return
    if all(max(box) <= 1 for _, own in boxed for box in own) and len(boxed) > 1:
        raise ShardError(
            f"{where}: all boxes lie between 0 and 1, so they are shares of the image; set boxes to "
            f"{_either('xyxy-normalised', 'xywh-normalised (COCO)', 'cxcywh-normalised (YOLO)')}, or to xyxy for pixels"
        )
    if len(boxed) >= _AMBIGUOUS and all(_fit_as_sizes(path, own) for path, own in boxed):
        raise ShardError(
            f"{where}: the boxes of all {plural(len(boxed), 'image')} can be x0,y0,x1,y1 as well as x,y,width,height "
            "(COCO); set boxes to xyxy or xywh to say which"
        )


def _fit_as_sizes(path: Path, boxes: Sequence[Box]) -> bool:
    """Return whether all boxes, read as x, y, width, height, fit the image. False where its size is not known."""
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            with Image.open(file, formats=("PNG", "JPEG", "BMP", "TIFF")) as image:  # reads the header only
                width, height = image.size
    except Exception:  # whatever a damaged or foreign file raises: decoding it names the fault later
        return False
    return all(x + w <= width and y + h <= height for x, y, w, h in boxes)


def _are_four_numbers(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(number) in (int, float) and abs(number) < _LARGEST for number in value)
    )


def _either(*options: str) -> str:
    return f"{', '.join(options[:-1])} or {options[-1]}"
