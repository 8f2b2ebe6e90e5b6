"""VinDr-CXR: what each rule makes of several findings by several readers, in both releases' tables."""

import json

import numpy as np
import pytest
from PIL import Image

from egal_shards import ShardError, ShardSet, pack, verify
from egal_shards.sources import vindr
from egal_shards.sources.vindr_cxr import NO_FINDING

KAGGLE = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
PHYSIONET = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n"
HEART, NODULE = "Cardiomegaly", "Nodule/Mass"
FINDINGS = {  # image: (reader, class, box) in the order of the table
    "all": [("R1", HEART, (2, 4, 20, 16)), ("R2", HEART, (6, 4, 24, 16)), ("R3", HEART, (4, 8, 20, 20))],
    "two": [
        ("R3", NODULE, (0, 0, 8, 8)),
        ("R1", HEART, (2, 2, 10, 10)),
        ("R2", HEART, (4, 4, 12, 12)),
        ("R2", HEART, (20, 10, 24, 14)),
        ("R1", NODULE, (1, 1, 3, 3)),
        ("R1", NODULE, (4, 4, 5, 5)),
    ],
    "lone": [("R1", NO_FINDING, None), ("R2", NO_FINDING, None), ("R3", NODULE, (1, 1, 9, 9))],
    "none": [("R1", NO_FINDING, None), ("R2", NO_FINDING, None), ("R3", NO_FINDING, None)],
    "split": [("R1", NODULE, (1, 1, 3, 3)), ("R2", HEART, (2, 2, 8, 8)), ("R3", NO_FINDING, None)],
    "apart": [("R1", NODULE, (0, 0, 4, 4)), ("R2", NODULE, (10, 10, 14, 14))],
}
IDS = {"Cardiomegaly": 3, "Nodule/Mass": 8, NO_FINDING: 14}
WIDTH, HEIGHT = 26, 22


def rows(kaggle, findings=FINDINGS):
    for image, marks in findings.items():
        for reader, name, box in marks:
            cells = ",".join(map(str, box)) if box else ",,,"
            yield f"{image},{name},{IDS[name]},{reader},{cells}" if kaggle else f"{image},{reader},{name},{cells}"


def tree(root, table="train.csv", findings=FINDINGS, size=(WIDTH, HEIGHT)):
    kaggle = table == "train.csv"
    (root / table).parent.mkdir(parents=True, exist_ok=True)
    (root / table).write_text((KAGGLE if kaggle else PHYSIONET) + "\n".join(rows(kaggle, findings)) + "\n")
    (root / "train").mkdir(exist_ok=True)
    for image in findings:
        Image.fromarray(np.zeros(size[::-1], np.uint8)).save(root / "train" / f"{image}.png")
    (root / "meta.csv").write_text(
        "image_id,orig_width,orig_height,patient\n" + "".join(f"{i},{WIDTH},{HEIGHT},p-{i[0]}\n" for i in findings)
    )
    return root


def read(root, **settings):
    return vindr(root, **{"meta": "meta.csv", **settings})


def labels(source):
    return {record.key: record.label for record in source.records}


@pytest.mark.parametrize("table", ["train.csv", "annotations_train.csv", "annotations/annotations_train.csv"])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"label": "majority"}, {"all": HEART, "two": HEART, "lone": NO_FINDING, "none": NO_FINDING, "apart": NODULE}),
        (
            {"label": "first"},
            {"all": HEART, "two": NODULE, "lone": NO_FINDING, "none": NO_FINDING, "split": NODULE, "apart": NODULE},
        ),
        ({"label": "drop-multi"}, {"all": HEART, "none": NO_FINDING, "apart": NODULE}),
        # votes of "two": two readers each; the class listed first wins, and the reader with two boxes has one vote
        ({"label": "majority", "classes": [NODULE, HEART]}, {"all": HEART, "two": NODULE, "apart": NODULE}),
        ({"label": "drop-multi", "classes": [NODULE]}, dict.fromkeys(["two", "lone", "split", "apart"], NODULE)),
        # one of three readers is no majority, though the others marked nothing that is packed
        ({"label": "majority", "classes": [NODULE]}, {"two": NODULE, "apart": NODULE}),
    ],
)
def test_label_rules(tmp_path, table, settings, expected):
    source = read(tree(tmp_path, table), **settings)
    assert labels(source) == expected
    assert source.made["left_out"] == len(FINDINGS) - len(expected)
    left_out = len(FINDINGS) - len(expected)
    assert f"{left_out} image{'' if left_out == 1 else 's'} left out by label" in source.made["note"]


def test_classes_have_the_order_of_their_ids_no_finding_last(tmp_path):
    assert read(tree(tmp_path / "k")).classes == ("Cardiomegaly", "Nodule/Mass", NO_FINDING)
    assert read(tree(tmp_path / "k"), classes=[NO_FINDING, "Nodule/Mass"]).classes == (NO_FINDING, "Nodule/Mass")


