"""The `vindr` source: VinDr-CXR chest X-rays, as released on Kaggle (2020) and on PhysioNet (1.0.0)."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np

from egal_shards.errors import ShardError
from egal_shards.geometry import fit_boxes
from egal_shards.images import read_image
from egal_shards.intensity import Window, check_window
from egal_shards.records import Box, Raw, Record, Source
from egal_shards.sources.flags import DUP, GROUP, META, WINDOW
from egal_shards.sources.image_tree import BoxedImage, ImageTree, Originals, scaled
from egal_shards.sources.names import nearest, plural
from egal_shards.sources.tables import Row, Table

NO_FINDING = "No finding"  # class 14 on Kaggle
TABLES = ("train.csv", "annotations_train.csv", "annotations/annotations_train.csv")

Label = Literal["majority", "first", "drop-multi"]
Roi = Literal["union", "majority", "intersection"]

_BY_IMAGE = (
    "groups are images, since the data name no patients: a patient with several images may span pool and test; "
    "if you have a table of patients, give it as meta, and its column as group"
)


@dataclass
class Reading:
    """The findings of all readers of one image, and their boxes."""

    row: Row  # the image's first row
    findings: dict[str, dict[str, list[Box]]] = field(default_factory=dict)  # boxes by reader and class
    order: list[str] = field(default_factory=list)  # classes in the order in which the table first names them

    def add(self, reader: str, name: str, box: Box | None) -> None:
        """Add a finding of one reader, with its box if it has one."""
        boxes = self.findings.setdefault(reader, {}).setdefault(name, [])
        if box:
            boxes.append(box)
        if name not in self.order:
            self.order.append(name)

    @property
    def votes(self) -> Counter[str]:
        """The number of readers who marked each class."""
        return Counter(name for classes in self.findings.values() for name in classes)

    def boxes_of(self, name: str) -> dict[str, tuple[Box, ...]]:
        """Return the boxes of one class, by reader; readers who drew none are left out."""
        return {reader: tuple(classes[name]) for reader, classes in self.findings.items() if classes.get(name)}


def vindr(
    path: str | Path,
    *,
    classes: Annotated[
        Sequence[str] | None,
        f"the classes to pack, in order, comma-separated, {NO_FINDING!r} is one; none: all that label an image",
    ] = None,
    label: Annotated[
        Label,
        "majority: the class that most readers marked, if more than half of the image's readers did; first: the class "
        "of the image's first row; drop-multi: the only class that any reader marked. Other images are left out",
    ] = "majority",
    roi: Annotated[
        Roi,
        "pixels in the boxes of any, more than half, or all of the readers who boxed the label's class",
    ] = "union",
    meta: Annotated[str | Path | None, META] = None,
    group: Annotated[str | None, f"of meta: {GROUP}"] = None,
    dup: Annotated[str | None, f"of meta: {DUP}"] = None,
    window: Annotated[Window | None, WINDOW] = None,
) -> Source:
    """Return the training images of `path`, one class each, with the boxes that readers drew around that class.

    `path` holds train.csv (Kaggle), or annotations_train.csv (PhysioNet), perhaps in annotations/. Beside the latter,
    image_labels_train.csv adds diagnoses without boxes. The images are anywhere below, named by image id: the DICOM
    files, or PNG, JPEG or TIFF files made from them, to which `meta` scales the boxes.

    An image has several findings by several readers. Rows of classes that are not packed count only in that their
    readers are readers of the image. A vote is a reader, not a box. Of classes with equal votes, the one that `classes`
    lists first is taken; the default order is that of class ids, or of first appearance, with "No finding" last. An
    image has no ROI if nobody boxed its class or the readers agree on no pixel. The json of a sample has the number of
    readers, the votes per class and each reader's boxes of the label. ShardError names the row.
    """
    check_window(window)
    for name, value, options in (("label", label, get_args(Label)), ("roi", roi, get_args(Roi))):
        if value not in options:
            raise ShardError(f"vindr: {name} {value!r} is none of {', '.join(options)}")
    root = Path(path)
    readings, known_classes = _read(root)
    names = _chosen(classes, known_classes)
    known, tree = Originals.read(root, meta, group, dup), ImageTree.scan(root)
    records, left_out = [], 0
    for image, reading in readings.items():
        label_of = _LABELS[label](reading, names)
        if label_of is None:
            left_out += 1
            continue
        file, boxes = tree.find(image, reading.row), reading.boxes_of(label_of)
        original = known.size_of(image, file, bool(boxes), reading.row)
        records.append(
            Record(
                key=image,
                label=label_of,
                group=known.group.get(image, image),
                file=file.relative_to(root).as_posix(),
                load=_loader(file, boxes, original, window, roi),
                duplicates=known.duplicates.get(image, ""),
                about={
                    "readers": len(reading.findings),
                    "votes": dict(reading.votes),
                    "reader_boxes": {reader: [list(box) for box in own] for reader, own in boxes.items()},
                },
            )
        )
    if not records:
        raise ShardError(
            f"{root}: label {label!r} leaves out all {plural(left_out, 'image')}; choose other classes, or another rule"
        )
    if classes is None:
        labels = {record.label for record in records}
        names = tuple(name for name in names if name in labels)
    settings = {
        "source": "vindr",
        "classes": list(names),
        "label": label,
        "roi": roi,
        "meta": Path(meta).name if meta else None,
        "group": group or "image_id",
        "dup": dup,
        "window": list(window) if window else None,
        "left_out": left_out,
        "note": f"{plural(left_out, 'image')} left out by label {label!r}" + ("" if group else f"; {_BY_IMAGE}"),
    }
    return Source("vindr", names, records, settings)


def _read(root: Path) -> tuple[dict[str, Reading], list[str]]:
    """Return (the readings of each image, all classes in their order)."""
    paths = [root / name for name in TABLES if (root / name).is_file()]
    if len(paths) != 1:
        raise ShardError(f"{root}: holds {len(paths)} of {', '.join(TABLES)}, and needs exactly one")
    table = Table.open(paths[0], ["image_id", "class_name", "rad_id", "x_min", "y_min", "x_max", "y_max"])
    readings: dict[str, Reading] = {}
    order: dict[str, tuple[bool, int]] = {}  # the rank of each class
    for row in table:
        name = row.filled("class_name")
        number = row.integer("class_id") if "class_id" in table.columns else len(order)
        order.setdefault(name, (name == NO_FINDING, number))
        reading = readings.setdefault(row.filled("image_id"), Reading(row))
        reading.add(row.filled("rad_id"), name, _box(row, name))
    diagnoses = paths[0].with_name("image_labels_train.csv")
    if diagnoses.is_file():
        _add_diagnoses(Table.open(diagnoses, ["image_id", "rad_id"]), readings, order)
    return readings, sorted(order, key=lambda name: order[name])


def _add_diagnoses(table: Table, readings: dict[str, Reading], order: dict[str, tuple[bool, int]]) -> None:
    """Add the classes that each reader marked 1, with or without boxes."""
    columns = [name for name in table.columns if name not in ("image_id", "rad_id")]
    for name in columns:
        order.setdefault(name, (name == NO_FINDING, len(order)))
    for row in table:
        reading = readings.setdefault(row.filled("image_id"), Reading(row))
        for name in columns:
            mark = row.filled(name)
            if mark not in ("0", "1", "0.0", "1.0"):
                raise ShardError(f"{row.where}: {name} is {mark!r}, not 0 or 1; correct it")
            if mark.startswith("1"):
                reading.add(row.filled("rad_id"), name, None)


def _box(row: Row, name: str) -> Box | None:
    """Return x0, y0, x1, y1 in pixels of the original; None for "No finding", whose cells are ignored."""
    if name == NO_FINDING:
        return None
    try:
        x0, y0, x1, y1 = (float(row[column]) for column in ("x_min", "y_min", "x_max", "y_max"))
    except ValueError:
        x0 = y0 = x1 = y1 = math.nan
    if not (-math.inf < x0 < x1 < math.inf and -math.inf < y0 < y1 < math.inf):
        raise ShardError(f"{row.where}: the box of {name} is not numbers x_min < x_max and y_min < y_max; correct it")
    return x0, y0, x1, y1


def _chosen(classes: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Return the classes to pack. ShardError names one that no row has."""
    for name in classes or ():
        if name not in known:
            raise ShardError(f"vindr: there is no class {name!r}{nearest(name, known)}; classes: {', '.join(known)}")
    return tuple(classes or known)


