"""A set without labels is packed, verified, shown and scored, and never compared."""

import numpy as np
import pytest
from PIL import Image

from bench.querying.conftest import SIZE
from egal_bench.dataset import open_dataset
from egal_bench.errors import BenchError
from egal_shards import ShardError, ShardSet, pack, verify
from egal_shards.inspecting import contact_sheet, summarise
from egal_shards.sources import folder


@pytest.fixture
def write(tmp_path):
    """Return a function that writes eight images and a labels.csv with this header, and returns the folder."""

    def files(header: str, cells=lambda i: ""):
        root = tmp_path / "images"
        root.mkdir()
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 255, (20, 20), np.uint8)
            Image.fromarray(pixels).save(root / f"{i}.png")
        (root / "labels.csv").write_text("\n".join([header, *(f"{i}.png{cells(i)}" for i in range(8))]) + "\n")
        return root

    return files


@pytest.fixture
def unlabelled(write, tmp_path):
    """The shard set of eight images without labels and without ROIs."""
    pack(folder(write("file")), tmp_path / "set", size=SIZE, progress=False)
    return tmp_path / "set"


def test_a_set_without_labels_is_a_pool_of_label_minus_one(unlabelled):
    shards = ShardSet(unlabelled)
    assert (shards.classes, shards.rows.label.tolist()) == ((), [-1] * 8)
    assert shards[0].label == -1
    assert shards.manifest.counts.splits == {"pool": 8, "test": 0}
    assert verify(unlabelled, progress=False).samples == 8


def test_a_set_without_labels_is_shown_in_one_row(unlabelled):
    shards = ShardSet(unlabelled)
    assert list(summarise(shards)) == [""]
    assert contact_sheet(shards, samples=4).size == contact_sheet(shards, samples=4, seed=1).size


def test_rois_and_groups_need_no_label(write, tmp_path):
    root = write("file,boxes,patient", lambda i: ',"[[2,2,9,9]]",p1')
    pack(folder(root, group="patient", boxes="xyxy"), tmp_path / "set", size=SIZE, progress=False)
    shards = ShardSet(tmp_path / "set")
    assert (shards.rows.roi_area > 0).all()
    assert {shards[i].group for i in range(8)} == {"p1"}


@pytest.mark.parametrize("header", ["file,lable", "file,labels"])
def test_a_typing_error_in_label_does_not_drop_the_labels(write, header):
    with pytest.raises(ShardError, match=r"no column 'label' \(did you mean"):
        folder(write(header, lambda i: ",x"))


def test_classes_without_a_label_column_are_refused(write):
    with pytest.raises(ShardError, match="no column 'label'"):
        folder(write("file"), classes=("a", "b"))


def test_a_comparison_refuses_a_set_without_labels(unlabelled):
    with pytest.raises(BenchError, match=r"packed without labels, and a comparison needs .* `egal-bench score` ranks"):
        open_dataset(unlabelled)


def test_a_set_without_labels_and_rois_is_scored(unlabelled, query):
    result = query("entropy", top=3, shards=(str(unlabelled),))
    assert (result.samples, result.chosen) == (8, 3)
    assert query("kcenter", top=3, shards=(str(unlabelled),)).chosen == 3


def test_strategies_that_read_rois_are_refused_without_any(unlabelled, query):
    with pytest.raises(
        BenchError, match=r"--strategy egal: reads the ROI of pool samples, and no sample of .*/set has"
    ):
        query("egal", shards=(str(unlabelled),))
