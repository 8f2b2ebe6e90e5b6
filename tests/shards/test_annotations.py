"""COCO and LabelMe files: shapes become the masks that they outline, and what is wrong is named."""

import base64
import json
import os
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as pycocotools

from egal_shards import ShardError, ShardSet, Split, pack
from egal_shards.sources import coco, labelme
from egal_shards.sources.shapes import Circle, Polygon, Rectangle, runs

WIDTH, HEIGHT = 40, 30
Y, X = np.mgrid[:HEIGHT, :WIDTH]
BOX = (X >= 5) & (X < 15) & (Y >= 8) & (Y < 20)
CORNERS = [5, 8, 15, 8, 15, 20, 5, 20]


def image(path, turned=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH), np.uint8)).save(path)


def compressed(mask):
    return pycocotools.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


def lengths(mask):
    """Run lengths along columns, the first of them outside."""
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat)) - 0
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def annotation(i=1, image_id=1, category_id=1, **shape):
    return {"id": i, "image_id": image_id, "category_id": category_id, **shape}


@pytest.fixture
def write(tmp_path):
    """Write a COCO file with two images; return its path and the folder of the images."""

    def make(annotations, images=None, categories=None):
        for name in ("x/a.png", "b.png"):
            image(tmp_path / "images" / name)
        size = {"width": WIDTH, "height": HEIGHT}
        content = {
            "images": images
            or [{"id": 1, "file_name": "x/a.png", "p": 7, **size}, {"id": 2, "file_name": "b.png", "p": "7", **size}],
            "annotations": annotations,
            "categories": categories or [{"id": 10, "name": "cyst"}, {"id": 1, "name": "tumour"}],
        }
        (tmp_path / "c.json").write_text(json.dumps(content))
        return tmp_path / "c.json", tmp_path / "images"

    return make


@pytest.mark.parametrize(
    "shape",
    [
        {"segmentation": [CORNERS]},
        {"segmentation": [[5, 8, 15, 8, 15, 14, 5, 14], [5, 14, 15, 14, 15, 20, 5, 20]], "bbox": [0, 0, 1, 1]},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": compressed(BOX)}, "iscrowd": 1},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": lengths(BOX)}},
        {"segmentation": [], "bbox": [5, 8, 10, 12]},
        {"bbox": [5, 8, 10, 12]},
    ],
)
def test_every_kind_of_coco_segmentation_gives_its_mask(write, tmp_path, shape):
    paths = write([annotation(**shape), annotation(2, 2, **shape)])
    pack(coco(paths), tmp_path / "out", size=WIDTH, split=Split(0.5), progress=False)
    top = (WIDTH - HEIGHT) // 2
    for sample in ShardSet(tmp_path / "out"):
        np.testing.assert_array_equal(sample.roi[top : top + HEIGHT], BOX)


def test_coco_classes_groups_and_keys(write):
    source = coco(write([annotation(bbox=[0, 0, 5, 5]), annotation(2, 2, 10, bbox=[0, 0, 5, 5])]), group="p")
    assert source.classes == ("tumour", "cyst")
    assert [record.label for record in source.records] == ["tumour", "cyst"]
    assert [record.key for record in source.records] == ["x_a", "b"]
    assert [record.group for record in source.records] == ["7", "7"]
    assert "note" not in source.made


def test_images_of_several_classes_and_of_none_need_a_choice(write):
    paths = write([annotation(bbox=[0, 0, 5, 5]), annotation(2, 1, 10, bbox=[0, 0, 6, 6])])
    with pytest.raises(ShardError, match=r"c.json: image 1: x/a.png has shapes of 2 classes \(cyst, tumour\)"):
        coco(paths)
    with pytest.raises(ShardError, match=r"c.json: image 2: b.png has no shapes; give the class .* as empty"):
        coco(paths, label="largest")
    source = coco(paths, label="largest", empty="healthy")
    assert source.classes == ("cyst", "healthy")
    assert [record.label for record in source.records] == ["cyst", "healthy"]
    assert [record.load().boxes for record in source.records] == [((0, 0, 6, 6),), ()]


