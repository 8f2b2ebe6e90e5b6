"""Images that the rows of a table list: one sample per image, with the masks or boxes of all its rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from egal_shards.errors import ShardError
from egal_shards.images import read_image, read_mask, without_suffix
from egal_shards.intensity import Window
from egal_shards.polarity import MaskRoi
from egal_shards.records import Box, Raw, Record
from egal_shards.sources.boxes import Notation, check_plausible
from egal_shards.sources.image_tree import scaled
from egal_shards.sources.names import distinct_keys
from egal_shards.sources.tables import Row


@dataclass(frozen=True, slots=True)
class Annotated:
    """An image file with the masks, or the boxes, whose union is its ROI."""

    image: Path
    masks: tuple[Path, ...]
    boxes: tuple[Box, ...]
    notation: Notation
    window: Window | None
    mask_roi: MaskRoi | None

    def __call__(self) -> Raw:
        image = read_image(self.image, self.window)
        height, width = image.shape[:2]
        boxes = self.boxes
        if self.notation.is_normalised:
            boxes = scaled(boxes, (1.0, 1.0), width, height)
        elif self.notation.format != "xyxy":
            boxes = scaled(boxes, (float(width), float(height)), width, height)  # clips what the sums were rounded by
        return Raw(image, union(self.masks, self.mask_roi), boxes)


def union(paths: Sequence[Path], mask_roi: MaskRoi | None) -> np.ndarray | None:
    """Return the pixels, bool [H,W], that any of the mask files marks; None without files.

    Args:
        paths: The mask files of one image.
        mask_roi: The side of each mask that is the ROI.
    """
    mask: np.ndarray | None = None
    for path in paths:
        part = read_mask(path, mask_roi)
        if mask is not None and part.shape != mask.shape:
            raise ShardError(
                f"{path}: is {part.shape[1]}×{part.shape[0]} (w×h), and {paths[0]} of the same image is "
                f"{mask.shape[1]}×{mask.shape[0]}; the masks of an image must have its size"
            )
        mask = part if mask is None else mask | part
    return mask


@dataclass
class _Image:
    """What the rows of one image say."""

    row: Row  # the first of them
    file: str
    facts: dict[str, str]
    masks: list[Path] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)


class Listing:
    """The images of a table, in the order in which it names them first.

    Args:
        table: Path of the table, for errors.
        column: Column that names the image, which is its group where no column gives one.
        notation: Notation of the boxes.
        window: The values shown as black and white.
        mask_roi: The side of a mask that is the ROI.
    """

    def __init__(
        self, table: Path, column: str, notation: Notation, window: Window | None, mask_roi: MaskRoi | None
    ) -> None:
        self._table, self._column, self._notation = table, column, notation
        self._window, self._mask_roi = window, mask_roi
        self._images: dict[Path, _Image] = {}

    def add(
        self, row: Row, file: str, path: Path, facts: dict[str, str], masks: Sequence[Path], boxes: Sequence[Box]
    ) -> None:
        """Add a row. Rows of one image are merged. Raise ShardError where they contradict each other.

        Args:
            row: The row.
            file: Path of the image, as the table names it.
            path: The image on the disk.
            facts: What all rows of an image must agree on: "label", and where a column gives it "group", "duplicates"
                and "split".
            masks: Mask files of the row.
            boxes: Boxes of the row.
        """
        image = self._images.setdefault(path, _Image(row, file, facts))
        for name, value in facts.items():
            if value != image.facts[name]:
                raise ShardError(
                    f"{row.where}: {file} has {name} {value!r}, but {image.facts[name]!r} in {image.row.where}; "
                    "an image has one, so correct one of the lines"
                )
        image.masks += masks
        image.boxes += boxes

    def records(self) -> list[Record]:
        """Return one record per image. Raise ShardError where there is none, or where the boxes are not plausible."""
        if not self._images:
            raise ShardError(f"{self._table}: lists no files; add one line per image, or per box or mask of an image")
        check_plausible([(path, image.boxes) for path, image in self._images.items()], self._notation, str(self._table))
        files = [image.file for image in self._images.values()]
        keys = distinct_keys([without_suffix(file) for file in files], files)
        settings = self._notation, self._window, self._mask_roi
        return [
            Record(
                key=key,
                label=image.facts["label"],
                group=image.facts.get("group", image.row[self._column]),
                file=image.file,
                load=Annotated(path, tuple(dict.fromkeys(image.masks)), tuple(image.boxes), *settings),
                duplicates=image.facts.get("duplicates", ""),
                split=image.facts.get("split", ""),
            )
            for key, (path, image) in zip(keys, self._images.items(), strict=True)
        ]
