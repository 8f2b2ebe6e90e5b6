"""Result tables: what is written is read back, completely or not at all, also by plain Parquet readers."""

import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egal_bench.errors import BenchError
from egal_bench.tables.folder import ResultsFolder, RunName
from egal_bench.tables.results import load
from egal_bench.tables.schemas import OPTIONAL, PARTITION, SCHEMAS
from egal_bench.tables.settings import comparable, digest

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
VALUES = {
    pa.int64(): int, pa.float64(): lambda i: i / 4, pa.float32(): lambda i: i / 4, pa.string(): lambda i: f"text {i}",
    pa.bool_(): lambda i: i == 0, pa.list_(pa.float32()): lambda i: [i / 4, i / 8],
}  # fmt: skip
RUN = RunName("d", "s", 0)


def rows(table: str, n: int = 2) -> list[dict]:
    """Return n rows of `table` without the partition columns."""
    fields = [field for field in SCHEMAS[table] if field.name not in PARTITION]
    return [{field.name: VALUES[field.type](i) for field in fields} for i in range(n)]


def tables() -> dict[str, list[dict]]:
    return {table: rows(table) for table in SCHEMAS}


def record(**changes) -> dict:
    """Return the record of a run with these settings."""
    settings = {"init": 10, "data": "a", "strategy": "s"} | changes
    return {"config_hash": digest(settings), "settings": settings, "last_round": 1}


@settings(max_examples=40)
@given(dataset=names, strategy=names, seed=st.integers(0, 2**31))
def test_any_name_survives_the_round_trip(tmp_path_factory, dataset, strategy, seed):
    out = tmp_path_factory.mktemp("out")
    folder, run = ResultsFolder(out), RunName(dataset, strategy, seed)
    folder.write(run, tables(), record())
    assert all(folder.part(table, run).parents[4] == out for table in SCHEMAS)  # no name climbs out of its folder
    for table, frame in load(out).items():
        assert frame.columns.tolist() == SCHEMAS[table].names
        assert frame[["dataset", "strategy", "seed"]].drop_duplicates().values.tolist() == [[dataset, strategy, seed]]
    assert folder.tables(run) == tables()


def test_plain_readers_see_hive_partitions(tmp_path):
    for strategy, seed in (("random", 0), ("my_module:Mine", 1)):
        ResultsFolder(tmp_path).write(RunName("d", strategy, seed), tables(), record())
    plain = pd.read_parquet(tmp_path / "rounds")
    assert set(plain.columns) == set(SCHEMAS["rounds"].names)
    assert sorted(plain.strategy.astype(str).unique()) == ["my_module:Mine", "random"]


