"""Real data from source through pack and verify, compared with the tables of the datasets."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from egal_shards import ShardSet, pack, verify
from egal_shards.sources import folder, siim
from egal_shards.sources.image_tree import scaled


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def part(origin, target, step):
    """Make a folder with every step-th line of the labels.csv of a dataset, and links to its files."""
    target.mkdir()
    rows = read_rows(origin / "labels.csv")[::step]
    with (target / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for name in {column for column in ("images", "masks") if (origin / column).is_dir()}:
        (target / name).symlink_to(origin / name)
    return rows


def packed_and_verified(source, out, **settings):
    pack(source, out, progress=False, **settings)
    assert verify(out, progress=False).samples == len(source.records)
    shards = ShardSet(out)
    frame = shards.index()
    assert frame.groupby("group").split.nunique().max() == 1
    assert frame.groupby("label").split.nunique().min() == 2
    assert (frame.split == "test").mean() == pytest.approx(0.3, abs=0.05)
    return shards, frame


def test_brain_slices_with_boxes(real_data, tmp_path):
    rows = part(real_data("cheng_brain_mri_320"), tmp_path / "in", 10)
    shards, frame = packed_and_verified(
        folder(tmp_path / "in", group="block:figshare_id:40"), tmp_path / "out", size=160
    )
    sides = {}
    for i, row in enumerate(rows):
        sample = shards[i]
        assert shards.classes[sample.label] == row["label"]
        assert sides.setdefault(int(row["figshare_id"]) // 40, sample.split) == sample.split
        x0, y0, x1, y1 = np.array(json.loads(row["boxes"])[0]) / 2  # 320 → 160
        y, x = np.nonzero(sample.roi)
        assert (x.min(), y.min(), x.max(), y.max()) == pytest.approx((x0, y0, x1 - 1, y1 - 1), abs=0.51)
        assert sample.roi.sum() == len(np.unique(x)) * len(np.unique(y)) == frame.roi_area[i]
        if i % 50 == 0:
            halved = Image.open(tmp_path / "in" / row["file"]).resize((160, 160), Image.Resampling.BILINEAR)
            assert np.array_equal(sample.image[0], halved)


def test_blood_cells_with_masks(real_data, tmp_path):
    rows = part(real_data("wbc_zheng2018"), tmp_path / "in", 1)
    shards, frame = packed_and_verified(
        folder(tmp_path / "in"), tmp_path / "out", size=96, channels=3, resize="squash", image_format="png"
    )
    assert frame.label.value_counts().sort_index().tolist() == sorted(Counter(row["label"] for row in rows).values())[
        :1
    ] + [sum(row["label"] == name for row in rows) for name in shards.classes[1:]]
    share = np.array([float(row["mask_area_fraction"]) for row in rows])
    assert np.abs(frame.roi_area.to_numpy() / 96**2 - share).max() < 0.01
    for i in range(0, 400, 40):
        mask = Image.open(tmp_path / "in" / rows[i]["mask_file"]).convert("L").point(lambda v: 255 * (v > 0))
        near = np.asarray(mask.resize((96, 96), Image.Resampling.NEAREST)) > 0
        assert np.count_nonzero(near != shards[i].roi) < 0.03 * 96**2


def test_chest_radiographs_as_a_folder(real_data, tmp_path):
    rows = part(real_data("siim_covid19_256"), tmp_path / "in", 20)
    source = folder(
        tmp_path / "in",
        group="patient_id",
        dup="dup_group",
        classes=("negative", "typical", "indeterminate", "atypical"),
    )
    shards, frame = packed_and_verified(source, tmp_path / "out", size=128)
    assert frame.roi_area.gt(0).tolist() == [row["boxes"] != "[]" for row in rows]
    for column in ("patient_id", "dup_group"):
        sides = {(row[column], side) for row, side in zip(rows, frame.split, strict=True) if row[column]}
        assert len(sides) == len({name for name, _ in sides})
    assert [shards.classes[label] for label in frame.label] == [row["label"] for row in rows]


def test_official_siim_tables_agree_with_the_curated_ones(real_data):
    """Labels of all 6334 images agree exactly, boxes to the two decimals of labels.csv."""
    root = real_data("siim_covid19_256")
    source = siim(root, meta="labels.csv", group="patient_id", dup="dup_group")
    rows = {row["image_id"]: row for row in read_rows(root / "labels.csv")}
    assert len(source.records) == len(rows) == 6334
    for record in source.records:
        row = rows[record.key]
        assert (record.label, record.group, record.duplicates) == (row["label"], row["patient_id"], row["dup_group"])
        assert record.file == row["file"]
        boxes, curated = scaled(record.load.boxes, record.load.original, 256, 256), json.loads(row["boxes"])
        assert len(boxes) == len(curated)
        if boxes:
            assert np.abs(np.array(boxes) - np.array(curated)).max() <= 0.005 + 1e-9