COCO_FAULTS = {
    "no annotation list": (None, {}, "c.json: has no list 'annotations' of objects"),
    "unknown image": ([annotation(image_id=9, bbox=[0, 0, 1, 1])], {}, "annotation 1: its image_id 9 is not in images"),
    "unknown category": ([annotation(category_id=9, bbox=[0, 0, 1, 1])], {}, "its category_id 9 is not in categories"),
    "text as id": ([annotation(image_id="1", bbox=[0, 0, 1, 1])], {}, "its image_id is '1', not a whole number"),
    "no shape": ([annotation()], {}, "annotation 1 of x/a.png: has no segmentation, and its bbox is None"),
    "flat polygon": ([annotation(segmentation=[[1, 2, 3, 4]])], {}, "a polygon is .*three points or more"),
    "polygon of texts": ([annotation(segmentation=[["1"] * 6])], {}, "a polygon is"),
    "endless point": ([annotation(segmentation=[[1e400] * 6])], {}, "a polygon is"),
    "too few runs": (
        [annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [5]})], {}, "do not fill its 40×30",
    ),
    "negative run": ([annotation(segmentation={"size": [1, 1], "counts": [3, -2]})], {}, "do not fill"),
    "giant runs": ([annotation(segmentation={"size": [10**9, 10**9], "counts": [10**18]})], {}, "has the size"),
    "runs cut short": ([annotation(segmentation={"size": [1, 1], "counts": "oooo"})], {}, "do not fill"),
    "no size": ([annotation(segmentation={"counts": [1]})], {}, "has the size None"),
    "two images, one file": (
        [], {"images": [{"id": 1, "file_name": "b.png"}, {"id": 2, "file_name": "./b.png"}]}, "b.png is also image 1",
    ),
    "one id twice": (
        [], {"images": [{"id": 1, "file_name": "b.png"}, {"id": 1, "file_name": "x/a.png"}]}, "also that of b.png",
    ),
    "climbing name": ([], {"images": [{"id": 1, "file_name": "../b.png"}]}, "is not a path inside the folder"),
    "other case": ([], {"images": [{"id": 1, "file_name": "B.png"}]}, r"no file B.png .*did you mean 'b.png'"),
    "half an emoji": ([], {"categories": [{"id": 1, "name": "\ud83d"}]}, "is not valid Unicode"),
    "one category id twice": (
        [], {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "the id is also that of 'a'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COCO_FAULTS)
def test_faults_of_coco_files(write, case):
    annotations, more, message = COCO_FAULTS[case]
    with pytest.raises(ShardError, match=message) as caught:
        coco(write(annotations, **more), empty="none")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[1", '{"images": "x"}', "9" * 10_000, "\xff"])
def test_what_is_no_coco_file_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text, encoding="latin-1")
    with pytest.raises(ShardError, match=r"c.json: .*(is not|has no list)"):
        coco([tmp_path / "c.json", tmp_path])


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_annotations_are_a_regular_file(tmp_path, make):
    make(tmp_path / "c.json")
    with pytest.raises(ShardError, match="is not a regular file"):
        coco([tmp_path / "c.json", tmp_path])
    with pytest.raises(ShardError, match=r"is not a regular file|holds no JSON file"):
        labelme(tmp_path)


def test_coco_needs_two_paths(tmp_path):
    with pytest.raises(ShardError, match=r"give ANNOTATIONS.json IMAGES"):
        coco(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"segmentation": [[0, 0, 99, 0, 99, 9]]}, r"x/a.png: the point \(99, 0\) leaves its image of 40×30"),
        ({"bbox": [30, 20, 20, 5]}, r"x/a.png: the point \(50, 25\) leaves its image"),
        ({"segmentation": [[0, 0, 40, 30] * 20_000]}, "a polygon has an outline of .* pixels; simplify it"),
        ({"segmentation": {"size": [2, 2], "counts": [1, 3]}}, "its run-length mask is 2×2"),
    ],
)
def test_shapes_that_do_not_fit_the_image_are_refused(write, shape, message):
    record, _ = coco(write([annotation(**shape)]), empty="none").records
    with pytest.raises(ShardError, match=message):
        record.load()


def test_an_image_of_another_size_than_annotated_is_refused(write):
    paths = write([annotation(bbox=[0, 0, 5, 5]), annotation(2, 2, bbox=[0, 0, 5, 5])])
    image(paths[1] / "b.png", turned=True)
    with pytest.raises(ShardError, match=r"b.png: was annotated as 40×30 .* has 30×40 pixels; .*EXIF orientation"):
        coco(paths).records[1].load()


@given(arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))))
@settings(deadline=None)
def test_runs_are_the_inverse_of_the_reference_encoder(mask):
    height, width = mask.shape
    for counts in (compressed(mask), lengths(mask)):
        shape = runs({"size": [height, width], "counts": counts}, "here")
        np.testing.assert_array_equal(shape.draw(width, height, "here"), mask)
        assert shape.area == mask.sum()


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=40))
def test_any_text_of_runs_fills_its_mask_or_is_refused(text):
    with suppress(ShardError):
        shape = runs({"size": [4, 5], "counts": text}, "here")
        assert shape.draw(5, 4, "here").sum() == shape.area


@given(st.tuples(*[st.integers(0, WIDTH - 1)] * 2), st.tuples(*[st.integers(0, HEIGHT - 1)] * 2))
def test_polygons_and_boxes_of_whole_pixels_agree(across, down):
    (x0, x1), (y0, y1) = sorted(across), sorted(down)
    x1, y1 = x1 + 1, y1 + 1
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[y0:y1, x0:x1] = True
    outline = Polygon(((x0, y0), (x1, y0), (x1, y1), (x0, y1)))
    for shape in (outline, Rectangle((x0, y0, x1, y1))):
        np.testing.assert_array_equal(shape.draw(WIDTH, HEIGHT, "here"), expected)
        assert shape.area == expected.sum()


