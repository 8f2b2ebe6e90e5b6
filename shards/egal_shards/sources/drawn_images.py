"""Images whose classes and ROIs are shapes that an annotation tool drew: one class and one ROI per image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from egal_shards.errors import ShardError
from egal_shards.images import read_image, without_suffix
from egal_shards.intensity import Window
from egal_shards.records import Raw, Record
from egal_shards.sources.names import distinct_keys, joined, nearest
from egal_shards.sources.shapes import Rectangle, Shape, union

Label = Literal["single", "largest"]
LabelFlag = Annotated[
    Label,
    "class of an image: single, that of all its shapes, which must agree; largest, the one whose shapes have the most "
    "area, and only these are the ROI",
]
EmptyFlag = Annotated[str | None, "class of the images without shapes; none: such images are an error"]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """An image file and the shapes of its ROI."""

    path: Path
    file: str
    size: tuple[int, int] | None  # width, height for which the shapes were drawn; None: not known
    shapes: tuple[Shape, ...]
    window: Window | None

    def __call__(self) -> Raw:
        image = read_image(self.path, self.window)
        height, width = image.shape[:2]
        if self.size is not None and self.size != (width, height):
            how = "give the file that was annotated"
            if self.size == (height, width):
                how = "the tool showed it as its EXIF orientation says, so save the image turned that way"
            raise ShardError(
                f"{self.file}: was annotated as {self.size[0]}×{self.size[1]} (w×h), has {width}×{height} pixels; {how}"
            )
        if all(isinstance(shape, Rectangle) for shape in self.shapes):
            boxes = tuple(s.clipped(width, height, self.file) for s in self.shapes if isinstance(s, Rectangle))
            return Raw(image, None, boxes)
        return Raw(image, union(self.shapes, width, height, self.file))


@dataclass
class DrawnImage:
    """One image of a JSON file before its class is chosen."""

    where: str  # its place in the JSON, for errors
    path: Path
    file: str  # path relative to the source
    size: tuple[int, int] | None  # width, height, where the JSON tells them
    group: str
    shapes: list[tuple[str, Shape]] = field(default_factory=list)  # class and shape

    def _of(self, rule: Label, empty: str | None) -> tuple[str, tuple[Shape, ...]]:
        """Return the class of the image and the shapes of its ROI."""
        areas: dict[str, float] = {}
        for name, shape in self.shapes:
            areas[name] = areas.get(name, 0.0) + shape.area
        if not areas:
            if empty is None:
                raise ShardError(
                    f"{self.where}: {self.file} has no shapes; give the class of such images as empty, "
                    "for example 'no finding'"
                )
            return empty, ()
        if rule == "single" and len(areas) > 1:
            raise ShardError(
                f"{self.where}: {self.file} has shapes of {len(areas)} classes "
                f"({joined(sorted(areas))}), and a sample has one; set label to largest"
            )
        label = max(areas, key=lambda name: areas[name])  # the first of equals
        return label, tuple(shape for name, shape in self.shapes if name == label)


def records(
    images: Sequence[DrawnImage],
    rule: Label,
    empty: str | None,
    classes: Sequence[str] | None,
    window: Window | None,
) -> list[Record]:
    """Return one record per image. Raise ShardError where its class is not clear, or not among `classes`."""
    if rule not in get_args(Label):
        raise ShardError(f"label {rule!r} is none of {', '.join(get_args(Label))}")
    keys = distinct_keys([without_suffix(image.file) for image in images], [image.file for image in images])
    made = []
    for key, image in zip(keys, images, strict=True):
        label, shapes = image._of(rule, empty)
        if classes is not None and label not in classes:
            raise ShardError(
                f"{image.where}: {image.file} has class {label!r}, which is none of the classes"
                f"{nearest(label, classes)}; classes: {joined(classes)}"
            )
        load = _Drawn(image.path, image.file, image.size, shapes, window)
        made.append(Record(key=key, label=label, group=image.group, file=image.file, load=load))
    return made
