"""The SIIM source: official tables in, boxes in file pixels out."""

import ast
import csv

import numpy as np
import pytest
from PIL import Image

from egal_shards import ShardError
from egal_shards.sources import siim

IMAGES = (
    "id,boxes,label,StudyInstanceUID\n"
    "i1_image,,opacity 1 100 200 300 400 opacity 0.5 0 0 50 1000,s1\n"
    "i2_image,,none 1 0 0 1 1,s1\n"
    "i3_image,,none 1 0 0 1 1,s2\n"
)
STUDIES = (
    "id,Negative for Pneumonia,Typical Appearance,Indeterminate Appearance,Atypical Appearance\n"
    "s1_study,0,1,0,0\ns2_study,1,0,0,0\ns3_study,0,0,0,1\n"
)
META = "image_id,orig_width,orig_height,patient,twin\ni1,500,1000,p1,\ni2,500,1000,p1,t\ni3,800,800,p2,t\n"


@pytest.fixture
def write(tmp_path):
    def make(images=IMAGES, studies=STUDIES, meta=META, files=("a/i1.png", "a/i2.jpg", "b/i3.PNG")):
        for name in files:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            if name.endswith("dcm"):
                (tmp_path / name).write_bytes(b"DICM")
            else:
                Image.fromarray(np.zeros((40, 20), np.uint8)).save(tmp_path / name)
        for name, text in (
            ("my_train_image_level.csv", images),
            ("train_study_level.csv", studies),
            ("meta.csv", meta),
        ):
            if text is not None:
                (tmp_path / name).write_text(text)
        return tmp_path

    return make


def test_boxes_labels_and_groups(write):
    source = siim(write(), meta="meta.csv", group="patient", dup="twin")
    assert source.classes == ("negative", "typical", "indeterminate", "atypical")
    assert [record.key for record in source.records] == ["i1", "i2", "i3"]
    assert [record.file for record in source.records] == ["a/i1.png", "a/i2.jpg", "b/i3.PNG"]
    assert [record.label for record in source.records] == ["typical", "typical", "negative"]
    assert [record.group for record in source.records] == ["p1", "p1", "p2"]
    assert [record.duplicates for record in source.records] == ["", "t", "t"]
    first = source.records[0].load()
    assert np.allclose(first.boxes, [(4, 8, 12, 16), (0, 0, 2, 40)], rtol=0, atol=1e-12)  # 500×1000 → 20×40
    assert source.records[1].load().boxes == ()
    assert "note" not in source.made


def test_studies_are_the_default_groups_and_the_user_is_told(write):
    source = siim(write(), meta=str(write() / "meta.csv"))
    assert [record.group for record in source.records] == ["s1", "s1", "s2"]
    assert source.made["group"] == "StudyInstanceUID"
    assert "a patient with several studies may span pool and test" in source.made["note"]


def test_without_boxes_no_meta_is_needed(write):
    root = write(
        images=IMAGES.replace("opacity 1 100 200 300 400 opacity 0.5 0 0 50 1000", "none 1 0 0 1 1"), meta=None
    )
    assert siim(root).records[0].load().boxes == ()


