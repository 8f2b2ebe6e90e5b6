"""The `coco` source: images with their annotations in one JSON file in COCO's format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from egal_shards.errors import ShardError
from egal_shards.intensity import Window, check_window
from egal_shards.records import Source
from egal_shards.sources.drawn_images import DrawnImage, EmptyFlag, LabelFlag, records
from egal_shards.sources.files import Folder, read_json, relative_path
from egal_shards.sources.flags import WINDOW
from egal_shards.sources.names import joined, normalised, valid_text
from egal_shards.sources.remarks import BY_IMAGE, with_notes
from egal_shards.sources.shapes import Rectangle, Shape, are_numbers, polygon, runs


def coco(
    path: str | Path | Sequence[str | Path],
    *,
    label: LabelFlag = "single",
    empty: EmptyFlag = None,
    group: Annotated[str | None, "field of the entries of images that holds the group (patient)"] = None,
    classes: Annotated[Sequence[str] | None, "the classes in order, comma-separated; none: by category id"] = None,
    window: Annotated[Window | None, WINDOW] = None,
) -> Source:
    """Return the images that a COCO file lists, with the ROIs of their segmentations, or of their boxes without these.

    ShardError names the file and the id of the entry that is wrong.

    Args:
        path: The JSON file and the folder of the images: [ANNOTATIONS.json, IMAGES].
        label: How the class of an image follows from its annotations.
        empty: Class of the images without annotations.
        group: Field of the entries of `images` that holds the group. Without it every image is a group of its own.
        classes: The classes in order. Without them: the categories that occur, in the order of their ids.
        window: The values shown as black and white.
    """
    check_window(window)
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(each) for each in path]
    if len(paths) != 2:
        raise ShardError("coco reads a JSON file and the folder of its images: give ANNOTATIONS.json IMAGES")
    annotations, root = paths
    content = read_json(annotations)
    categories = _categories(content, annotations)
    images = _images(content, annotations, Folder(root), group)
    for entry, where in _entries(content, "annotations", annotations):
        image = images.get(_id(entry, "image_id", where))
        category = _id(entry, "category_id", where)
        if image is None:
            raise ShardError(f"{where}: its image_id {entry['image_id']} is not in images; add the image there")
        if category not in categories:
            raise ShardError(f"{where}: its category_id {category} is not in categories; add the category there")
        image.shapes += [(categories[category], shape) for shape in _shapes(entry, f"{where} of {image.file}")]
    samples = records(list(images.values()), label, empty, classes, window)
    used = [record.label for record in samples]
    order = [*dict.fromkeys(categories[number] for number in sorted(categories))]
    order += [empty] if empty is not None and empty not in order else []
    made: dict[str, Any] = {
        "source": "coco", "input": [annotations.name, root.resolve().name], "label": label, "empty": empty,
        "group": group, "classes": list(classes) if classes else None, "window": list(window) if window else None,
    }  # fmt: skip
    names = tuple(classes or [name for name in order if name in used])
    return Source(root.resolve().name, names, samples, with_notes(made, used, [] if group else [BY_IMAGE]))


def _entries(content: Any, name: str, path: Path) -> list[tuple[dict[str, Any], str]]:
    """Return (entry, its place for errors) of a list in the file. Raise ShardError where there is no such list."""
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        keys = joined(map(str, content)) if isinstance(content, dict) else "no keys"
        raise ShardError(
            f"{path}: has no list {name!r} of objects; a COCO file has images, annotations and categories, and this "
            f"one has {keys}"
        )
    singular = {"images": "image", "annotations": "annotation", "categories": "category"}[name]
    ids = [str(entry.get("id", f"number {i}"))[:40] for i, entry in enumerate(entries)]
    return [(entry, f"{path.name}: {singular} {number}") for entry, number in zip(entries, ids, strict=True)]


def _id(entry: dict[str, Any], field: str, where: str) -> int:
    value = entry.get(field)
    if type(value) is not int:
        raise ShardError(f"{where}: its {field} is {str(value)[:40]!r}, not a whole number; correct it")
    return value


def _text(entry: dict[str, Any], field: str, where: str) -> str:
    value = entry.get(field)
    if type(value) not in (int, str) or not str(value).strip():
        raise ShardError(f"{where}: its {field} is {str(value)[:40]!r}, neither a text nor a whole number; correct it")
    return valid_text(str(value).strip(), where)


def _categories(content: Any, path: Path) -> dict[int, str]:
    """Return the names of the categories by id."""
    categories: dict[int, str] = {}
    for entry, where in _entries(content, "categories", path):
        number = _id(entry, "id", where)
        name = _text(entry, "name", where)
        if categories.setdefault(number, name) != name:
            raise ShardError(f"{where}: the id is also that of {categories[number]!r}; give each category its own")
    return categories


def _images(content: Any, path: Path, folder: Folder, group: str | None) -> dict[int, DrawnImage]:
    """Return the images by id, without shapes."""
    images: dict[int, DrawnImage] = {}
    files: dict[Path, str] = {}
    for entry, where in _entries(content, "images", path):
        number = _id(entry, "id", where)
        if number in images:
            raise ShardError(f"{where}: the id is also that of {images[number].file}; give each image its own")
        file = relative_path(_text(entry, "file_name", where), f"{where}: file_name")
        image_path = folder.find(file, where)
        if image_path in files:
            raise ShardError(
                f"{where}: {file} is also {files[image_path]}; give the annotations of both the same image_id"
            )
        files[image_path] = where.partition(": ")[2]
        width, height = entry.get("width"), entry.get("height")
        size = (width, height) if type(width) is int and type(height) is int else None
        owner = normalised(_text(entry, group, where)) if group else file
        images[number] = DrawnImage(where, image_path, file, size, owner)
    if not images:
        raise ShardError(f"{path}: lists no images; export the annotations again, with their images")
    return images


def _shapes(entry: dict[str, Any], where: str) -> list[Shape]:
    """Return the shapes of an annotation: its segmentation, or its box where it has none."""
    segmentation: Any = entry.get("segmentation")
    box: Any = entry.get("bbox")
    if isinstance(segmentation, dict):
        return [runs(segmentation, where)]
    if isinstance(segmentation, list) and segmentation:
        return [polygon(numbers, where) for numbers in segmentation]
    if not are_numbers(box) or len(box) != 4 or not (box[2] > 0 and box[3] > 0):
        raise ShardError(
            f"{where}: has no segmentation, and its bbox is {str(box)[:60]}, not [x,y,width,height] in pixels; "
            "correct it"
        )
    x, y, width, height = map(float, box)
    return [Rectangle((x, y, x + width, y + height))]
