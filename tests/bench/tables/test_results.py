"""Result tables: what is written is read back, completely or not at all, also by plain Parquet readers."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_bench.errors import BenchError
from egal_bench.tables import results

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


def rows(table: str, n: int = 2) -> list[dict]:
    """Return n rows of `table` without the partition columns."""
    fields = [field for field in results.SCHEMAS[table] if field.name not in results.PARTITION]
    value = {pa.int64(): int, pa.float64(): lambda i: i / 4, pa.string(): lambda i: f"text {i}"}
    return [{field.name: value[field.type](i) for field in fields} for i in range(n)]


@settings(max_examples=40)
@given(dataset=names, strategy=names, seed=st.integers(0, 2**31))
def test_any_name_survives_the_round_trip(tmp_path_factory, dataset, strategy, seed):
    out = tmp_path_factory.mktemp("out")
    for table in results.SCHEMAS:
        path = results.part(out, table, dataset, strategy, seed)
        assert path.parents[4] == out  # a name cannot climb out of its folder
        results.write(path, table, rows(table))
    for table, frame in results.load(out).items():
        assert frame.columns.tolist() == results.SCHEMAS[table].names
        assert frame[["dataset", "strategy", "seed"]].drop_duplicates().values.tolist() == [[dataset, strategy, seed]]
        assert frame[rows(table)[0].keys()].to_dict("records") == rows(table)


def test_plain_readers_see_hive_partitions(tmp_path):
    for strategy, seed in (("random", 0), ("my_module:Mine", 1)):
        results.write(results.part(tmp_path, "rounds", "d", strategy, seed), "rounds", rows("rounds"))
    plain = pd.read_parquet(tmp_path / "rounds")
    assert set(plain.columns) == set(results.SCHEMAS["rounds"].names)
    assert sorted(plain.strategy.astype(str).unique()) == ["my_module:Mine", "random"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = results.part(tmp_path, "rounds", "d", "s", 0)
    results.write(path, "rounds", rows("rounds"))
    before = path.read_bytes()
    with pytest.raises(pa.ArrowInvalid):
        results.write(path, "rounds", [rows("rounds")[0] | {"accuracy": "high"}])
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["part.parquet"]


def test_equal_rows_are_equal_bytes(tmp_path):
    paths = [tmp_path / name / "part.parquet" for name in "ab"]
    for path in paths:
        results.write(path, "selections", rows("selections"))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def _drop(frame):
    return frame.drop_columns(["accuracy"])


def _retype(frame):
    return frame.set_column(frame.schema.get_field_index("labels"), "labels", frame["labels"].cast(pa.int32()))


@pytest.mark.parametrize(("harm", "column"), [(_drop, "accuracy"), (_retype, "labels")])
def test_other_schema_is_refused_by_the_name_of_the_column(tmp_path, harm, column):
    path = results.part(tmp_path, "rounds", "d", "s", 0)
    results.write(path, "rounds", rows("rounds"))
    pq.write_table(harm(pq.ParquetFile(path).read()), path)
    with pytest.raises(BenchError, match=rf"part\.parquet: columns {column}"):
        results.config_hash(path)


def test_truncated_file_is_named(tmp_path):
    path = results.part(tmp_path, "rounds", "d", "s", 0)
    results.write(path, "rounds", rows("rounds"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BenchError, match=r"part\.parquet: unreadable"):
        results.load(tmp_path)


def test_folder_without_results_is_refused(tmp_path):
    with pytest.raises(BenchError, match="not a finished comparison"):
        results.load(tmp_path)
