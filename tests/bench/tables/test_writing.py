"""Writing to a disk that is full, and to a network file system that goes away and comes back."""

import errno
import os
from types import SimpleNamespace

import pytest

from bench.tables.test_results import RUN, record, tables
from bench.tiny import contents, tiny_config
from egal_bench.errors import BenchError
from egal_bench.runs.comparison import compare
from egal_bench.tables import files, writing
from egal_bench.tables.folder import ResultsFolder


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that were waited between attempts, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(writing, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def failing(monkeypatch):
    """Return a function that makes the next `times` tables fail to be written, half-written, with an error number."""
    write = files.pq.write_table

    def fail(number: int, times: int) -> None:
        failures = iter(range(times))

        def write_table(rows, path, **settings):
            if next(failures, None) is not None:
                path.write_bytes(b"PAR1")
                raise OSError(number, os.strerror(number))
            write(rows, path, **settings)

        monkeypatch.setattr(files.pq, "write_table", write_table)

    return fail


def half_written(folder) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.name != ".locks"]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOENT, errno.ETIMEDOUT])
def test_write_is_repeated_while_the_file_system_is_away(tmp_path, failing, waits, capfd, number):
    folder = ResultsFolder(tmp_path)
    failing(number, times=3)
    folder.write(RUN, tables(), record())
    assert folder.tables(RUN) == tables()
    assert waits == [1, 2, 4]
    assert capfd.readouterr().err.count("trying again") == 1


def test_file_system_that_stays_away_ends_with_one_line(tmp_path, failing, waits):
    failing(errno.ESTALE, times=100)
    with pytest.raises(
        BenchError, match=f"{os.strerror(errno.ESTALE)}: make the folder writable.*same command resumes"
    ):
        ResultsFolder(tmp_path).write(RUN, tables(), record())
    assert waits == list(writing.WAITS)
    assert half_written(tmp_path) == []


def test_folder_that_vanishes_is_waited_for_and_not_made_again(tmp_path, monkeypatch):
    folder = ResultsFolder.create(tmp_path / "mounted")
    away, waited = folder.path.rename(tmp_path / "away"), []

    def sleep(seconds):
        waited.append(seconds)
        assert not folder.path.exists()
        if len(waited) == 2:
            away.rename(folder.path)

    monkeypatch.setattr(writing, "time", SimpleNamespace(sleep=sleep))
    folder.write(RUN, tables(), record())
    assert folder.tables(RUN) == tables()
    assert len(waited) == 2


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("regime", ["finetune", "frozen"])  # the first write is that of a round, or that of a run
def test_full_disk_ends_a_comparison_that_then_resumes(phantom_dataset, tmp_path, monkeypatch, failing, waits, regime):
    config = tiny_config(phantom_dataset(150).shards.where, out=tmp_path / "full", regime=regime, rounds=1)
    with monkeypatch.context():
        failing(errno.ENOSPC, times=1)
        with pytest.raises(
            BenchError, match="full: No space left on device: free some space; finished rounds are kept"
        ):
            compare(config)
    assert waits == []
    assert half_written(tmp_path) == []
    compare(config)
    compare(config.model_copy(update={"out": tmp_path / "other"}))
    for table, frame in contents(tmp_path / "other").items():
        assert frame.equals(contents(tmp_path / "full")[table])
    assert not (tmp_path / "full" / "unfinished").exists()


def test_disk_that_is_full_in_truth_leaves_no_file(tmp_path):
    """The limit of the size of a file stands in for the size of the disk; the kernel refuses both in write(2)."""
    resource = pytest.importorskip("resource")
    folder, limits = ResultsFolder(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(BenchError, match=f"{os.strerror(errno.EFBIG)}.*the same command resumes"):
            folder.write(RUN, tables(), record())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
