"""The `imagefolder` source: a Hugging Face image folder with metadata.csv or metadata.jsonl."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from egal_shards.errors import ShardError
from egal_shards.intensity import Window, check_window
from egal_shards.polarity import MaskRoi, check_mask_roi
from egal_shards.records import Box, Source
from egal_shards.sources import tables
from egal_shards.sources.boxes import Notation
from egal_shards.sources.files import MAX_TABLE, Folder, open_regular, relative_path
from egal_shards.sources.flags import DUP, GROUP, MASK_ROI, WINDOW
from egal_shards.sources.listing import Listing
from egal_shards.sources.names import joined, nearest, sorted_classes, valid_text
from egal_shards.sources.remarks import BY_IMAGE, with_notes
from egal_shards.sources.tables import AnyTable, Row, Table, duplicates, grouping

METADATA = ("metadata.csv", "metadata.jsonl")

_SIDES = {"train": "pool", "validation": "pool", "valid": "pool", "val": "pool", "dev": "pool", "test": "test"}
_LONGEST_LINE = 1 << 24  # bytes


def imagefolder(
    path: str | Path,
    *,
    label: Annotated[str, "column of the class"] = "label",
    mask: Annotated[str | None, "column of mask files; none: mask_file_name if there is one, else objects.bbox"] = None,
    group: Annotated[str | None, GROUP] = None,
    dup: Annotated[str | None, DUP] = None,
    split: Annotated[
        Literal["folders"] | None, "folders: train and validation become the pool, test the test set; none: drawn anew"
    ] = None,
    classes: Annotated[Sequence[str] | None, "the classes in order, comma-separated; none: the labels, sorted"] = None,
    window: Annotated[Window | None, WINDOW] = None,
    mask_roi: Annotated[MaskRoi | None, MASK_ROI] = None,
) -> Source:
    """Return the images that the metadata.csv or metadata.jsonl files below a folder list.

    Column `file_name` is relative to the folder of its metadata file. The ROI is a mask file, or the boxes of column
    `objects`, {"bbox": [[x,y,width,height],…]} in pixels. ShardError names the line.

    Args:
        path: The folder.
        label: Column of the class.
        mask: Column of mask files, relative to the folder of the metadata file.
        group: Column of the groups, or block:COLUMN:N. Without it every image is a group of its own.
        dup: Column of near-duplicate groups.
        split: "folders" keeps the split of folders named train, validation and test.
        classes: The classes in order.
        window: The values shown as black and white.
        mask_roi: The side of a mask that is the ROI. Without it: light, and a set of inverted masks is refused.
    """
    check_window(window)
    check_mask_roi(mask_roi)
    root, notation = Path(path), Notation("xywh", True)
    files, listing = Folder(root), Listing(root, "file_name", notation, window, mask_roi)
    for table in _tables(root, label):
        prefix = table.path.parent.relative_to(root)
        readers: dict[str, Callable[[Row], str]] = {"label": lambda row: row.filled(label)}
        if group:
            readers["group"] = grouping(table, group)
        if dup:
            readers["duplicates"] = duplicates(table, dup)
        masks = table.need(mask) if mask else "mask_file_name" if "mask_file_name" in table.columns else None
        for line in table:
            file = _inside(prefix, line, "file_name")
            row = Row(f"{prefix.as_posix()}/{line.where}".removeprefix("./"), line.cells | {"file_name": file})
            facts = {name: read(row) for name, read in readers.items()}
            if classes is not None and facts["label"] not in classes:
                raise ShardError(
                    f"{row.where}: {file} has {label} {facts['label']!r}, which is none of the classes"
                    f"{nearest(facts['label'], classes)}; classes: {joined(classes)}"
                )
            if split:
                facts["split"] = _side(file, row)
            own_masks = [files.find(_inside(prefix, line, masks), row.where)] if masks and row[masks].strip() else []
            own_boxes = () if masks else _boxes(row, notation)
            listing.add(row, file, files.find(file, row.where), facts, own_masks, own_boxes)
    records = listing.records()
    labels = [record.label for record in records]
    made: dict[str, Any] = {
        "source": "imagefolder", "folder": root.resolve().name, "label": label, "mask": mask, "group": group,
        "dup": dup, "split": split, "classes": list(classes) if classes else None,
        "window": list(window) if window else None,
    }  # fmt: skip
    if mask_roi:
        made["mask_roi"] = mask_roi
    notes = [] if group else [BY_IMAGE]
    return Source(
        root.resolve().name, tuple(classes or sorted_classes(labels)), records, with_notes(made, labels, notes)
    )


@dataclass(frozen=True)
class JsonLines:
    """A table with one JSON object per line. Every iteration reads the file anew."""

    path: Path
    columns: tuple[str, ...]  # the keys of all objects, in the order of their first use

    @classmethod
    def open(cls, path: Path, needs: Sequence[str]) -> "JsonLines":
        """Return the table at `path`. Raise ShardError where one of the columns `needs` is missing."""
        table = cls(path, tuple(dict.fromkeys(key for _, entry in _entries(path) for key in entry)))
        for column in needs:
            table.need(column)
        return table

    def need(self, column: str) -> str:
        """Return the column's name. Raise ShardError, which lists the columns, where there is no such column."""
        return tables.need(self, column)

    def __iter__(self) -> Iterator[Row]:
        blank = dict.fromkeys(self.columns, "")
        for where, entry in _entries(self.path):
            yield Row(where, blank | {key: valid_text(_cell(value), where) for key, value in entry.items()})


