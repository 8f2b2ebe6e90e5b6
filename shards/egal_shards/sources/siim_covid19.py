"""The `siim` source: SIIM-FISABIO-RSNA COVID-19 (2021), with its two official tables."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from egal_shards.errors import ShardError
from egal_shards.images import read_image
from egal_shards.records import Box, Raw, Record, Source
from egal_shards.sources.tables import Row, Table, duplicates, grouping

_CLASSES = {  # class: column of the study table
    "negative": "Negative for Pneumonia",
    "typical": "Typical Appearance",
    "indeterminate": "Indeterminate Appearance",
    "atypical": "Atypical Appearance",
}
_BY_STUDY = (
    "groups are studies: a patient with several studies may span pool and test; "
    "give meta with a patient column, and group, to split by patient"
)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    boxes: tuple[Box, ...]  # original DICOM pixels
    width: float  # of the original, likewise; 0 where it is not known, and then there are no boxes
    height: float

    def __call__(self) -> Raw:
        image = read_image(self.path)
        return Raw(image, None, self.scaled(image.shape[1], image.shape[0]))

    def scaled(self, width: int, height: int) -> tuple[Box, ...]:
        """The boxes in pixels of a file of this size."""
        if not self.boxes:
            return ()
        return tuple(
            (
                _scaled(x0, self.width, width),
                _scaled(y0, self.height, height),
                _scaled(x1, self.width, width),
                _scaled(y1, self.height, height),
            )
            for x0, y0, x1, y1 in self.boxes
        )


def siim(path: str | Path, meta: str | Path | None = None, group: str | None = None, dup: str | None = None) -> Source:
    """The images that the official tables in `path` list: classes negative, typical, indeterminate, atypical; boxes
    around opacities.

    `path` holds one *train_image_level.csv, one *train_study_level.csv and, anywhere below, the images as PNG or JPEG
    named by image id. Boxes are in pixels of the original DICOM files; `meta`, a CSV (relative to `path`, or absolute)
    with image_id, orig_width and orig_height, scales them to the files. `group` (a column of meta, or block:COLUMN:N;
    default: the study) and `dup` (a column of meta) are as in `folder`. ShardError names the line.
    """
    root = Path(path)
    images = Table.open(_table_file(root, "train_image_level.csv"), ["id", "label", "StudyInstanceUID"])
    studies = _studies(Table.open(_table_file(root, "train_study_level.csv"), ["id", *_CLASSES.values()]))
    if meta is None and (group or dup):
        raise ShardError("siim: group and dup name columns of meta; give meta too")
    known = _Meta.read(root / meta, group, dup) if meta else _Meta({}, {}, {})
    files = _files(root)
    records = []
    for row in images:
        name = row.filled("id").removesuffix("_image")
        study = row.filled("StudyInstanceUID")
        if study not in studies:
            raise ShardError(f"{row.where}: study {study} is not in the study table; add it there")
        file = _file(files, name, row, root)
        records.append(
            Record(
                key=name,
                label=studies[study],
                group=known.group.get(name, study),
                file=file.relative_to(root).as_posix(),
                load=_File(file, _boxes(row), *known.size_of(name, row)),
                duplicates=known.duplicates.get(name, ""),
            )
        )
    made = {
        "source": "siim",
        "meta": Path(meta).name if meta else None,
        "group": group or "StudyInstanceUID",
        "dup": dup,
    }
    if not group:
        made["note"] = _BY_STUDY
    return Source("siim", tuple(_CLASSES), records, made)


@dataclass(frozen=True)
class _Meta:
    """By image id."""

    size: dict[str, tuple[float, float]]
    group: dict[str, str]
    duplicates: dict[str, str]

    @classmethod
    def read(cls, path: Path, group: str | None, dup: str | None) -> "_Meta":
        table = Table.open(path, ["image_id", "orig_width", "orig_height"])
        group_of, duplicates_of = grouping(table, group) if group else None, duplicates(table, dup)
        meta = cls({}, {}, {})
        for row in table:
            name = row.filled("image_id")
            if name in meta.size:
                raise ShardError(f"{row.where}: image {name} is listed twice; remove one line")
            meta.size[name] = _positive(row, "orig_width"), _positive(row, "orig_height")
            meta.duplicates[name] = duplicates_of(row)
            if group_of:
                meta.group[name] = group_of(row)
        return meta

    def size_of(self, name: str, row: Row) -> tuple[float, float]:
        """Original (width, height) of an image."""
        if self.size and name not in self.size:
            raise ShardError(f"{row.where}: image {name} is not in meta; add it there")
        if not self.size and _boxes(row):
            raise ShardError(
                f"{row.where}: the boxes of image {name} are in pixels of its original DICOM file; "
                "give meta, a CSV with image_id, orig_width and orig_height, to scale them"
            )
        return self.size.get(name, (0.0, 0.0))


def _table_file(root: Path, ending: str) -> Path:
    try:
        found = sorted(entry for entry in root.iterdir() if entry.name.endswith(ending))
    except OSError as error:
        raise ShardError(f"{root}: {error.strerror}; give the folder of the dataset") from None
    if len(found) != 1:
        raise ShardError(f"{root}: holds {len(found)} files named *{ending}, and needs exactly one")
    return found[0]


def _studies(table: Table) -> dict[str, str]:
    """Class of each study."""
    classes = {}
    for row in table:
        marks = [name for name, column in _CLASSES.items() if row[column].strip() == "1"]
        if len(marks) != 1:
            raise ShardError(f"{row.where}: study {row['id']} has {len(marks)} classes marked 1, and needs exactly one")
        classes[row.filled("id").removesuffix("_study")] = marks[0]
    return classes


def _files(root: Path) -> dict[str, Path]:
    """PNG and JPEG files below root by stem, and DICOM files where there is no such image."""
    found: dict[str, Path] = {}
    for folder, below, names in os.walk(root):
        below.sort()
        for file in sorted(Path(folder) / name for name in names):
            kind = file.suffix.lower()
            other = found.get(file.stem)
            if kind in (".png", ".jpg", ".jpeg"):
                if other and other.suffix.lower() != ".dcm":
                    raise ShardError(f"{file}: there is {other} for the same image; keep one")
                found[file.stem] = file
            elif kind == ".dcm" and not other:
                found[file.stem] = file
    return found


def _file(files: dict[str, Path], name: str, row: Row, root: Path) -> Path:
    if name not in files:
        raise ShardError(f"{row.where}: there is no {name}.png or {name}.jpg below {root}; add it or remove the line")
    if files[name].suffix.lower() == ".dcm":
        raise ShardError(f"{files[name]}: DICOM files are not read by this version; convert them to 8-bit PNG first")
    return files[name]


def _boxes(row: Row) -> tuple[Box, ...]:
    """Boxes of the `label` column: repeated "opacity CONFIDENCE x0 y0 x1 y1", or "none 1 0 0 1 1"."""
    words = row.filled("label").split()
    boxes = []
    for i in range(0, len(words), 6):
        kind, *numbers = words[i : i + 6]
        try:
            _, x0, y0, x1, y1 = map(float, numbers)
        except ValueError:
            x0 = y0 = x1 = y1 = math.nan
        if kind not in ("opacity", "none") or not (x0 < x1 < math.inf and y0 < y1 < math.inf):
            raise ShardError(
                f"{row.where}: label {row['label'][:60]!r} is not repeated 'opacity 1 x0 y0 x1 y1'; mend it"
            )
        if kind == "opacity":
            boxes.append((x0, y0, x1, y1))
    return tuple(boxes)


def _scaled(value: float, original: float, now: float) -> float:
    """A coordinate in the file's pixels, clipped if it is outside by up to 0.1 % of the side (one official box is)."""
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