def test_shapes_thinner_than_a_pixel_keep_one():
    for shape in (
        Polygon(((3.1, 4.1), (3.2, 4.1), (3.2, 4.2))),
        Rectangle((3.1, 4.1, 3.2, 4.2)),
        Circle(3.1, 4.1, 0.1),
    ):
        assert np.argwhere(shape.draw(WIDTH, HEIGHT, "here")).tolist() == [[4, 3]]


def test_a_circle_is_the_pixels_within_its_radius():
    expected = (X + 0.5 - 12) ** 2 + (Y + 0.5 - 9) ** 2 <= 36
    np.testing.assert_array_equal(Circle(12, 9, 6).draw(WIDTH, HEIGHT, "here"), expected)
    assert Circle(0, 0, 5).draw(WIDTH, HEIGHT, "here")[0, 0]


def labelled(path, *shapes, **fields):
    image(path.with_suffix(".png"))
    size = {"imageWidth": WIDTH, "imageHeight": HEIGHT}
    content = {"shapes": list(shapes), "imagePath": path.with_suffix(".png").name, **size, **fields}
    path.write_text(json.dumps(content))


def drawn(kind, points, label="tumour"):
    return {"label": label, "shape_type": kind, "points": points}


@pytest.mark.parametrize(
    "shape",
    [
        drawn("polygon", [[5, 8], [15, 8], [15, 20], [5, 20]]),
        drawn("rectangle", [[15, 20], [5, 8]]),
        drawn("rectangle", [[5, 8], [15, 8], [15, 20], [5, 20]]),
        drawn("rotation", [[15, 8], [15, 20], [5, 20], [5, 8]]),
    ],
)
def test_every_kind_of_labelme_shape_gives_its_mask(tmp_path, shape):
    labelled(tmp_path / "a.json", shape)
    [record] = labelme(tmp_path).records
    raw = record.load()
    drawn_mask = raw.mask if raw.mask is not None else Rectangle(raw.boxes[0]).draw(WIDTH, HEIGHT, "here")
    np.testing.assert_array_equal(drawn_mask, BOX)


def test_labelme_files_are_found_with_their_images(tmp_path):
    embedded = base64.b64encode(bytes(1000)).decode()
    (tmp_path / "json").mkdir()
    labelled(tmp_path / "json" / "a.json", drawn("circle", [[12, 9], [12, 15]]), imageData=embedded)
    labelled(tmp_path / "b.json", drawn("circle", [[12, 9], [12, 15]], "cyst"), imagePath="C:\\data\\b.png")
    (tmp_path / "images").mkdir()
    labelled(tmp_path / "json" / "c.json", imagePath="..\\images\\c.png")
    (tmp_path / "json" / "c.png").rename(tmp_path / "images" / "c.png")
    (tmp_path / "settings.json").write_text('{"theme": "dark"}')
    source = labelme(tmp_path, empty="healthy")
    assert source.classes == ("cyst", "healthy", "tumour")
    assert [record.file for record in source.records] == ["b.png", "json/a.png", "images/c.png"]
    assert source.records[0].load().mask.sum() == Circle(12, 9, 6).draw(WIDTH, HEIGHT, "here").sum()


LABELME_FAULTS = {
    "no label": ([{"points": []}], {}, "a.json: shape 0: has no label"),
    "a line": ([drawn("line", [[0, 0], [5, 5]])], {}, "a.json: shape 0: is a 'line', and only polygon, rectangle"),
    "two points": ([drawn("polygon", [[0, 0], [5, 5]])], {}, "a polygon cannot have the 2 points"),
    "flat rectangle": ([drawn("rectangle", [[0, 5], [9, 5]])], {}, "a rectangle cannot have"),
    "texts": ([drawn("polygon", [["0", 0]] * 3)], {}, "its points are"),
    "two classes": ([drawn("circle", [[9, 9], [5, 5]], c) for c in "ab"], {}, r"shapes of 2 classes \(a, b\)"),
    "no shapes": ([], {}, "a.json: a.png has no shapes"),
    "image elsewhere": ([], {"imagePath": "../../etc/passwd"}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELME_FAULTS)
def test_faults_of_labelme_files(tmp_path, case):
    shapes, fields, message = LABELME_FAULTS[case]
    labelled(tmp_path / "a.json", *shapes, **fields)
    if message is None:
        (tmp_path / "a.png").unlink()
        message = r"a.json: its imagePath '../../etc/passwd' is not a file inside .*, and 0 images lie beside it"
    with pytest.raises(ShardError, match=message):
        labelme(tmp_path)


def test_a_folder_without_labelme_files_is_refused(tmp_path):
    with pytest.raises(ShardError, match="holds no JSON file of LabelMe"):
        labelme(tmp_path)


def test_two_files_of_one_image_are_refused(tmp_path):
    labelled(tmp_path / "a.json", drawn("circle", [[12, 9], [12, 15]]))
    (tmp_path / "b.json").write_text((tmp_path / "a.json").read_text())
    with pytest.raises(ShardError, match=r"b.json: annotates a.png, as a.json does; join the shapes"):
        labelme(tmp_path)
