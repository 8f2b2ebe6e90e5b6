"""Hugging Face image folders: metadata as CSV or JSON lines, masks, boxes and the split of their folders."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

from egal_shards import ShardError
from egal_shards.sources import imagefolder


@pytest.fixture
def write(tmp_path):
    """Write images of 8×10 pixels (w×h) and a metadata file with these rows, in one format; return the folder."""

    def make(rows, kind="jsonl", at="."):
        folder = tmp_path / at
        for row in rows:
            for name in filter(None, (row.get("file_name"), row.get("mask_file_name"))):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.eye(10, 8, dtype=np.uint8)).save(folder / name)
        with (folder / f"metadata.{kind}").open("w", newline="") as file:
            if kind == "jsonl":
                file.writelines(json.dumps(row) + "\n\n" for row in rows)
            else:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        return tmp_path

    return make


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_labels_groups_and_masks(write, kind):
    rows = [
        {"file_name": "x/a.png", "label": "1", "mask_file_name": "m/a.png", "patient": "p"},
        {"file_name": "b.png", "label": "0", "mask_file_name": "", "patient": "p"},
    ]
    source = imagefolder(write(rows, kind), group="patient")
    assert source.classes == ("0", "1")
    first, second = source.records
    assert (first.key, first.label, first.group, second.key) == ("x_a", "1", "p", "b")
    np.testing.assert_array_equal(first.load().mask, np.eye(10, 8, dtype=bool))
    assert second.load().mask is None


def test_numbers_and_boxes_of_json_lines(write):
    rows = [
        {"file_name": "a.png", "label": 11, "objects": {"bbox": [[1, 2, 3, 4], [0, 0, 8, 10]], "categories": [0, 0]}},
        {"file_name": "b.png", "label": 9, "objects": None},
        {"file_name": "c.png", "label": 10},
    ]
    source = imagefolder(write(rows))
    assert source.classes == ("9", "10", "11")
    assert [record.load().boxes for record in source.records] == [((1, 2, 4, 6), (0, 0, 8, 10)), (), ()]


def test_the_split_of_folders_can_be_kept(write):
    for side in ("train", "validation", "test"):
        root = write([{"file_name": f"{i}.png", "label": "ab"[i]} for i in range(2)], at=side)
    kept, anew = imagefolder(root, split="folders"), imagefolder(root)
    assert [(record.key, record.split) for record in kept.records] == [
        *(("test_0", "test"), ("test_1", "test"), ("train_0", "pool"), ("train_1", "pool")),
        *(("validation_0", "pool"), ("validation_1", "pool")),
    ]
    assert {record.split for record in anew.records} == {""}
    assert len({record.group for record in anew.records}) == 6


FAULTS = {
    "no label column": ([{"file_name": "a.png", "lable": "x"}], {}, r"no column 'label' \(did you mean 'lable'\?\)"),
    "absent mask column": ([{"file_name": "a.png", "label": "x"}], {"mask": "seg"}, "has no column 'seg'"),
    "empty label": ([{"file_name": "a.png", "label": None}], {}, "metadata.jsonl line 1: label is empty"),
    "climbing": ([{"file_name": "../a.png", "label": "x"}], {}, "is not a path inside the folder"),
    "two labels": ([{"file_name": "a.png", "label": c} for c in "xy"], {}, "line 3: a.png has label 'y', but 'x' in"),
    "unknown class": ([{"file_name": "a.png", "label": "x"}], {"classes": ["y"]}, "which is none of the classes"),
    "no side": ([{"file_name": "a.png", "label": "x"}], {"split": "folders"}, "is in no folder named train"),
    "boxes as text": ([{"file_name": "a.png", "label": "x", "objects": "[1"}], {}, "objects is '.1'"),
    "flat box": ([{"file_name": "a.png", "label": "x", "objects": {"bbox": [[1, 2, 0, 4]]}}], {}, "not above 0"),
    "half an emoji": ([{"file_name": "a.png", "label": "\ud83d"}], {}, "line 1: .* is not valid Unicode"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_named(write, case):
    rows, settings, message = FAULTS[case]
    with pytest.raises(ShardError, match=message):
        imagefolder(write(rows), **settings)


@pytest.mark.parametrize("line", ["[1]", "{", "[" * 100_000, "\udcff", "3"])
def test_lines_that_are_no_objects_are_refused(write, line):
    root = write([{"file_name": "a.png", "label": "x"}])
    with (root / "metadata.jsonl").open("ab") as file:
        file.write(line.encode(errors="surrogateescape"))
    with pytest.raises(ShardError, match=r"metadata.jsonl line 3: is not a JSON object"):
        imagefolder(root)


def test_a_folder_without_metadata_is_refused(tmp_path):
    with pytest.raises(ShardError, match=r"holds no metadata.csv or metadata.jsonl; for a labels.csv"):
        imagefolder(tmp_path)
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(ShardError, match="is not a regular file"):
        imagefolder(tmp_path)
