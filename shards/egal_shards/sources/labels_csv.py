"""The `folder` source: images with a labels.csv."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from egal_shards.errors import ShardError
from egal_shards.intensity import Window, check_window
from egal_shards.records import Box, Source
from egal_shards.sources.boxes import BoxFormat, Notation
from egal_shards.sources.files import MAX_TABLE, Folder, read_bytes, relative_path
from egal_shards.sources.flags import DUP, GROUP, WINDOW
from egal_shards.sources.listing import Listing
from egal_shards.sources.names import joined, nearest, sorted_classes
from egal_shards.sources.remarks import with_notes
from egal_shards.sources.tables import Row, Table, duplicates, grouping

_SIDES = {"pool": "pool", "train": "pool", "test": "test"}
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
) -> Source:
    """Return the images that `path`/labels.csv lists, each with a label and the ROI of its masks or boxes.

    labels.csv has the columns `file`, `label` and either `mask_file` or `boxes` (JSON [[x0,y0,x1,y1],…] in pixels of
    the file); an empty cell there is no ROI. An image may have several rows, one per box or mask: its ROI is their
    union. All of labels.csv, and the presence of every file, is checked before any image is decoded. ShardError names
    the line.

    Args:
        path: The folder.
        group: Column of the groups, or block:COLUMN:N. Without it every image is a group of its own.
        dup: Column of near-duplicate groups.
        split: Column of the side of the split: pool or train, test.
        classes: The classes in order. Without them: the labels, in the order of numbers where all are numbers.
        window: The values shown as black and white.
        boxes: Notation of the boxes.
    """
    check_window(window)
    root = Path(path)
    table = Table.open(root / "labels.csv", ["file", "label"])
    notation, files = Notation.of(boxes), Folder(root)
    read_roi = _roi_column(table, files, notation)
    readers: dict[str, Callable[[Row], str]] = {"label": lambda row: _label(row, classes)}
    if group:
        readers["group"] = grouping(table, group)
    if dup:
        readers["duplicates"] = duplicates(table, dup)
    if split:
        readers["split"] = _side(table, split)
    listing = Listing(table.path, "file", notation, window)
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
    labels = [record.label for record in records]
    return Source(root.resolve().name, tuple(classes or sorted_classes(labels)), records, with_notes(made, labels))


def _roi_column(
    table: Table, files: Folder, notation: Notation
) -> Callable[[Row], tuple[Sequence[Path], Sequence[Box]]]:
    """Return the function that gives the ROI of a row: (mask files, boxes)."""
    columns = [column for column in ("mask_file", "boxes") if column in table.columns]
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
