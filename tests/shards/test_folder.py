"""The folder source gives what labels.csv lists, and names the line of every fault."""

import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from egal_shards import ShardError, ShardSet, pack
from egal_shards.sources import SOURCES, folder

HEADER = "file,label,boxes,patient,twin,half\n"
BOX = '"[[1, 2, 5.5, 6]]"'
NOT_BOXES = [
    *("1", "{}", "oops", "[1,2,3,4]", "[[1,2,3]]", "[[1,2,3,4,5]]", "[[1,2,3,4]", "[" * 50_000, '[[""1"",2,3,4]]'),
    *("[[1,2,3,null]]", "[[1,2,3,true]]", "[[1,2,3,NaN]]", "[[1,2,Infinity,4]]", "[[1,2,1e400,4]]"),
    *("[[3,2,1,4]]", "[[1,4,3,4]]"),
]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes labels.csv and an 8×10 image (w×h) per file, and returns the folder."""

    def make(text, files=("a.png", "b.png"), masks=(), encoding="utf-8"):
        for i, name in enumerate([*files, *masks]):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((10, 8), i + 1, np.uint8)
            if name in masks:
                pixels[5:] = 0
            Image.fromarray(pixels).save(tmp_path / name)
        (tmp_path / "labels.csv").write_text(text, encoding=encoding)
        return tmp_path

    return make


def rows(*lines):
    return HEADER + "".join(line + "\n" for line in lines)


def test_every_column_is_read(write):
    text = rows(f"x/a.png,dog,{BOX},p1,,pool", "b.png, cat ,[],p2,t,test", "c.png,cat,,p1,t,train")
    source = folder(write(text, ["x/a.png", "b.png", "c.png"]), group="patient", dup="twin", split="half")
    assert source.classes == ("cat", "dog")
    assert [record.key for record in source.records] == ["x_a", "b", "c"]
    assert [record.label for record in source.records] == ["dog", "cat", "cat"]
    assert [record.group for record in source.records] == ["p1", "p2", "p1"]
    assert [record.duplicates for record in source.records] == ["", "t", "t"]
    assert [record.split for record in source.records] == ["pool", "test", "pool"]
    loaded = [record.load() for record in source.records]
    assert [raw.boxes for raw in loaded] == [((1.0, 2.0, 5.5, 6.0),), (), ()]
    assert [int(raw.image[0, 0]) for raw in loaded] == [1, 2, 3]
    assert all(raw.mask is None for raw in loaded)
    json.dumps(source.made)
    assert source.made["group"] == "patient"


def test_masks(write):
    root = write("file,label,mask_file\na.png,x,m/a.png\nb.png,y,\n", masks=["m/a.png"])
    marked, bare = (record.load() for record in folder(root).records)
    assert np.array_equal(marked.mask, np.arange(10)[:, None].repeat(8, 1) < 5)
    assert bare.mask is None
    assert marked.boxes == bare.boxes == ()


def test_without_a_group_every_file_is_its_own(write):
    source = folder(write(rows("a.png,x,,p,,", "b.png,y,,p,,")))
    assert [record.group for record in source.records] == ["a.png", "b.png"]


def test_blocks_of_contiguous_ids(write):
    text = "file,label,boxes,id\n" + "".join(f"{i}.png,x,,{i}\n" for i in (0, 39, 40, 79, 80, -1))
    source = folder(write(text, [f"{i}.png" for i in (0, 39, 40, 79, 80, -1)]), group="block:id:40")
    groups = [record.group for record in source.records]
    assert groups == ["id-block-0", "id-block-0", "id-block-1", "id-block-1", "id-block-2", "id-block--1"]


def test_quotes_blank_lines_and_odd_paths_are_read(write):
    text = 'file,label,boxes\n\n"./a.png","x, or y",\n\nb.png,z,\n'
    source = folder(write(text, encoding="utf-8-sig"))
    assert [(record.file, record.label) for record in source.records] == [("a.png", "x, or y"), ("b.png", "z")]


def test_given_classes_keep_their_order(write):
    assert folder(write(rows("a.png,x,,,,", "b.png,y,,,,")), classes=("y", "x")).classes == ("y", "x")


def test_keys_of_long_and_odd_paths_suit_webdataset(write):
    long = "d" * 70 + "/" + "e" * 70 + ".v1.png"
    source = folder(write(rows(f"{long},x,,,,", "ä b.c.png,y,,,,"), [long, "ä b.c.png"]))
    first, second = (record.key for record in source.records)
    assert len(first) == 80
    assert first.endswith("e" * 40 + "_v1")
    assert second == "__b_c"


def test_images_are_decoded_only_when_loaded(write):
    root = write(rows("a.png,x,,,,", "b.png,y,,,,"))
    (root / "a.png").write_text("no image")
    source = folder(root)
    with pytest.raises(ShardError, match=r"a.png: is not a PNG"):
        source.records[0].load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'file'"),
        ("files,label,boxes\na.png,x,\n", r"'file' \(did you mean 'files'\?\); its columns: files, label, boxes"),
        ("file,lable,boxes\na.png,x,\n", r"no column 'label' \(did you mean 'lable'\?\)"),
        ("file,label\na.png,x\n", "exactly one of the columns mask_file and boxes, has neither"),
        ("file,label,boxes,mask_file\na.png,x,,\n", "has mask_file and boxes"),
        ("file,label,boxes,boxes\na.png,x,,\n", "2 columns have the name 'boxes'"),
        ("file,label,boxes\n", "lists no files"),
        ("file,label,boxes\na.png,x\n", "labels.csv line 2: has 2 cells, the first line names 3"),
        ("file,label,boxes\na.png,x,\nb.png,y,,z\n", "labels.csv line 3: has 4 cells"),
        ("file,label,boxes,\na.png,x,,note\n", "labels.csv line 2: has 4 cells, .* or name the column"),
        ('file,label,boxes\na.png,"x"y,\n', "labels.csv line 2: is not CSV"),
        ('file,label,boxes\na.png,"x,\n', "labels.csv line 2: is not CSV"),
        (rows("a.png,x,,,,", "b.png,,,,,"), "labels.csv line 3: label is empty"),
        (rows("a.png,x,,,,", ",y,,,,"), "labels.csv line 3: file is empty"),
        (rows("absent.png,x,,,,"), "labels.csv line 2: there is no file absent.png in"),
        (rows("x\\\\a.png,x,,,,"), r"there is no file .* \(separate folders by /\)"),
        (rows("/etc/passwd,x,,,,"), "labels.csv line 2: file '/etc/passwd' is not a path inside the folder"),
        (rows("../a.png,x,,,,"), "is not a path inside the folder"),
        (rows("x/../../a.png,x,,,,"), "is not a path inside the folder"),
        (rows("a\0.png,x,,,,"), "is not a path inside the folder"),
        (rows(".,x,,,,"), "is not a path inside the folder"),
        (rows("a.png,x,,,,", "./a.png,y,,,,"), "line 3: a.png has label 'y', but 'x' in labels.csv line 2"),
        (rows("A.PNG,x,,,,"), r"there is no file A.PNG in .* \(did you mean 'a.png'\?\)"),
        (rows("X/b.png,x,,,,"), r"there is no file X/b.png in .* \(did you mean 'x'\?\)"),
        *((rows(f'a.png,x,"{cell}",,,'), "labels.csv line 2: boxes of a.png are") for cell in NOT_BOXES),
    ],
)
def test_faults_of_labels_csv(write, text, message):
    root = write(text, ["a.png", "b.png", "a.jpg", "x/b.png", "x_b.png"])
    with pytest.raises(ShardError, match=message) as caught:
        folder(root)
    assert "\n" not in str(caught.value)
    assert "remove" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group": "patien"}, r"has no column 'patien' \(did you mean 'patient'\?\)"),
        ({"group": "block:figshare:40"}, "has no column 'figshare'"),
        ({"group": "block:patient"}, "is not COLUMN or block:COLUMN:N"),
        ({"group": "block:patient:0"}, "is not COLUMN or block:COLUMN:N"),
        ({"group": "block:patient:x"}, "is not COLUMN or block:COLUMN:N"),
        ({"group": "block:patient:4"}, "labels.csv line 2: patient is 'p1', not an integer"),
        ({"group": "twin"}, "labels.csv line 2: twin is empty"),
        ({"dup": "tvin"}, r"has no column 'tvin' \(did you mean 'twin'\?\)"),
        ({"split": "halves"}, r"has no column 'halves' \(did you mean 'half'\?\)"),
        ({"split": "half"}, "labels.csv line 3: half is 'val', not pool, train or test"),
        ({"boxes": "yolo"}, "boxes 'yolo' is none of xyxy, xywh, cxcywh, xyxy-normalised"),
        ({"split": "twin"}, "labels.csv line 2: twin is empty"),
        ({"classes": ("gliom", "y")}, r"line 2: a.png has label 'glioma', .* \(did you mean 'gliom'\?\)"),
    ],
)
def test_faults_of_arguments(write, settings, message):
    root = write(rows("a.png,glioma,,p1,,pool", "b.png,y,,p2,t,val"))
    with pytest.raises(ShardError, match=message):
        folder(root, **settings)


def test_missing_labels_and_other_encodings(write, tmp_path):
    with pytest.raises(ShardError, match=r"labels.csv: No such file"):
        folder(tmp_path)
    root = write(rows("a.png,äöü,,,,"), encoding="latin-1")
    with pytest.raises(ShardError, match=r"labels.csv: is not UTF-8"):
        folder(root)


def test_faults_of_pixels_name_the_file(write, tmp_path):
    text = "file,label,mask_file\na.png,x,m.png\nb.png,y,\nc.png,x,\nd.png,y,\n"
    root = write(text, ["a.png", "b.png", "c.png", "d.png"])
    Image.fromarray(np.ones((8, 10), np.uint8)).save(root / "m.png")
    with pytest.raises(ShardError, match=r"a.png: its mask is 10×8 \(w×h\) and the image 8×10"):
        pack(folder(root), tmp_path / "out", size=8, progress=False)
    (root / "labels.csv").write_text('file,label,boxes\na.png,x,"[[0,0,8.1,4]]"\nb.png,y,\nc.png,x,\nd.png,y,\n')
    with pytest.raises(ShardError, match=r"a.png: box \[0.0, 0.0, 8.1, 4.0\] leaves its image of 8×10"):
        pack(folder(root), tmp_path / "out", size=8, progress=False)
    assert not (tmp_path / "out").exists()


def test_an_empty_mask_is_no_roi(write, tmp_path):
    text = "file,label,mask_file\na.png,x,m.png\nb.png,y,m.png\nc.png,x,\nd.png,y,m2.png\n"
    root = write(text, ["a.png", "b.png", "c.png", "d.png", "m2.png"])
    Image.fromarray(np.zeros((10, 8), np.uint8)).save(root / "m.png")
    pack(folder(root), tmp_path / "out", size=8, progress=False)
    shards = ShardSet(tmp_path / "out")
    assert [shards[i].has_roi for i in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("name", ["mask_file", "boxes"])
def test_rows_of_one_image_are_merged(write, name):
    cells = ["m/1.png", "", "m/2.png"] if name == "mask_file" else ['"[[0,0,3,3]]"', "", '"[[4,4,8,10],[0,9,1,10]]"']
    text = f"file,label,{name},p\n" + "".join(f"a.png,x,{cell},p1\nb.png,y,,p2\n" for cell in cells)
    root = write(text, masks=["m/1.png"])
    Image.fromarray(np.eye(10, 8, dtype=np.uint8)).save(root / "m" / "2.png") if name == "mask_file" else None
    first, second = folder(root, group="p").records
    assert (first.key, first.label, first.group, second.key) == ("a", "x", "p1", "b")
    raw = first.load()
    if name == "boxes":
        assert raw.boxes == ((0, 0, 3, 3), (4, 4, 8, 10), (0, 9, 1, 10))
    else:
        upper = np.arange(10)[:, None].repeat(8, 1) < 5
        assert np.array_equal(raw.mask, upper | np.eye(10, 8, dtype=bool))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group": "patient"}, "line 3: a.png has group 'p2', but 'p1' in labels.csv line 2"),
        ({"dup": "twin"}, "line 3: a.png has duplicates 't', but '' in labels.csv line 2"),
        ({"split": "half"}, "line 3: a.png has split 'test', but 'pool' in labels.csv line 2"),
    ],
)
def test_rows_of_one_image_must_agree(write, settings, message):
    with pytest.raises(ShardError, match=message):
        folder(write(rows("a.png,x,,p1,,train", "a.png,x,,p2,t,test")), **settings)


def test_masks_of_one_image_have_one_size(write):
    root = write("file,label,mask_file\na.png,x,b.png\na.png,x,c.png\n")
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(root / "c.png")
    [record] = folder(root).records
    with pytest.raises(ShardError, match=r"c.png: is 10×8 \(w×h\), and .*b.png of the same image is 8×10"):
        record.load()


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_names_are_equal_in_either_unicode_form(write, stored, listed):
    name = "é/á ü.png"
    text = rows(f"{unicodedata.normalize(listed, name)},x,,,,")
    [record] = folder(write(text, [unicodedata.normalize(stored, name)])).records
    assert record.load().image.shape == (10, 8)


def test_a_patient_in_two_unicode_forms_is_one_group(write):
    composed, decomposed = (unicodedata.normalize(form, "Zoé") for form in ("NFC", "NFD"))
    source = folder(write(rows(f"a.png,x,,{composed},,", f"b.png,x,,{decomposed},,")), group="patient", dup="patient")
    assert {record.group for record in source.records} == {record.duplicates for record in source.records} == {composed}


def test_numeric_classes_are_in_numeric_order(write):
    for suffix in ("", ".0"):
        text = rows(*(f"a{i}.png,{i}{suffix},,,," for i in range(12)))
        source = folder(write(text, [f"a{i}.png" for i in range(12)]))
        assert source.classes == tuple(f"{i}{suffix}" for i in range(12))


def test_a_note_tells_of_nearly_equal_classes(write):
    source = folder(write(rows("a.png,No Finding,,,,", "b.png,no  finding,,,,")))
    assert source.made["note"].startswith("classes 'No Finding' (1 sample), 'no  finding' (1 sample) have nearly equal")
    assert "equal" not in folder(write(rows("a.png,x,,,,", "b.png,y,,,,"))).made["note"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("name", ["a.png", "m.png", "labels.csv"])
def test_pipes_and_devices_are_refused_at_once(write, name, make):
    root = write("file,label,mask_file\na.png,x,m.png\n", masks=["m.png"])
    (root / name).unlink()
    make(root / name)
    with pytest.raises(ShardError, match=f"{name}.* is not a regular file"):
        folder(root)


def test_names_that_a_terminal_obeys_are_shown_escaped(write):
    root = write("file,label,boxes\n\x1b[2J\u202e.png,x,\n")
    with pytest.raises(ShardError, match=r"there is no file \\x1b\[2J\\u202e.png in") as caught:
        folder(root)
    assert str(caught.value).isprintable()


def test_sources_are_listed_with_a_line_each():
    assert {"folder", "brats", "vindr", "siim", "phantom", "coco", "labelme", "imagefolder"} <= set(SOURCES)
    for name, entry in SOURCES.items():
        assert entry.load().__name__ == name
        assert "\n" not in entry.summary


def test_source_functions_are_never_hidden_by_their_modules():
    import egal_shards.sources
    import egal_shards.sources.phantom

    assert all(callable(getattr(egal_shards.sources, name)) for name in SOURCES)
    with pytest.raises(AttributeError, match="nifti"):
        egal_shards.sources.nifti  # noqa: B018
