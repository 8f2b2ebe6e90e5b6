"""The `siim` source: SIIM-FISABIO-RSNA COVID-19 (2021), with its two official tables."""

import math
from pathlib import Path
from typing import Annotated

from egal_shards.errors import ShardError
from egal_shards.intensity import Window, check_window
from egal_shards.records import Box, Record, Source
from egal_shards.sources.flags import DUP, GROUP, META, WINDOW
from egal_shards.sources.image_tree import BoxedImage, ImageTree, Originals
from egal_shards.sources.names import plural
from egal_shards.sources.tables import Row, Table

_CLASSES = {  # class: column of the study table
    "negative": "Negative for Pneumonia",
    "typical": "Typical Appearance",
    "indeterminate": "Indeterminate Appearance",
    "atypical": "Atypical Appearance",
}
_BY_STUDY = (
    "groups are studies: a patient with several studies may span pool and test; "
    "to split by patient, give a table of patients as meta, and its column as group"
)


def siim(
    path: str | Path,
    *,
    meta: Annotated[str | Path | None, META] = None,
    group: Annotated[str | None, f"of meta: {GROUP}"] = None,
    dup: Annotated[str | None, f"of meta: {DUP}"] = None,
    window: Annotated[Window | None, WINDOW] = None,
) -> Source:
    """Return the images that the official tables in `path` list.

    The class is that of the image's study: negative, typical, indeterminate or atypical. The ROI is the image's own
    boxes around opacities.

    `path` holds one *train_image_level.csv and one *train_study_level.csv. The images are anywhere below, such as
    study/series/image.dcm, named by image id: the DICOM files, or PNG, JPEG or TIFF files made from them. Boxes are in
    pixels of the DICOM files; `meta` scales them to others. Without `group` studies are the groups. ShardError names
    the row.
    """
    check_window(window)
    root = Path(path)
    images = Table.open(_table_file(root, "train_image_level.csv"), ["id", "label", "StudyInstanceUID"])
    studies = _studies(Table.open(_table_file(root, "train_study_level.csv"), ["id", *_CLASSES.values()]))
    known, tree = Originals.read(root, meta, group, dup), ImageTree.scan(root)
    records = []
    for row in images:
        name = row.filled("id").removesuffix("_image")
        study = row.filled("StudyInstanceUID")
        if study not in studies:
            raise ShardError(f"{row.where}: study {study} is not in the study table; add it there")
        file, boxes = tree.find(name, row), _boxes(row)
        records.append(
            Record(
                key=name,
                label=studies[study],
                group=known.group.get(name, study),
                file=file.relative_to(root).as_posix(),
                load=BoxedImage(file, boxes, known.size_of(name, file, bool(boxes), row), window),
                duplicates=known.duplicates.get(name, ""),
            )
        )
    settings = {
        "source": "siim",
        "meta": Path(meta).name if meta else None,
        "group": group or "StudyInstanceUID",
        "dup": dup,
        "window": list(window) if window else None,
    }
    if not group:
        settings["note"] = _BY_STUDY
    return Source("siim", tuple(_CLASSES), records, settings)


def _table_file(root: Path, ending: str) -> Path:
    """Return the one file in `root` whose name ends so. ShardError unless there is exactly one."""
    try:
        paths = sorted(entry for entry in root.iterdir() if entry.name.endswith(ending))
    except OSError as error:
        raise ShardError(f"{root}: {error.strerror}; give the folder of the dataset") from None
    if len(paths) != 1:
        raise ShardError(f"{root}: holds {plural(len(paths), 'file')} named *{ending}, and needs exactly one")
    return paths[0]


def _studies(table: Table) -> dict[str, str]:
    """Return the class of each study."""
    classes = {}
    for row in table:
        marks = [name for name, column in _CLASSES.items() if row[column].strip() == "1"]
        if len(marks) != 1:
            raise ShardError(f"{row.where}: study {row['id']} has {len(marks)} classes marked 1, needs exactly one")
        classes[row.filled("id").removesuffix("_study")] = marks[0]
    return classes


def _boxes(row: Row) -> tuple[Box, ...]:
    """Return the boxes of the `label` column: repeated "opacity CONFIDENCE x0 y0 x1 y1", or "none 1 0 0 1 1"."""
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
                f"{row.where}: label {row['label'][:60]!r} is not repeated 'opacity 1 x0 y0 x1 y1'; correct it"
            )
        if kind == "opacity":
            boxes.append((x0, y0, x1, y1))
    return tuple(boxes)
