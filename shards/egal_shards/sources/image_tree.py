"""Images named by id anywhere below a folder, and boxes drawn on their originals."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from egal_shards.errors import ShardError
from egal_shards.images import SUFFIXES, is_dicom, read_image, without_suffix
from egal_shards.intensity import Window
from egal_shards.records import Box, Raw
from egal_shards.sources.names import normalised
from egal_shards.sources.tables import Row, Table, duplicates, grouping


@dataclass(frozen=True)
class ImageTree:
    """The image files below a folder, by id: the file's name without the suffix of an image.

    Files without such a suffix, as scanners name DICOM files, are kept under their whole name.
    """

    root: Path
    files: dict[str, list[Path]]

    @classmethod
    def scan(cls, root: Path) -> "ImageTree":
        """Return the files below `root`. Nothing is opened."""
        files: dict[str, list[Path]] = {}
        for folder, _, names in os.walk(root):
            for name in names:
                files.setdefault(normalised(without_suffix(name)), []).append(Path(folder) / name)
        return cls(root, files)

    def find(self, name: str, row: Row) -> Path:
        """Return the file of an image that a row names. Raise ShardError unless there is exactly one."""
        files = sorted(self.files.get(normalised(name), []))
        suffixed = [file for file in files if file.name.lower().endswith(SUFFIXES)]
        files = suffixed or files
        if not files:
            raise ShardError(
                f"{row.where}: there is no {name}.dcm, .dicom, .png, .jpg or .tif below {self.root}; "
                "add the file, or correct its name in the table"
            )
        if len(files) > 1:
            raise ShardError(
                f"{files[1]}: there is {files[0]} for the same image; keep one here and move the other somewhere else"
            )
        if not files[0].is_file():
            raise ShardError(f"{files[0]}: is not a regular file but a pipe or device; put the image itself there")
        return files[0]


@dataclass(frozen=True)
class Originals:
    """What a table says of each image, by id: the size of its original, its group and its near-duplicates."""

    size: dict[str, tuple[float, float]]  # width, height in pixels
    group: dict[str, str]
    duplicates: dict[str, str]

    @classmethod
    def read(cls, root: Path, meta: str | Path | None, group: str | None, dup: str | None) -> "Originals":
        """Return what a table says of the originals; without a table nothing is known of them.

        Args:
            root: The folder of the data set.
            meta: Path of the table, relative to `root` or absolute, with image_id and the columns that are named; or
                None.
            group: Column of the groups, or block:COLUMN:N.
            dup: Column of the near-duplicate groups.
        """
        known = cls({}, {}, {})
        if meta is None:
            if group or dup:
                raise ShardError("group and dup name columns of meta; give meta too")
            return known
        table = Table.open(root / meta, ["image_id"])
        has_sizes = bool({"orig_width", "orig_height"} & set(table.columns))
        if has_sizes:
            table.need("orig_width"), table.need("orig_height")
        group_of, duplicates_of = grouping(table, group) if group else None, duplicates(table, dup)
        lines: dict[str, str] = {}
        for row in table:
            name = row.filled("image_id")
            if name in lines:
                raise ShardError(
                    f"{row.where}: image {name} is listed twice, first in {lines[name]}; correct the id of one of them"
                )
            lines[name] = row.where
            known.duplicates[name] = duplicates_of(row)
            if has_sizes:
                known.size[name] = _positive(row, "orig_width"), _positive(row, "orig_height")
            if group_of:
                known.group[name] = group_of(row)
        return known

    def size_of(self, name: str, file: Path, has_boxes: bool, row: Row) -> tuple[float, float] | None:
        """Return the (width, height) of an image's original, in pixels.

        None stands for an image whose file is the original, and for an image without boxes, which needs no size.
        """
        if self.duplicates and name not in self.duplicates:
            raise ShardError(f"{row.where}: image {name} is not in meta; add it there")
        if not has_boxes or is_dicom(file):
            return None
        if name not in self.size:
            raise ShardError(
                f"{row.where}: the boxes of image {name} are in pixels of its original DICOM file; "
                "give meta, a CSV with image_id, orig_width and orig_height, to scale them"
            )
        return self.size[name]


@dataclass(frozen=True, slots=True)
class BoxedImage:
    """An image file and the boxes of its ROI, in pixels of the original."""

    path: Path
    boxes: tuple[Box, ...]
    original: tuple[float, float] | None  # width, height; None: the file is the original
    window: Window | None

    def __call__(self) -> Raw:
        image = read_image(self.path, self.window)
        return Raw(image, None, scaled(self.boxes, self.original, image.shape[1], image.shape[0]))


def scaled(boxes: tuple[Box, ...], original: tuple[float, float] | None, width: int, height: int) -> tuple[Box, ...]:
    """Return boxes in pixels of a file, given boxes in pixels of its original.

    A coordinate that is outside the original by at most 0.1 % of its side is clipped: one official box of SIIM is.

    Args:
        boxes: Boxes on the original.
        original: (width, height) of the original; None where the file is the original.
        width: Width of the file in pixels.
        height: Height of the file in pixels.
    """
    across, down = original or (width, height)
    return tuple(
        (_scaled(x0, across, width), _scaled(y0, down, height), _scaled(x1, across, width), _scaled(y1, down, height))
        for x0, y0, x1, y1 in boxes
    )


def _scaled(value: float, original: float, now: float) -> float:
    """Return a coordinate on a side of `original` pixels as one on a side of `now` pixels."""
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
        raise ShardError(f"{row.where}: {column} is {cell!r}, not a number of pixels; correct it")
    return value
