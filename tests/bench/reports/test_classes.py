"""Tables name classes as the shards do, and number them where names are unknown or differ."""

import pandas as pd
import pytest

from bench.reports.made_up import write_results
from egal_bench.reports.classes import ClassNames
from egal_bench.reports.question import Question
from egal_bench.reports.report import write_report
from egal_shards import ShardSet, pack
from egal_shards.sources import phantom

TWO = ClassNames({"cheng": ("glioma", "pituitary"), "siim": ("typical", "atypical"), "gone": ()})


@pytest.mark.parametrize(
    ("datasets", "name", "legend"),
    [
        (["cheng"], "pituitary", ""),
        (["gone"], "class 1", ""),
        (["cheng", "siim"], "class 1",
         " cheng: class 0 is glioma, class 1 is pituitary. siim: class 0 is typical, class 1 is atypical."),
        (["cheng", "gone"], "class 1", " cheng: class 0 is glioma, class 1 is pituitary."),
    ],
)  # fmt: skip
def test_a_column_has_a_name_only_if_all_data_sets_share_it(datasets, name, legend):
    assert TWO.shared(datasets, 1) == name
    assert TWO.legend(datasets) == legend


@pytest.mark.usefixtures("unrendered")
def test_the_tables_of_a_report_name_the_classes(tmp_path):
    pack(phantom(samples=60, size=32, roi_area=0.08, seed=0), tmp_path / "set", size=32, progress=False)
    shards = ShardSet(tmp_path / "set")
    write_results(tmp_path / "runs", seeds=range(2), shards=shards)
    write_report([tmp_path / "runs"], tmp_path, Question())
    first = shards.classes[0]
    tables = tmp_path / "tables"
    assert f"sensitivity, {first}" in (tables / "classes.md").read_text().replace("\\", "")
    assert f"taken for {first}" in (tables / "confusion_1.md").read_text().replace("\\", "")
    for name in ("classes", "class_shares", "confusion_1"):
        assert first in set(pd.read_csv(tables / f"{name}.csv")["class_name"])
