"""The `labelme` source: images with a JSON file each, as LabelMe and tools like it write them."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

from egal_shards.errors import ShardError
from egal_shards.images import SUFFIXES
from egal_shards.intensity import Window, check_window
from egal_shards.records import Source
from egal_shards.sources.drawn_images import DrawnImage, EmptyFlag, LabelFlag, records
from egal_shards.sources.files import read_json
from egal_shards.sources.flags import WINDOW
from egal_shards.sources.names import joined, sorted_classes, valid_text
from egal_shards.sources.remarks import BY_IMAGE, with_notes
from egal_shards.sources.shapes import Circle, Polygon, Rectangle, Shape, are_numbers

_LARGEST = 1 << 27  # bytes of a JSON file, which may contain its image
_KINDS = ("polygon", "rectangle", "rotation", "circle")


def labelme(
    path: str | Path,
    *,
    label: LabelFlag = "single",
    empty: EmptyFlag = None,
    classes: Annotated[Sequence[str] | None, "the classes in order, comma-separated; none: the labels, sorted"] = None,
    window: Annotated[Window | None, WINDOW] = None,
) -> Source:
    """Return the images below a folder that have a LabelMe file, with the ROIs of their shapes.

    A LabelMe file is a JSON file with `shapes` and `imagePath`. Its image is at `imagePath`, relative to the file, or
    beside the file with the same name. Images in the JSON itself (`imageData`) are not read. ShardError names the file.

    Args:
        path: The folder.
        label: How the class of an image follows from its shapes.
        empty: Class of the images without shapes.
        classes: The classes in order.
        window: The values shown as black and white.
    """
    check_window(window)
    root = Path(path)
    walk = os.walk(root)
    files = sorted(Path(parent) / name for parent, _, names in walk for name in names if name.endswith(".json"))
    images = [image for file in files if (image := _image(file, root))]
    if not images:
        raise ShardError(f"{root}: holds no JSON file of LabelMe, with shapes and imagePath; check the path")
    names: dict[Path, str] = {}
    for image in images:
        if image.path in names:
            raise ShardError(
                f"{image.where}: annotates {image.file}, as {names[image.path]} does; join the shapes in one file"
            )
        names[image.path] = image.where
    samples = records(images, label, empty, classes, window)
    made: dict[str, Any] = {
        "source": "labelme", "folder": root.resolve().name, "label": label, "empty": empty,
        "classes": list(classes) if classes else None, "window": list(window) if window else None,
    }  # fmt: skip
    used = [record.label for record in samples]
    made = with_notes(made, used, [BY_IMAGE])
    return Source(root.resolve().name, tuple(classes or sorted_classes(used)), samples, made)


def _image(file: Path, root: Path) -> DrawnImage | None:
    """Return the image of a JSON file with its shapes; None where the file is not one of LabelMe."""
    content = read_json(file, _LARGEST)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list) or "imagePath" not in content:
        return None
    where = valid_text(file.relative_to(root).as_posix(), str(root))
    image_path = _image_path(file, content["imagePath"], root, where)
    width, height = content.get("imageWidth"), content.get("imageHeight")
    size = (width, height) if type(width) is int and type(height) is int else None
    name = valid_text(image_path.relative_to(root).as_posix(), where)
    image = DrawnImage(where, image_path, name, size, name)
    for i, entry in enumerate(content["shapes"]):
        place = f"{where}: shape {i}"
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(label, str) or not label.strip():
            raise ShardError(f"{place}: has no label; give it one")
        image.shapes.append((valid_text(label.strip(), place), _shape(entry, place)))
    return image


def _image_path(file: Path, named: Any, root: Path, where: str) -> Path:
    """Return the path of a JSON file's image: the one that it names, if inside the folder, else the one beside it."""
    parts = PureWindowsPath(named).parts if isinstance(named, str) and "\0" not in named else ()  # splits at / and \
    inside = os.path.normpath(PurePosixPath(where).parent.joinpath(*parts)) if parts else ".."
    if not inside.startswith(("..", "/")) and (root / inside).is_file():
        return root / inside
    beside = [file.with_suffix(suffix) for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES))]
    images = [path for path in beside if path.is_file()]
    if len(images) != 1:
        raise ShardError(
            f"{where}: its imagePath {str(named)[:80]!r} is not a file inside {root}, and {len(images)} images lie "
            "beside it under its name; put the image there"
        )
    return images[0]


def _shape(entry: dict[str, Any], where: str) -> Shape:
    """Return a shape of the file."""
    kind, points = entry.get("shape_type", "polygon"), entry.get("points")
    if kind not in _KINDS:
        raise ShardError(
            f"{where}: is a {str(kind)[:40]!r}, and only {joined(_KINDS)} span an area; redraw it as a polygon"
        )
    if not isinstance(points, list) or not all(are_numbers(point) and len(point) == 2 for point in points):
        raise ShardError(f"{where}: its points are {str(points)[:60]}, not [[x,y],…]; correct them")
    corners = [(float(x), float(y)) for x, y in points]
    if kind == "circle" and len(corners) == 2:
        (x, y), rim = corners
        return Circle(x, y, ((rim[0] - x) ** 2 + (rim[1] - y) ** 2) ** 0.5)
    if kind == "rectangle" and len(corners) == 2:
        (x0, y0), (x1, y1) = corners
        if x0 != x1 and y0 != y1:
            return Rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
    elif kind != "circle" and len(corners) >= 3:
        return Polygon(tuple(corners))
    raise ShardError(f"{where}: a {kind} cannot have the {len(corners)} points {str(points)[:60]}; redraw it")
