"""Images named by id anywhere below a folder, and boxes drawn on their originals."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from egal_shards.errors import ShardError
from egal_shards.images import DICOM, read_image
from egal_shards.intensity import Window
from egal_shards.records import Box, Raw
from egal_shards.sources.tables import Row, Table, duplicates, grouping

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", *DICOM)


@dataclass(frozen=True)
class ImageTree:
    """The image files below a folder, by id: the file's name without its suffix."""

    root: Path
    files: dict[str, list[Path]]

    @classmethod
    def scan(cls, root: Path) -> "ImageTree":
        files: dict[str, list[Path]] = {}
        for folder, _, names in os.walk(root):
            for file in (Path(folder) / name for name in names):
                if file.suffix.lower() in _SUFFIXES:
                    files.setdefault(file.stem, []).append(file)
        return cls(root, files)

    def find(self, name: str, row: Row) -> Path:
        """The file of an image that a line of a table names. ShardError unless there is exactly one."""
        found = sorted(self.files.get(name, []))
        if not found:
            raise ShardError(
                f"{row.where}: there is no {name}.dcm, .dicom, .png, .jpg or .tif below {self.root}; "
                "add it or remove the line"
            )
        if len(found) > 1:
            raise ShardError(f"{found[1]}: there is {found[0]} for the same image; keep one")
        return found[0]


@dataclass(frozen=True)
class Originals:
    """What a table says of each image: the pixels of its original, its group and its near-duplicates. By image id."""

    size: dict[str, tuple[float, float]]  # width, height
    group: dict[str, str]
    duplicates: dict[str, str]

    @classmethod
    def read(cls, root: Path, meta: str | Path | None, group: str | None, dup: str | None) -> "Originals":
        """Of the CSV `meta` (relative to root, or absolute) with image_id and what is asked for; all empty without."""
        known = cls({}, {}, {})
        if meta is None:
            if group or dup:
                raise ShardError("group and dup name columns of meta; give meta too")
            return known
        table = Table.open(root / meta, ["image_id"])
        sizes = {"orig_width", "orig_height"} & set(table.columns)
        if sizes:
            table.need("orig_width"), table.need("orig_height")
        group_of, duplicates_of = grouping(table, group) if group else None, duplicates(table, dup)
        for row in table:
            name = row.filled("image_id")
            if name in known.duplicates:
                raise ShardError(f"{row.where}: image {name} is listed twice; remove one line")
            known.duplicates[name] = duplicates_of(row)
            if sizes:
                known.size[name] = _positive(row, "orig_width"), _positive(row, "orig_height")
            if group_of:
                known.group[name] = group_of(row)
        return known

    def size_of(self, name: str, file: Path, has_boxes: bool, row: Row) -> tuple[float, float] | None:
        """Original (width, height) of an image; None where its file is the original, or where nothing needs it."""
        if self.duplicates and name not in self.duplicates:
            raise ShardError(f"{row.where}: image {name} is not in meta; add it there")
        if file.suffix.lower() in DICOM or not has_boxes:
            return None
        if name not in self.size:
            raise ShardError(
                f"{row.where}: the boxes of image {name} are in pixels of its original DICOM file; "
                "give meta, a CSV with image_id, orig_width and orig_height, to scale them"
            )
        return self.size[name]


@dataclass(frozen=True, slots=True)
class BoxedImage:
    """A file and the boxes of its ROI, in pixels of the original."""

    path: Path
    boxes: tuple[Box, ...]
    original: tuple[float, float] | None  # width, height; None: the file itself
    window: Window | None

    def __call__(self) -> Raw:
        image = read_image(self.path, self.window)
        return Raw(image, None, scaled(self.boxes, self.original, image.shape[1], image.shape[0]))


def scaled(boxes: tuple[Box, ...], original: tuple[float, float] | None, width: int, height: int) -> tuple[Box, ...]:
    """Boxes in pixels of an original of this (width, height), in those of a file; None: the file is the original.

    A coordinate that is outside by up to 0.1 % of the side is clipped: one official box of SIIM is.
    """
    across, down = original or (width, height)
    return tuple(
        (_scaled(x0, across, width), _scaled(y0, down, height), _scaled(x1, across, width), _scaled(y1, down, height))
        for x0, y0, x1, y1 in boxes
    )


def _scaled(value: float, original: float, now: float) -> float:
    slack = original / 1000
    inside = min(max(value, 0.0), original) if -slack <= value <= original + slack else value
    return inside * now / original


def _positive(row: Row, column: str) -> float:
    cell = row.filled(column)
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ShardError(f"{row.where}: {column} is {cell!r}, not a number of pixels; mend it")
    return value
