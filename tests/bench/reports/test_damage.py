"""Results folders with missing or damaged files: the report names them and goes on, or says how to compute them."""

import json
import re

import pyarrow.parquet as pq
import pytest

from bench.reports.made_up import write_results
from egal_bench.errors import BenchError
from egal_bench.reports.joining import join
from egal_bench.reports.question import Question
from egal_bench.reports.report import write_report
from egal_bench.tables.folder import ResultsFolder, RunName
from egal_bench.tables.schemas import OPTIONAL, SCHEMAS
from egal_shards import ShardSet, pack
from egal_shards.sources import phantom

RUN = RunName("cheng", "egal", 1)
REQUIRED = [table for table in SCHEMAS if table not in OPTIONAL]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "set"
    pack(phantom(samples=60, size=32, roi_area=0.08, seed=0), path, size=32, progress=False)
    return ShardSet(path)


@pytest.fixture
def folder(tmp_path, shards):
    """Four runs with every table."""
    return ResultsFolder(write_results(tmp_path / "runs", strategies=("random", "egal"), seeds=range(2), shards=shards))


def flip_bytes(path):
    """Change the last bytes of the first column's pages."""
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    for place in range(start + column.total_compressed_size - 4, start + column.total_compressed_size):
        data[place] ^= 0xFF
    path.write_bytes(data)


def damage(folder, table, kind):
    path = folder.part(table, RUN)
    if kind == "deleted":
        path.unlink()
    elif kind == "flipped":
        flip_bytes(path)
    else:
        path.write_bytes(path.read_bytes()[:-9])
    return path


@pytest.mark.parametrize("kind", ["deleted", "flipped", "truncated"])
@pytest.mark.parametrize("table", OPTIONAL)
def test_a_lost_optional_table_is_named_and_left_out(folder, capsys, table, kind):
    path = damage(folder, table, kind)
    joined = join([folder.path])
    assert [run for run in joined.records if table not in joined.kept[run]] == [RUN]
    assert all(set(SCHEMAS) - {table} <= tables for tables in joined.kept.values())
    (problem,) = joined.problems
    if kind == "deleted":
        assert problem.startswith(f"cheng: 1 of 4 runs lacks the table {table} (egal seed 1), so")
    else:
        assert problem.startswith(
            f"cheng, egal, seed 1 is shown without its table {table}, which cannot be read: {path}"
        )
    assert problem in capsys.readouterr().err


def test_lost_tables_stand_at_the_top_of_the_report(folder, monkeypatch):
    for name in ("draw_figures", "draw_galleries"):  # they take most of the time
        monkeypatch.setattr(f"egal_bench.reports.report.{name}", lambda *_: None)
    for table in OPTIONAL:
        damage(folder, table, "flipped")
    verdict = write_report([folder.path], folder.path / "report", Question())
    page = (folder.path / "report/report.html").read_text(encoding="utf-8")
    top = page[: page.index("<figure")]
    for table in OPTIONAL:
        sentence = f"cheng, egal, seed 1 is shown without its table {table}, which cannot be read"
        assert sentence in top
        assert any(note.startswith(sentence) for note in verdict["notes"])


def test_a_report_without_problems_does_not_mention_any(folder):
    assert join([folder.path]).problems == ()


def test_a_run_without_its_selections_is_named_and_left_out(folder):
    folder.part("selections", RUN).unlink()
    joined = join([folder.path])
    assert RUN not in joined.records
    assert len(joined.records) == 3
    assert joined.problems == (
        "cheng, egal, seed 1 is left out: its table selections is missing; `egal-bench compare` with the same command "
        "computes the run again.",
    )


def test_a_run_whose_tables_do_not_belong_together_is_named(folder):
    other = RunName("cheng", "random", 0)
    folder.part("selections", RUN).write_bytes(folder.part("selections", other).read_bytes())
    (problem,) = join([folder.path]).problems
    assert problem.startswith("cheng, egal, seed 1 is left out: its tables rounds and selections were not written")


@pytest.mark.parametrize("kind", ["flipped", "truncated"])
@pytest.mark.parametrize("table", REQUIRED)
def test_a_damaged_required_table_is_one_clear_error(folder, table, kind):
    path = damage(folder, table, kind)
    with pytest.raises(
        BenchError, match=f"{re.escape(str(path))}: unreadable .*compare` with the same command computes it again"
    ):
        join([folder.path])


def test_damaged_names_of_columns_are_one_clear_error(folder):
    path = folder.part("rounds", RUN)
    path.write_bytes(path.read_bytes().replace(b"macro_auc", b"macro_\xfe\xfe\xfe"))
    with pytest.raises(BenchError, match="unreadable"):
        join([folder.path])


def test_runs_without_queries_need_no_table_pool(tmp_path):
    write_results(tmp_path, seeds=range(1), rounds=0, pool=False)
    write_results(tmp_path, seeds=range(1, 2), rounds=2)
    assert not json.dumps(join([tmp_path]).problems).count("pool")