def test_a_box_may_leave_the_original_by_a_thousandth(write):
    source = siim(write(images=IMAGES.replace("100 200 300 400", "-0.4 200 300 1000.9")), meta="meta.csv")
    assert source.records[0].load().boxes[0] == pytest.approx((0, 8, 12, 40))
    source = siim(write(images=IMAGES.replace("100 200 300 400", "-0.6 200 300 1000.9")), meta="meta.csv")
    assert source.records[0].load().boxes[0][0] == pytest.approx(-0.6 * 20 / 500)  # left for `pack` to refuse


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        (
            {},
            {},
            "my_train_image_level.csv line 2: the boxes of image i1 are in pixels of its original DICOM",
        ),
        ({}, {"group": "patient"}, "group and dup name columns of meta"),
        ({}, {"meta": "absent.csv"}, "absent.csv: No such file"),
        ({}, {"meta": "meta.csv", "group": "patients"}, r"did you mean 'patient'\?"),
        ({"meta": META.replace("i3,800,800,p2,t\n", "")}, {"meta": "meta.csv"}, "line 4: image i3 is not in meta"),
        ({"meta": META + "i3,1,1,,\n"}, {"meta": "meta.csv"}, "meta.csv line 5: image i3 is listed twice"),
        ({"meta": META.replace("500", "0", 1)}, {"meta": "meta.csv"}, "meta.csv line 2: orig_width is '0'"),
        ({"meta": META.replace("500", "wide", 1)}, {"meta": "meta.csv"}, "orig_width is 'wide', not a number"),
        ({"meta": META.replace("orig_width", "width")}, {"meta": "meta.csv"}, "has no column 'orig_width'"),
        ({"studies": None}, {"meta": "meta.csv"}, r"holds 0 files named \*train_study_level.csv"),
        (
            {"studies": STUDIES.replace("s2_study,1", "s2_study,0")},
            {"meta": "meta.csv"},
            "line 3: study s2_study has 0 classes",
        ),
        (
            {"studies": STUDIES.replace("s1_study,0", "s1_study,1")},
            {"meta": "meta.csv"},
            "line 2: study s1_study has 2 classes",
        ),
        (
            {"studies": STUDIES.replace("s2_study", "s9_study")},
            {"meta": "meta.csv"},
            "line 4: study s2 is not in the study",
        ),
        ({"images": IMAGES.replace("300 400 op", "300 op")}, {"meta": "meta.csv"}, "line 2: label .* is not repeated"),
        ({"images": IMAGES.replace("100 200", "x 200")}, {"meta": "meta.csv"}, "line 2: label .* is not repeated"),
        ({"images": IMAGES.replace("100 200", "nan 200")}, {"meta": "meta.csv"}, "line 2: label .* is not repeated"),
        ({"images": IMAGES.replace("100 200", "300 200")}, {"meta": "meta.csv"}, "line 2: label .* is not repeated"),
        (
            {"images": IMAGES.replace("i3_image", "i4_image")},
            {"meta": "meta.csv"},
            "line 4: there is no i4.dcm",
        ),
        ({"files": ("a/i1.png", "b/i1.jpg", "i2.jpg", "i3.png")}, {"meta": "meta.csv"}, "for the same image; keep one"),
        ({"files": ("i1.dcm", "a/i1.jpg", "i2.jpg", "i3.png")}, {}, "i1.dcm: there is .*i1.jpg for the same image"),
        ({}, {"meta": "meta.csv", "window": (3, 3)}, "window .* is not LOW,HIGH with LOW below HIGH"),
    ],
)
def test_faults(write, files, settings, message):
    root = write(**files)
    with pytest.raises(ShardError, match=message) as caught:
        siim(root, **settings)
    assert "\n" not in str(caught.value)


def test_two_tables_of_a_kind(write):
    root = write()
    (root / "old_train_image_level.csv").write_text(IMAGES)
    with pytest.raises(ShardError, match=r"holds 2 files named \*train_image_level.csv"):
        siim(root)
    with pytest.raises(ShardError, match="No such file"):
        siim(root / "absent")


def test_the_dicom_tree(write):
    """study/series/image.dcm, whose boxes need no scaling; patients of a table that has no sizes."""
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from shards.dicom_files import spread
    from shards.dicom_files import write as write_dicom

    root = write(files=(), meta="image_id,patient\ni1,p1\ni2,p1\ni3,p2\n")
    values = np.random.default_rng(0).integers(0, 60000, (1000, 500)).astype(np.uint16)
    for study, series, image in [("s1", "x", "i1"), ("s1", "y", "i2"), ("s2", "z", "i3")]:
        write_dicom(root / "train" / study / series / f"{image}.dcm", values)
    source = siim(root, meta="meta.csv", group="patient")
    assert [record.file for record in source.records] == ["train/s1/x/i1.dcm", "train/s1/y/i2.dcm", "train/s2/z/i3.dcm"]
    assert [record.group for record in source.records] == ["p1", "p1", "p2"]
    raw = source.records[0].load()
    assert raw.boxes == ((100, 200, 300, 400), (0, 0, 50, 1000))
    np.testing.assert_allclose(raw.image, spread(values), rtol=0, atol=1e-6)
    assert [record.group for record in siim(root).records] == ["s1", "s1", "s2"]


def test_the_two_columns_of_the_official_table_agree(real_data):
    """`boxes`, a literal of x, y, width and height that is not read, against what is read from `label`."""
    root = real_data("siim_covid19_256")
    read = {record.key: record.load.boxes for record in siim(root, meta="labels.csv").records}
    with (root / "official_train_image_level.csv").open(newline="") as file:
        official = {row["id"].removesuffix("_image"): row["boxes"] for row in csv.DictReader(file)}
    assert read.keys() == official.keys()
    assert sum(map(len, read.values())) == 7853
    for key, text in official.items():
        corners = [(b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"]) for b in ast.literal_eval(text or "[]")]
        np.testing.assert_allclose(np.reshape(read[key], (-1, 4)), np.reshape(corners, (-1, 4)), rtol=0, atol=1e-4)
