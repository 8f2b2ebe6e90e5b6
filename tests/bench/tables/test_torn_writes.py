"""A process that dies at any step of writing a run's tables, beside another process: the old run, the new one, or none.

The writer is a fork of this process. It stops itself at a step, so that the other process finds it alive, and is then
killed.
"""

import os
import signal

import pytest

from bench.tables.test_results import RUN, record, rows
from egal_bench.tables import files
from egal_bench.tables.folder import ResultsFolder
from egal_bench.tables.schemas import OPTIONAL, SCHEMAS

OLD = {table: rows(table, 2) for table in SCHEMAS}, record(init=10)
NEW = {table: rows(table, 3) for table in SCHEMAS}, record(init=11)
STEPS = [(step, number) for step in ("half a table", "table", "rename") for number in range(len(SCHEMAS))]


def stop_at(step, number):
    """Make this process stop at a step: where table `number` is half or completely written, or before its rename."""
    counts = dict.fromkeys(("table", "rename"), -1)
    write, replace = files.pq.write_table, os.replace

    def reached(name, at):
        if name == step and at == number:
            os.kill(os.getpid(), signal.SIGSTOP)

    def write_table(table, path, **settings):
        counts["table"] += 1
        path.write_bytes(b"PAR1")
        reached("half a table", counts["table"])
        write(table, path, **settings)
        reached("table", counts["table"])

    def rename(source, target):
        counts["rename"] += 1
        reached("rename", counts["rename"])
        replace(source, target)

    files.pq.write_table, os.replace = write_table, rename


def writer(folder, step, number, network=None):
    """Return the id of a process that has claimed the run and has stopped while it writes NEW and its network."""
    child = os.fork()
    if child == 0:
        try:
            stop_at(step, number)
            assert folder.claim(RUN) is not None
            folder.write(RUN, *NEW, network)
        finally:
            os._exit(1)  # it was to be killed before
    _, status = os.waitpid(child, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    return child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize(("step", "number"), STEPS)
@pytest.mark.parametrize("before", [None, OLD], ids=["first run", "replaces a run"])
def test_a_killed_writer_leaves_no_mixture(tmp_path, before, step, number):
    folder = ResultsFolder(tmp_path)
    if before:
        folder.write(RUN, *before)
    child = writer(folder, step, number)
    assert folder.claim(RUN) is None  # the writer lives, so nobody else may write
    seen = [(folder.record(RUN), folder.tables(RUN))]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    lock = folder.claim(RUN)
    assert lock is not None
    assert list(tmp_path.rglob(".*.part.parquet")) == []
    seen.append((folder.record(RUN), folder.tables(RUN)))
    for run_record, run_tables in seen:
        if run_record is None:
            assert run_tables == {}
        else:  # the old run, perhaps without an optional table that the writer had already replaced
            old_tables, old_record = before
            assert run_record == old_record
            assert old_tables.keys() - OPTIONAL <= run_tables.keys()
            assert all(old_tables[table] == rows_of_table for table, rows_of_table in run_tables.items())
    folder.write(RUN, *NEW)
    lock.release()
    assert (folder.tables(RUN), folder.record(RUN)) == NEW


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("number", range(len(SCHEMAS) + 1))
def test_a_killed_writer_pairs_no_tables_with_another_network(tmp_path, number):
    folder, networks = ResultsFolder(tmp_path), {10: b"old", 11: b"new"}
    folder.write(RUN, *OLD, b"old")
    child = writer(folder, "rename", number, b"new")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kept = folder.record(RUN)
    if kept is not None and folder.network(RUN).exists():
        assert folder.network(RUN).read_bytes() == networks[kept["settings"]["init"]]
    folder.claim(RUN).release()
    assert list(tmp_path.rglob(".*.network.safetensors")) == []
    folder.write(RUN, *NEW, b"new")
    assert folder.network(RUN).read_bytes() == b"new"