def test_failed_write_leaves_the_old_run_and_nothing_else(tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.write(RUN, tables(), record())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(pa.ArrowInvalid):
        folder.write(RUN, tables() | {"selections": [rows("selections")[0] | {"score": "high"}]}, record(init=11))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_equal_rows_are_equal_bytes(tmp_path):
    contents = []
    for name in "ab":
        folder = ResultsFolder(tmp_path / name)
        folder.write(RUN, tables(), record())
        contents.append([folder.part(table, RUN).read_bytes() for table in SCHEMAS])
    assert contents[0] == contents[1]


def test_tables_of_different_runs_are_no_run(tmp_path):
    one, other = ResultsFolder(tmp_path / "one"), ResultsFolder(tmp_path / "other")
    one.write(RUN, tables(), record())
    other.write(RUN, tables(), record(init=11))
    one.part("selections", RUN).write_bytes(other.part("selections", RUN).read_bytes())
    assert one.record(RUN) is None
    with pytest.raises(BenchError, match="no finished run"):
        load(tmp_path / "one")


def test_an_optional_table_of_another_run_is_left_out(tmp_path):
    one, other = ResultsFolder(tmp_path / "one"), ResultsFolder(tmp_path / "other")
    one.write(RUN, tables(), record())
    other.write(RUN, tables(), record(init=11))
    one.part("predictions", RUN).write_bytes(other.part("predictions", RUN).read_bytes())
    assert set(load(tmp_path / "one")) == set(SCHEMAS) - {"predictions"}


def test_load_returns_one_setting_and_names_the_others(tmp_path):
    folder = ResultsFolder(tmp_path)
    for seed in range(3):
        folder.write(RunName("d", "a", seed), tables(), record())
    folder.write(RunName("d", "b", 0), tables(), record(init=11))
    other = comparable(record(init=11)["settings"])
    with pytest.warns(UserWarning, match=rf"also holds {other} \(1 runs\)"):
        assert set(load(tmp_path)["rounds"].strategy) == {"a"}
    assert set(load(tmp_path, settings=other)["rounds"].strategy) == {"b"}
    assert set(load(tmp_path, settings="all")["rounds"].strategy) == {"a", "b"}
    with pytest.raises(BenchError, match="no runs of settings 'nothing'"):
        load(tmp_path, settings="nothing")


def test_runs_on_other_data_of_one_name_are_not_mixed(tmp_path):
    folder = ResultsFolder(tmp_path)
    for seed in range(2):
        folder.write(RunName("d", "a", seed), tables(), record(data="new"))
    folder.write(RunName("d", "b", 0), tables(), record(data="old"))
    assert set(load(tmp_path)["rounds"].strategy) == {"a"}


def _drop(frame):
    return frame.drop_columns(["accuracy"])


def _retype(frame):
    return frame.set_column(frame.schema.get_field_index("labels"), "labels", frame["labels"].cast(pa.int32()))


@pytest.mark.parametrize(("harm", "column"), [(_drop, "accuracy"), (_retype, "labels")])
def test_other_schema_is_refused_by_the_name_of_the_column(tmp_path, harm, column):
    folder = ResultsFolder(tmp_path)
    folder.write(RUN, tables(), record())
    path = folder.part("rounds", RUN)
    table = pq.ParquetFile(path).read()
    pq.write_table(harm(table).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(BenchError, match=rf"part\.parquet: columns {column}"):
        load(tmp_path)


def test_truncated_file_is_named(tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.write(RUN, tables(), record())
    path = folder.part("rounds", RUN)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BenchError, match=r"part\.parquet: unreadable"):
        load(tmp_path)


@pytest.mark.parametrize("table", OPTIONAL)
def test_a_truncated_optional_table_is_left_out_with_a_note(tmp_path, capsys, table):
    folder = ResultsFolder(tmp_path)
    folder.write(RUN, tables(), record())
    path = folder.part(table, RUN)
    path.write_bytes(path.read_bytes()[:-9])
    assert set(load(tmp_path)) == set(SCHEMAS) - {table}
    assert capsys.readouterr().err.count(f"left out: {path}: unreadable") == 1
    assert not folder.is_intact(RUN)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_no_table_and_does_not_block(tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.write(RUN, tables(), record())
    path = folder.part("rounds", RUN)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BenchError, match=r"part\.parquet: unreadable \(not a regular file\)"):
        load(tmp_path)
    folder.write(RUN, tables(), record())
    assert folder.tables(RUN) == tables()


def test_rows_are_written_in_one_order(tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.write(RUN, {table: rows(table)[::-1] for table in SCHEMAS}, record())
    assert folder.tables(RUN) == tables()


def test_folder_without_results_is_refused(tmp_path):
    with pytest.raises(BenchError, match="no finished run"):
        load(tmp_path)


def test_tables_of_an_earlier_version_are_not_read_as_ours(tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.write(RUN, tables(), record())
    for table in SCHEMAS:
        path = folder.part(table, RUN)
        pq.write_table(pq.ParquetFile(path).read().replace_schema_metadata(None), path)
    with pytest.raises(BenchError, match="no finished run"):
        load(tmp_path)
