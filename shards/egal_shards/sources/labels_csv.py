"""The `folder` source: images with a labels.csv."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from egal_shards.errors import ShardError
from egal_shards.images import read_image, read_mask
from egal_shards.intensity import Window, check_window
from egal_shards.records import Box, Raw, Record, Source
from egal_shards.sources.flags import DUP, GROUP, WINDOW
from egal_shards.sources.tables import Row, Table, duplicates, file_key, grouping, nearest

_SPLITS = {"pool": "pool", "train": "pool", "test": "test"}


@dataclass(frozen=True, slots=True)
class _File:
    image: Path
    mask: Path | None
    boxes: tuple[Box, ...]
    window: Window | None

    def __call__(self) -> Raw:
        return Raw(read_image(self.image, self.window), read_mask(self.mask) if self.mask else None, self.boxes)


def folder(
    path: str | Path,
    group: Annotated[str | None, GROUP] = None,
    dup: Annotated[str | None, DUP] = None,
    split: Annotated[str | None, "column that fixes the split: pool or train, test"] = None,
    classes: Annotated[Sequence[str] | None, "the classes in order, comma-separated; none: the labels, sorted"] = None,
    window: Annotated[Window | None, WINDOW] = None,
) -> Source:
    """The images that `path`/labels.csv lists, each with a label and the ROI of its mask or boxes.

    labels.csv has the columns `file`, `label` and either `mask_file` or `boxes` (JSON [[x0,y0,x1,y1],…] in pixels of
    the file); an empty cell there is an image without ROI. Without `group` every file is its own. All of labels.csv is
    checked, and every file's presence, before anything is decoded. ShardError names the line.
    """
    check_window(window)
    root = Path(path)
    table = Table.open(root / "labels.csv", ["file", "label"])
    locate_roi = _roi_column(table, root)
    group_of = grouping(table, group) if group else lambda row: row["file"]
    duplicates_of, split_of = duplicates(table, dup), _splitting(table, split)
    keys: dict[str, tuple[str, str]] = {}  # file and line of each key
    records = []
    for row in table:
        file = _relative(row, "file")
        mask, boxes = locate_roi(row)
        records.append(
            Record(
                key=_new_key(file, keys, row),
                label=_label(row, classes),
                group=group_of(row),
                file=file,
                load=_File(_present(root, file, row), mask, boxes, window),
                duplicates=duplicates_of(row),
                split=split_of(row),
            )
        )
    if not records:
        raise ShardError(f"{table.path}: lists no files; add one line an image")
    names = tuple(classes or sorted({record.label for record in records}))
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
    return Source(root.resolve().name, names, records, made)


def _roi_column(table: Table, root: Path) -> Callable[[Row], tuple[Path | None, tuple[Box, ...]]]:
    """Where a row's ROI comes from: (mask file, boxes)."""
    given = [column for column in ("mask_file", "boxes") if column in table.columns]
    if len(given) != 1:
        raise ShardError(
            f"{table.path}: needs exactly one of the columns mask_file and boxes, "
            f"has {' and '.join(given) or 'neither'}; its columns: {', '.join(table.columns)}"
        )
    if given == ["boxes"]:
        return lambda row: (None, _boxes(row))
    return lambda row: (_present(root, _relative(row, "mask_file"), row) if row["mask_file"] else None, ())


def _splitting(table: Table, column: str | None) -> Callable[[Row], str]:
    if column is None:
        return lambda _: ""
    table.need(column)

    def split_of(row: Row) -> str:
        value = row.filled(column)
        if value not in _SPLITS:
            raise ShardError(f"{row.where}: {column} is {value!r}, not pool, train or test; mend it")
        return _SPLITS[value]

    return split_of


def _label(row: Row, classes: Sequence[str] | None) -> str:
    label = row.filled("label")
    if classes is not None and label not in classes:
        raise ShardError(
            f"{row.where}: {row['file']} has label {label!r}, which is none of the classes{nearest(label, classes)}; "
            f"classes: {', '.join(classes)}"
        )
    return label


def _relative(row: Row, column: str) -> str:
    """The path in a cell, normalised; it must stay inside the folder."""
    cell = row.filled(column)
    path = PurePosixPath(cell)
    if path.is_absolute() or ".." in path.parts or "\0" in cell or not path.name:
        raise ShardError(
            f"{row.where}: {column} {cell!r} is not a path inside the folder; give it relative, without .."
        )
    return str(path)


def _present(root: Path, file: str, row: Row) -> Path:
    path = root / file
    if not path.is_file():
        hint = " (separate folders by /)" if "\\" in file else ""
        raise ShardError(f"{row.where}: there is no file {file} in {root}{hint}; add it or remove the line")
    return path


def _new_key(file: str, taken: dict[str, tuple[str, str]], row: Row) -> str:
    """The key of the path without suffix."""
    key = file_key(str(PurePosixPath(file).with_suffix("")))
    other, line = taken.setdefault(key, (file, row.where))
    if line != row.where and other == file:
        raise ShardError(f"{row.where}: {file} is listed twice, first in {line}; remove one of them")
    if other != file:
        raise ShardError(f"{row.where}: {file} has the same key {key!r} as {other}; rename one of the files")
    return key


def _boxes(row: Row) -> tuple[Box, ...]:
    cell = row["boxes"].strip()
    try:
        boxes = json.loads(cell or "[]")
    except (ValueError, RecursionError):
        boxes = None
    if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
        raise ShardError(
            f"{row.where}: boxes of {row['file']} are {cell[:60]!r}; "
            "write JSON [[x0,y0,x1,y1],…] with x0 < x1 and y0 < y1"
        )
    return tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes)


def _is_box(box: object) -> bool:
    """Whether it is four finite numbers that span an area."""
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) and abs(v) < 1e9 for v in box):
        return False
    return box[0] < box[2] and box[1] < box[3]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
