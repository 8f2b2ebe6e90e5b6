"""The `folder` source: images with a labels.csv."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from egal_shards.errors import ShardError
from egal_shards.intensity import Window, check_window
from egal_shards.polarity import MaskRoi, check_mask_roi
from egal_shards.records import Box, Source
from egal_shards.sources.boxes import BoxFormat, Notation
from egal_shards.sources.files import MAX_TABLE, Folder, read_bytes, relative_path
from egal_shards.sources.flags import DUP, GROUP, MASK_ROI, WINDOW
from egal_shards.sources.listing import Listing
from egal_shards.sources.names import joined, nearest, sorted_classes
from egal_shards.sources.remarks import BY_IMAGE, with_notes
from egal_shards.sources.tables import Row, Table, duplicates, grouping

_SIDES = {"pool": "pool", "train": "pool", "test": "test"}
UNLABELLED = (
    "labels.csv has no column label, so the set is packed without labels: `egal-bench score` ranks it, and `compare` "
    "refuses it"
)
BOXES = (
    "numbers of a box: xyxy (corners), xywh (COCO) or cxcywh (YOLO), in pixels, or with -normalised in shares of the "
    "image. none: xyxy, unless the boxes look otherwise"
)


def folder(
    path: str | Path,
    group: Annotated[str | None, GROUP] = None,
    dup: Annotated[str | None, DUP] = None,
    split: Annotated[str | None, "column that fixes the split: pool or train, test"] = None,
    classes: Annotated[Sequence[str] | None, "the classes in order, comma-separated; none: the labels, sorted"] = None,
    window: Annotated[Window | None, WINDOW] = None,
    boxes: Annotated[BoxFormat | None, BOXES] = None,
    mask_roi: Annotated[MaskRoi | None, MASK_ROI] = None,
) -> Source:
    """Return the images that `path`/labels.csv lists, each with a label and the ROI of its masks or boxes.

    labels.csv has the columns `file`, `label` and either `mask_file` or `boxes` (JSON [[x0,y0,x1,y1],…] in pixels of
    the file); an empty cell there is no ROI. An image may have several rows, one per box or mask: its ROI is their
    union. Without the column `label` the set has no labels: it can be scored, not compared, and it needs neither
    `mask_file` nor `boxes`. All of labels.csv, and the presence of every file, is checked before any image is decoded.
    ShardError names the line.

    Args:
        path: The folder.
        group: Column of the groups, or block:COLUMN:N. Without it every image is a group of its own.
        dup: Column of near-duplicate groups.
        split: Column of the side of the split: pool or train, test.
        classes: The classes in order. Without them: the labels, in the order of numbers where all are numbers.
        window: The values shown as black and white.
        boxes: Notation of the boxes.
        mask_roi: The side of a mask that is the ROI. Without it: light, and a set of inverted masks is refused.
    """
    check_window(window)
    check_mask_roi(mask_roi)
    root = Path(path)
    table = _opened(root / "labels.csv", classes)
    labelled = "label" in table.columns
    notation, files = Notation.of(boxes), Folder(root)
    read_roi = _roi_column(table, files, notation, optional=not labelled)
    readers: dict[str, Callable[[Row], str]] = {"label": lambda row: _label(row, classes) if labelled else ""}
    if group:
        readers["group"] = grouping(table, group)
    if dup:
        readers["duplicates"] = duplicates(table, dup)
    if split:
        readers["split"] = _side(table, split)
    listing = Listing(table.path, "file", notation, window, mask_roi)
    for row in table:
        file = _relative(row, "file")
        masks, own_boxes = read_roi(row)
        facts = {name: read(row) for name, read in readers.items()}
        listing.add(row, file, files.find(file, row.where), facts, masks, own_boxes)
    records = listing.records()
    made = {
        "source": "folder",
        "folder": root.resolve().name,
        "labels_sha256": _digest(table.path),
        "group": group,
        "dup": dup,
        "split": split,
        "classes": list(classes) if classes else None,
        "window": list(window) if window else None,
    }
    if boxes:
        made["boxes"] = boxes
    if mask_roi:
        made["mask_roi"] = mask_roi
    if not labelled:
        return Source(root.resolve().name, (), records, made | {"note": UNLABELLED})
    labels = [record.label for record in records]
    notes = [] if group else [BY_IMAGE]
    return Source(
        root.resolve().name, tuple(classes or sorted_classes(labels)), records, with_notes(made, labels, notes)
    )


def _opened(path: Path, classes: Sequence[str] | None) -> Table:
    """Return the table, which may lack the column `label` unless a column has nearly that name, or classes are given.

    Raises ShardError for a name that is nearly `label`, since a typing error would otherwise drop all labels.
    """
    table = Table.open(path, ["file"])
    if classes is not None or nearest("label", table.columns):
        table.need("label")
    return table


def _roi_column(
    table: Table, files: Folder, notation: Notation, *, optional: bool
) -> Callable[[Row], tuple[Sequence[Path], Sequence[Box]]]:
    """Return the function that gives the ROI of a row: (mask files, boxes).

    Args:
        table: The table of the rows.
        files: The folder of the mask files.
        notation: Notation of the boxes.
        optional: Whether the table may have no column of ROIs.
    """
    columns = [column for column in ("mask_file", "boxes") if column in table.columns]
    if optional and not columns:
        return lambda row: ((), ())
    if len(columns) != 1:
        raise ShardError(
            f"{table.path}: needs exactly one of the columns mask_file and boxes, "
            f"has {' and '.join(columns) or 'neither'}; its columns: {joined(table.columns, 30)}"
        )
    if columns == ["boxes"]:
        return lambda row: ((), notation.read(row["boxes"], f"{row.where}: boxes of {row['file']}"))

    def masks(row: Row) -> tuple[Sequence[Path], Sequence[Box]]:
        if not row["mask_file"].strip():
            return (), ()
        return [files.find(_relative(row, "mask_file"), row.where)], ()

    return masks


def _side(table: Table, column: str) -> Callable[[Row], str]:
    """Return the function that gives the side of the split of a row."""
    table.need(column)

    def read(row: Row) -> str:
        value = row.filled(column)
        if value not in _SIDES:
            raise ShardError(f"{row.where}: {column} is {value!r}, not pool, train or test; correct it")
        return _SIDES[value]

    return read


def _label(row: Row, classes: Sequence[str] | None) -> str:
    label = row.filled("label")
    if classes is not None and label not in classes:
        raise ShardError(
            f"{row.where}: {row['file']} has label {label!r}, which is none of the classes{nearest(label, classes)}; "
            f"classes: {joined(classes)}"
        )
    return label


def _relative(row: Row, column: str) -> str:
    return relative_path(row.filled(column), f"{row.where}: {column}")


def _digest(path: Path) -> str:
    return hashlib.sha256(read_bytes(path, MAX_TABLE)).hexdigest()