def test_classes_without_ids_have_the_order_of_the_table(tmp_path):
    findings = {image: FINDINGS[image] for image in ("none", "apart", "all")}
    assert read(tree(tmp_path, "annotations_train.csv", findings)).classes == (NODULE, HEART, NO_FINDING)


def covered(boxes):
    """bool [H,W] by the definition: pixels whose centre is in a box."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return np.any([(x >= x0) & (x < x1) & (y >= y0) & (y < y1) for x0, y0, x1, y1 in boxes], axis=0)


@pytest.mark.parametrize(("roi", "least"), [("union", 1), ("majority", 2), ("intersection", 3)])
def test_roi_rules(tmp_path, roi, least):
    source = read(tree(tmp_path), roi=roi)
    by_key = {record.key: record.load() for record in source.records}
    votes = sum(covered([box]).astype(int) for _, _, box in FINDINGS["all"])
    assert np.array_equal(drawn(by_key["all"]), votes >= least)
    mine = [
        covered([b for r, n, b in FINDINGS["two"] if (r, n) == (reader, "Cardiomegaly")]) for reader in ("R1", "R2")
    ]
    assert np.array_equal(drawn(by_key["two"]), sum(mine) >= min(least, 2))  # of two readers, more than half are both
    assert np.array_equal(
        drawn(by_key["apart"]),
        np.zeros((HEIGHT, WIDTH), bool) if least > 1 else covered([(0, 0, 4, 4), (10, 10, 14, 14)]),
    )
    assert not drawn(by_key["none"]).any()


@pytest.mark.parametrize(("roi", "least"), [("majority", 2), ("intersection", 3)])
def test_pixels_count_by_their_centres(tmp_path, roi, least):
    corners = np.random.default_rng(0).uniform(0, 11, (3, 4)) + np.array([0, 0, 11, 11])
    marks = [(f"R{i}", HEART, tuple(box.tolist())) for i, box in enumerate(corners)]
    [raw] = [record.load() for record in read(tree(tmp_path, findings={"odd": marks}), roi=roi).records]
    votes = sum(covered([box]).astype(int) for _, _, box in marks)
    assert np.array_equal(raw.mask, votes >= least)
    assert 0 < raw.mask.sum() < np.count_nonzero(votes)


def drawn(raw):
    return raw.mask if raw.mask is not None else covered(raw.boxes) if raw.boxes else np.zeros((HEIGHT, WIDTH), bool)


def test_agreement_goes_into_the_json_of_the_sample(tmp_path):
    root = tree(tmp_path, findings={**FINDINGS, "again": FINDINGS["apart"]})
    pack(read(root, classes=["Cardiomegaly", "Nodule/Mass"]), tmp_path / "set", size=26, progress=False)
    assert verify(tmp_path / "set", progress=False).samples == 4
    shards = ShardSet(tmp_path / "set")
    frame = shards.index()
    row = frame.iloc[frame.key.tolist().index("two")]
    with (tmp_path / "set" / "shard-000000.tar").open("rb") as file:
        file.seek(row.offsets[4])
        about = json.loads(file.read(row.offsets[5]))
    assert about["class"] == "Cardiomegaly"
    assert about["about"] == {
        "readers": 3,
        "votes": {"Nodule/Mass": 2, "Cardiomegaly": 2},
        "reader_boxes": {"R1": [[2, 2, 10, 10]], "R2": [[4, 4, 12, 12], [20, 10, 24, 14]]},
    }
    assert about["boxes"] == [[2, 2, 10, 10], [4, 4, 12, 12], [20, 10, 24, 14]]


def test_boxes_scale_from_the_original_to_the_file(tmp_path):
    source = read(tree(tmp_path, size=(WIDTH // 2, HEIGHT // 2)), roi="intersection")
    union = read(tmp_path)
    [record] = [record for record in union.records if record.key == "all"]
    assert record.load().boxes == ((1, 2, 10, 8), (3, 2, 12, 8), (2, 4, 10, 10))
    [record] = [record for record in source.records if record.key == "all"]
    expected = np.zeros((HEIGHT // 2, WIDTH // 2), bool)
    expected[4:8, 3:10] = True
    assert np.array_equal(record.load().mask, expected)


def test_dicom_files_are_the_originals(tmp_path):
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from shards.dicom_files import spread, write

    root = tree(tmp_path)
    values = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH)).astype(np.uint16)
    for image in FINDINGS:
        (root / "train" / f"{image}.png").unlink()
        write(
            root / "train" / f"{image}.dicom",
            values,
            PhotometricInterpretation="MONOCHROME1",
            BitsStored=12,
            HighBit=11,
        )
    source = vindr(root)
    assert source.records[0].file == "train/all.dicom"
    raw = source.records[0].load()
    assert raw.boxes == tuple(box for _, _, box in FINDINGS["all"])
    np.testing.assert_allclose(raw.image, 1 - spread(values), rtol=0, atol=1e-6)
    assert np.allclose(vindr(root, window=(0, 4095)).records[0].load().image, 1 - values / 4095, atol=1e-6)


def test_groups_are_images_unless_a_table_says_otherwise(tmp_path):
    source = read(tree(tmp_path))
    assert all(record.group == record.key for record in source.records)
    assert "the data name no patients" in source.made["note"]
    source = read(tmp_path, group="patient")
    assert {record.key: record.group for record in source.records}["apart"] == "p-a"
    assert "patients" not in source.made["note"]


def test_diagnoses_of_physionet_join_without_boxes(tmp_path):
    root = tree(tmp_path, "annotations/annotations_train.csv")
    marks = ["all,R1,1,0,1", "all,R2,1,0,1", "all,R3,1,0,0", "none,R1,0,1,0", "none,R2,0,1,0", "none,R3,0,1,0"]
    table = root / "annotations" / "image_labels_train.csv"
    table.write_text("image_id,rad_id,Cardiomegaly,No finding,Pneumonia\n" + "\n".join(marks) + "\n")
    source = read(root, classes=["Pneumonia", NO_FINDING])
    assert [record.about["readers"] for record in read(root, label="first").records] == [3, 3, 3, 3, 3, 2]
    assert labels(source) == {"all": "Pneumonia", "lone": NO_FINDING, "none": NO_FINDING}
    assert source.records[0].about["votes"] == {"Cardiomegaly": 3, "Pneumonia": 2}
    assert drawn(source.records[0].load()).sum() == 0
    assert read(root, label="first").classes == ("Cardiomegaly", "Nodule/Mass", NO_FINDING)
    table.write_text("image_id,rad_id,Pneumonia\nall,R1,2\n")
    with pytest.raises(ShardError, match=r"image_labels_train.csv line 2: Pneumonia is '2', not 0 or 1"):
        read(root)


@pytest.mark.parametrize(
    ("old", "new", "settings", "message"),
    [
        ("", "", {"label": "vote"}, "label 'vote' is none of majority, first, drop-multi"),
        ("", "", {"roi": "mean"}, "roi 'mean' is none of union, majority, intersection"),
        (
            "",
            "",
            {"classes": ["Cardiomegalie"]},
            r"there is no class 'Cardiomegalie' \(did you mean 'Cardiomegaly'\?\)",
        ),
        ("2,4,20,16", "2,4,1,16", {}, "train.csv line 2: the box of Cardiomegaly is not numbers x_min < x_max"),
        ("2,4,20,16", "2,4,nan,16", {}, "line 2: the box of Cardiomegaly"),
        ("2,4,20,16", ",,,", {}, "line 2: the box of Cardiomegaly"),
        ("all,", "gone,", {}, "line 2: there is no gone.dcm, .dicom, .png"),
        ("Cardiomegaly,3", "Cardiomegaly,x", {}, "line 2: class_id is 'x'"),
        ("", "", {"meta": None}, "line 2: the boxes of image all are in pixels of its original DICOM file"),
        ("", "", {"meta": None, "group": "patient"}, "group and dup name columns of meta"),
        ("rad_id", "reader", {}, "has no column 'rad_id'"),
    ],
)
def test_faults(tmp_path, old, new, settings, message):
    root = tree(tmp_path)
    text = (root / "train.csv").read_text()
    if new == "gone,":
        text = text.replace("\nall,", "\ngone,")
    elif old:
        text = text.replace(old, new)
    (root / "train.csv").write_text(text)
    with pytest.raises(ShardError, match=message) as caught:
        read(root, **{"label": "first", **settings})
    assert "\n" not in str(caught.value)


def test_a_rule_that_leaves_nothing(tmp_path):
    root = tree(tmp_path, findings={image: FINDINGS[image] for image in ("two", "split")})
    with pytest.raises(ShardError, match="label 'drop-multi' leaves out all 2 images; choose other classes"):
        read(root, label="drop-multi")


def test_exactly_one_table(tmp_path):
    with pytest.raises(ShardError, match=r"holds 0 of train.csv, annotations_train.csv"):
        vindr(tmp_path)
    tree(tmp_path)
    tree(tmp_path, "annotations_train.csv")
    with pytest.raises(ShardError, match=r"holds 2 of train.csv, annotations_train.csv"):
        read(tmp_path)


def test_boxes_outside_the_image_stop_every_roi_rule(tmp_path):
    wild = {**FINDINGS, "all": [("R1", "Cardiomegaly", (2, 4, 99, 16)), *FINDINGS["all"][1:]]}
    root = tree(tmp_path, findings=wild)
    for roi in ("union", "intersection"):
        with pytest.raises(ShardError, match=r"all.png: box .* leaves its image"):
            pack(read(root, roi=roi, classes=["Cardiomegaly", NO_FINDING]), tmp_path / "set", size=8, progress=False)


def test_half_of_the_readers_are_no_majority(tmp_path):
    root = tree(tmp_path, findings={**FINDINGS, "half": [("R1", HEART, (1, 1, 5, 5)), ("R2", NO_FINDING, None)]})
    assert "half" not in labels(read(root))
    assert labels(read(root, label="first"))["half"] == HEART
