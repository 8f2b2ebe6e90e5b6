"""The table of measured rates: its quantiles, what a file keeps, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from egal_bench.errors import BenchError
from egal_bench.profiling import measurements

SECONDS = np.array([0.5, 0.2, 0.4, 0.9, 0.31, 0.33])


def test_rates_are_quantiles_of_samples_per_second():
    row = measurements.row("profile", "pass", 64, SECONDS)
    for q in (5, 25, 50, 75, 95):
        assert row[f"rate_q{q:02}"] == pytest.approx(np.percentile(64 / SECONDS, q), rel=1e-12)
    assert row["rate_q05"] < row["rate_q95"]
    assert row["seconds"] == SECONDS.tolist()


def test_a_written_table_is_read_with_where_it_was_measured(tmp_path):
    rows = [measurements.row("profile", name, 64, SECONDS * k, batch=8) for k, name in enumerate(("read", "pass"), 1)]
    path = tmp_path / "new" / "one.parquet"
    measurements.write(path, rows, "cpu")
    table = measurements.load(path)
    assert table["stage"].tolist() == ["read", "pass"]
    assert table["batch"].tolist() == [8, 8]
    np.testing.assert_array_equal(table["seconds"][1], SECONDS * 2)
    assert table["backbone"].isna().all()
    versions = json.loads(table["versions"][0])
    assert versions["torch"]
    assert versions["egal-bench"]
    assert table[["device", "driver", "time"]].notna().all(axis=None)
    assert [file.name for file in path.parent.iterdir()] == ["one.parquet"]


def test_a_table_with_an_unknown_column_is_refused_by_its_name(tmp_path):
    path = tmp_path / "odd.parquet"
    pq.write_table(pa.table({"stage": ["pass"], "speed": [1.0]}), path)
    with pytest.raises(BenchError, match=r"odd\.parquet: columns .*speed"):
        measurements.load(path)


def test_a_table_with_a_column_of_another_type_is_refused(tmp_path):
    path = tmp_path / "odd.parquet"
    at = measurements.SCHEMA.get_field_index("batch")
    pq.write_table(measurements.SCHEMA.set(at, pa.field("batch", pa.string())).empty_table(), path)
    with pytest.raises(BenchError, match="of other types"):
        measurements.load(path)


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", None])
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "broken.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BenchError, match=r"broken\.parquet: not a readable profile") as raised:
        measurements.load(path)
    assert "\n" not in str(raised.value)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "one.parquet"
    measurements.write(path, [measurements.row("profile", "pass", 64, SECONDS)], "cpu")
    before = path.read_bytes()

    def fill_the_disk(table, where):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        measurements.write(path, [measurements.row("profile", "read", 64, SECONDS)], "cpu")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["one.parquet"]