def _majority(reading: Reading, names: Sequence[str]) -> str | None:
    votes = reading.votes
    best = max(names, key=lambda name: votes[name])  # max returns the first class of equal votes
    return best if 2 * votes[best] > len(reading.findings) else None


def _first(reading: Reading, names: Sequence[str]) -> str | None:
    return next((name for name in reading.order if name in names), None)


def _only(reading: Reading, names: Sequence[str]) -> str | None:
    marked = [name for name in reading.order if name in names]
    return marked[0] if len(marked) == 1 else None


_LABELS: dict[Label, Callable[[Reading, Sequence[str]], str | None]] = {
    "majority": _majority,
    "first": _first,
    "drop-multi": _only,
}


@dataclass(frozen=True, slots=True)
class _Agreed:
    """A file whose ROI are the pixels with their centre in boxes of at least `least` readers."""

    path: Path
    boxes: tuple[tuple[Box, ...], ...]  # the boxes of each reader
    original: tuple[float, float] | None
    window: Window | None
    least: int

    def __call__(self) -> Raw:
        image = read_image(self.path, self.window)
        height, width = image.shape[:2]
        votes = np.zeros((height, width), np.uint8)
        for boxes in self.boxes:
            own = np.zeros((height, width), bool)
            for x0, y0, x1, y1 in fit_boxes(scaled(boxes, self.original, width, height), width, height, str(self.path)):
                own[math.ceil(y0 - 0.5) : math.ceil(y1 - 0.5), math.ceil(x0 - 0.5) : math.ceil(x1 - 0.5)] = True
            votes += own
        return Raw(image, votes >= self.least)


def _loader(
    file: Path, boxes: dict[str, tuple[Box, ...]], original: tuple[float, float] | None, window: Window | None, roi: Roi
) -> Callable[[], Raw]:
    """Return what loads an image with the ROI that its readers agree on by the rule `roi`."""
    if roi == "union" or len(boxes) < 2:
        return BoxedImage(file, tuple(box for own in boxes.values() for box in own), original, window)
    least = len(boxes) if roi == "intersection" else len(boxes) // 2 + 1
    return _Agreed(file, tuple(boxes.values()), original, window, least)
