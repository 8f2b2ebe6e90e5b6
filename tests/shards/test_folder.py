"""The folder source: what labels.csv says is what comes out, and what is wrong with it is said by line."""

import json

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
    """Writes labels.csv, and an 8×10 image (w×h) for each file that is asked for; gives the folder."""

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


def test_every_column_is_understood(write):
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


def test_byte_order_mark_quotes_blank_lines_and_spelling_of_paths(write):
    text = 'file,label,boxes\n\n"./a.png","x, or y",\n\nb.png,z,\n'
    source = folder(write(text, encoding="utf-8-sig"))
    assert [(record.file, record.label) for record in source.records] == [("a.png", "x, or y"), ("b.png", "z")]


def test_given_classes_keep_their_order(write):
    assert folder(write(rows("a.png,x,,,,", "b.png,y,,,,")), classes=("y", "x")).classes == ("y", "x")


def test_long_and_odd_paths_give_keys_that_webdataset_can_group(write):
    long = "d" * 70 + "/" + "e" * 70 + ".v1.png"
    source = folder(write(rows(f"{long},x,,,,", "ä b.c.png,y,,,,"), [long, "ä b.c.png"]))
    first, second = (record.key for record in source.records)
    assert len(first) == 80
    assert first.endswith("e" * 40 + "_v1")
    assert second == "__b_c"


def test_only_reading_decodes(write):
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
        ("file,label,boxes,boxes\na.png,x,,\n", "two columns have one name"),
        ("file,label,boxes\n", "lists no files"),
        ("file,label,boxes\na.png,x\n", "labels.csv line 2: has 2 cells, the first line names 3"),
        ("file,label,boxes\na.png,x,\nb.png,y,,\n", "labels.csv line 3: has 4 cells"),
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
        (rows("a.png,x,,,,", "./a.png,y,,,,"), "labels.csv line 3: a.png is listed twice, first in labels.csv line 2"),
        (rows("a.png,x,,,,", "a.jpg,y,,,,"), "labels.csv line 3: a.jpg has the same key 'a' as a.png"),
        (rows("x/b.png,x,,,,", "x_b.png,y,,,,"), "labels.csv line 3: x_b.png has the same key 'x_b' as x/b.png"),
        *((rows(f'a.png,x,"{cell}",,,'), "labels.csv line 2: boxes of a.png are") for cell in NOT_BOXES),
    ],
)
def test_faults_of_labels_csv(write, text, message):
    root = write(text, ["a.png", "b.png", "a.jpg", "x/b.png", "x_b.png"])
    with pytest.raises(ShardError, match=message) as caught:
        folder(root)
    assert "\n" not in str(caught.value)
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


def test_faults_that_only_the_pixels_tell_name_the_file(write, tmp_path):
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


def test_sources_are_listed_with_a_line_each():
    assert {"folder", "brats", "vindr", "siim", "phantom"} <= set(SOURCES)
    for name, entry in SOURCES.items():
        assert entry.load().__name__ == name
        assert "\n" not in entry.summary


def test_source_functions_are_never_hidden_by_their_modules():
    import egal_shards.sources
    import egal_shards.sources.phantom

    assert all(callable(getattr(egal_shards.sources, name)) for name in SOURCES)
    with pytest.raises(AttributeError, match="nifti"):
        egal_shards.sources.nifti  # noqa: B018