def _tables(root: Path, label: str) -> list[AnyTable]:
    """Return the metadata tables below a folder."""
    paths = sorted(Path(folder) / name for folder, _, names in os.walk(root) for name in names if name in METADATA)
    if not paths:
        raise ShardError(f"{root}: holds no {' or '.join(METADATA)}; for a labels.csv take the source folder")
    needs = ["file_name", label]
    return [Table.open(path, needs) if path.suffix == ".csv" else JsonLines.open(path, needs) for path in paths]


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place for errors, object) of every line that is not blank."""
    with open_regular(path, MAX_TABLE) as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            where = f"{path.name} line {number}"
            try:
                text = line.decode("utf-8-sig").strip()
                entry = json.loads(text) if text else None
            except (ValueError, RecursionError):
                raise ShardError(f"{where}: is not a JSON object in UTF-8; correct it") from None
            if isinstance(entry, dict):
                yield where, entry
            elif text:
                raise ShardError(f"{where}: is not a JSON object in UTF-8; correct it")


def _cell(value: Any) -> str:
    """Return a JSON value as the text of a cell: "" for null, texts as they are, else JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _inside(prefix: Path, row: Row, column: str) -> str:
    """Return the path in a cell, relative to the source; the cell is relative to the folder of its metadata file."""
    return str(PurePosixPath(prefix.as_posix()) / relative_path(row.filled(column), f"{row.where}: {column}"))


def _side(file: str, row: Row) -> str:
    """Return the side of the split of a file, by the first of its folders that is named like one."""
    for part in PurePosixPath(file).parts[:-1]:
        if part.lower() in _SIDES:
            return _SIDES[part.lower()]
    raise ShardError(
        f"{row.where}: {file} is in no folder named {joined(_SIDES)}; move it into one, or leave split out"
    )


def _boxes(row: Row, notation: Notation) -> tuple[Box, ...]:
    """Return the boxes of column `objects`, () where there is none."""
    cell = row.cells.get("objects", "").strip()
    if not cell:
        return ()
    try:
        objects = json.loads(cell)
    except (ValueError, RecursionError):
        objects = None
    if not isinstance(objects, dict) or not isinstance(objects.get("bbox", []), list):
        raise ShardError(f'{row.where}: objects is {cell[:60]!r}, not {{"bbox": [[x,y,width,height],…]}}; correct it')
    return notation.read(json.dumps(objects.get("bbox", [])), f"{row.where}: objects.bbox")
