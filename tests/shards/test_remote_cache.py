"""The cache of remote sets stays correct and bounded, whatever processes share it or die."""

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from egal_shards import ShardError, ShardSet, pack, remote
from shards.fault_server import serving
from shards.remote_sets import FIRST, assert_equal, until
from shards.shard_sets import source


def start(url, code="s = ShardSet(sys.argv[1]); [s[i] for i in range(len(s))]"):
    """Start a process that reads all samples of a set."""
    code = f"import sys; from egal_shards import ShardSet, verify; {code}"
    return subprocess.Popen([sys.executable, "-c", code, url], env=os.environ, stderr=subprocess.PIPE)


def test_processes_that_start_at_once_fetch_each_file_once(many_shards, cache):
    with serving(many_shards) as (url, script):
        processes = [start(url) for _ in range(2)]
        assert [process.communicate(timeout=60)[1] for process in processes] == [b""] * 2
    names = [name for name, _ in script.log if name != "manifest.json"]
    assert sorted(names) == sorted(path.name for path in many_shards.iterdir() if path.name != "manifest.json")


def test_a_killed_process_leaves_a_usable_cache(cache, tmp_path):
    pack(source(), tmp_path / "set", size=128, progress=False)
    half = (tmp_path / "set" / FIRST).stat().st_size // 2
    with serving(tmp_path / "set", faults={FIRST: ["stall"]}) as (url, script):
        process = start(url)
        while sum(path.stat().st_size for path in cache.glob(f"*/{FIRST}.partial")) < half:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not list(cache.glob(f"*/{FIRST}"))
        assert_equal(ShardSet(url), ShardSet(tmp_path / "set"))
        assert script.starts(FIRST) == [0, half]


@pytest.mark.parametrize(
    "code", ["verify(sys.argv[1], progress=False)", "s = ShardSet(sys.argv[1]); list(s.batches(range(len(s)), 2))"]
)
def test_ctrl_c_ends_at_once_and_keeps_the_bytes(cache, tmp_path, code):
    pack(source(), tmp_path / "set", size=128, progress=False)
    half = (tmp_path / "set" / FIRST).stat().st_size // 2
    with serving(tmp_path / "set", faults={FIRST: ["trickle"]}) as (url, script):
        process = start(url, code)
        while sum(path.stat().st_size for path in cache.glob(f"*/{FIRST}.partial")) < half:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=20)[1]  # the connection would time out after 30
        assert_equal(ShardSet(url), ShardSet(tmp_path / "set"))
        assert [start >= half for start in script.starts(FIRST)] == [False, True]


def test_a_file_damaged_in_the_cache_is_fetched_again(many_shards, cache):
    with serving(many_shards) as (url, script):
        shards = ShardSet(url)
        shards[0]
        path = shards.path / FIRST
        for bad in (path.read_bytes()[:-1], bytes(path.stat().st_size), b""):
            path.write_bytes(bad)
            (shards.path / "index.parquet").write_bytes(bad)
            assert_equal(ShardSet(url), ShardSet(many_shards))
        assert len(script.starts(FIRST)) == 4
        os.truncate(path, 100)  # when `shards` had checked it
        assert_equal(shards, ShardSet(many_shards))
        assert len(script.starts(FIRST)) == 5


def cached_bytes(cache):
    return sum(path.stat().st_size for path in cache.glob("*/*") if path.name != "manifest.json")


def test_the_cache_evicts_the_least_recently_used_file(many_shards, cache, monkeypatch):
    sizes = [path.stat().st_size for path in sorted(many_shards.glob("*.tar"))]
    limit = sizes[0] + sizes[1] + (many_shards / "index.parquet").stat().st_size + 1000
    monkeypatch.setenv("EGAL_CACHE_GB", str(limit / 1e9))
    with serving(many_shards) as (url, _):
        shards = ShardSet(url)
        opener = [int(np.flatnonzero(shards.rows.shard == number)[0]) for number in range(len(sizes))]
        for number in (0, 1, 0, 2):
            shards[opener[number]]
            time.sleep(0.02)  # the clock of the file system
            assert cached_bytes(cache) <= limit
        assert {path.name for path in shards.path.glob("*.tar")} == {FIRST, "shard-000002.tar"}
        assert_equal(shards, ShardSet(many_shards))
        assert cached_bytes(cache) <= limit


def test_open_and_foreign_files_are_not_evicted(many_shards, cache, monkeypatch):
    monkeypatch.setenv("EGAL_CACHE_GB", str((many_shards / FIRST).stat().st_size * 1.5 / 1e9))
    (cache / "thesis").mkdir(parents=True)
    (cache / "thesis" / FIRST).write_bytes(bytes(10**6))
    with serving(many_shards) as (url, _):
        shards = ShardSet(url)
        notes = shards.path / "notes.txt"
        notes.write_bytes(bytes(10**6))
        os.utime(notes, (0, 0))  # used longest ago
        with shards.open_shard(0) as file:
            for number in (1, 2):
                shards.open_shard(number).close()
            assert (shards.path / FIRST).exists()
            assert file.read() == (many_shards / FIRST).read_bytes()
        shards.open_shard(3).close()
        assert not (shards.path / FIRST).exists()
        assert (shards.path / "manifest.json").exists()
    assert (cache / "thesis" / FIRST).stat().st_size == notes.stat().st_size == 10**6


def test_a_lock_ends_with_its_use_despite_a_fork(tmp_path):
    with remote._locked(tmp_path / "lock"):
        child = multiprocessing.get_context("fork").Process(target=signal.pause)
        child.start()
    try:
        with (tmp_path / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError where it is locked
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_a_file_evicted_before_its_lock_is_fetched_again(many_shards, cache, monkeypatch):
    flock, path = fcntl.flock, None

    def late(file, operation):
        nonlocal path
        if path and operation == fcntl.LOCK_SH:
            path, evicted = None, path
            evicted.unlink()
        flock(file, operation)

    with serving(many_shards) as (url, script):
        shards = ShardSet(url)
        shards.open_shard(0).close()
        path = shards.path / FIRST
        monkeypatch.setattr(fcntl, "flock", late)
        with shards.open_shard(0) as file:
            assert path is None
            assert file.read() == (many_shards / FIRST).read_bytes()
        assert (shards.path / FIRST).exists()  # so the open file is the one in the cache
        assert script.starts(FIRST) == [0, 0]


def test_a_file_that_is_being_fetched_is_not_evicted(many_shards, cache, monkeypatch):
    size = (many_shards / FIRST).stat().st_size
    monkeypatch.setenv("EGAL_CACHE_GB", str(1.2 * size / 1e9))
    with serving(many_shards, faults={FIRST: ["stall"]}) as (url, script), ThreadPoolExecutor(1) as pool:
        shards = ShardSet(url)
        reading, partial = pool.submit(shards.__getitem__, 0), shards.path / f"{FIRST}.partial"
        until(lambda: partial.exists() and partial.stat().st_size == size // 2)
        shards.open_shard(1).close()  # there is no room for both
        assert partial.exists()
        script.released.set()
        np.testing.assert_array_equal(reading.result().image, ShardSet(many_shards)[0].image)
    assert script.starts(FIRST) == [0, size // 2]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("much", "EGAL_CACHE_GB is 'much'"),
        ("0", "EGAL_CACHE_GB is '0'"),
        ("inf", "EGAL_CACHE_GB is 'inf'"),
        ("1e-9", "more than the cache may hold; raise EGAL_CACHE_GB"),
    ],
)
def test_senseless_cache_limits_are_refused(many_shards, cache, monkeypatch, value, says):
    monkeypatch.setenv("EGAL_CACHE_GB", value)
    with serving(many_shards) as (url, _), pytest.raises(ShardError, match=says):
        ShardSet(url)


def test_a_cache_that_cannot_be_written_is_a_clear_error(many_shards, cache, monkeypatch):
    cache.write_text("a file")
    with serving(many_shards) as (url, _), pytest.raises(ShardError, match=r"cache.*Not a directory; .*EGAL_CACHE"):
        ShardSet(url)


@pytest.mark.parametrize(("room", "ahead"), [(100, 2), (3, 1), (2, 0)])
def test_the_next_shards_are_fetched_ahead(many_shards, cache, monkeypatch, room, ahead):
    """At most two, and only as many as the cache can hold besides the shard being read and the one before."""
    monkeypatch.setattr(remote, "_AHEAD", 2)
    size = max(path.stat().st_size for path in many_shards.glob("*.tar"))
    monkeypatch.setenv("EGAL_CACHE_GB", str((room + 0.5) * size / 1e9))
    with serving(many_shards) as (url, script):
        shards = ShardSet(url)
        home = [int(np.flatnonzero(shards.rows.shard == number)[0]) for number in range(5)]
        shards[home[0]]
        until(lambda: not shards.remote._fetching)
        assert len(list(shards.path.glob("*.tar"))) == 1 + ahead
        shards[home[3]]  # out of order, so nothing is fetched ahead
        assert not shards.remote._fetching
        shards[home[4]]  # in order
        assert len(shards.remote._fetching) <= ahead
        assert_equal(shards, ShardSet(many_shards))
        until(lambda: not shards.remote._fetching)
    if room == 100:
        assert sorted(set(script.log)) == sorted(script.log)


def test_a_fault_while_fetching_ahead_is_raised_on_reading(many_shards, cache, monkeypatch):
    monkeypatch.setattr(remote, "_AHEAD", 1)
    with serving(many_shards, faults={"shard-000001.tar": [404, 404]}) as (url, script):
        shards = ShardSet(url)
        shards[0]
        while not script.starts("shard-000001.tar"):
            time.sleep(0.01)
        with pytest.raises(ShardError, match=r"shard-000001.tar: HTTP 404"):
            shards[int(np.flatnonzero(shards.rows.shard == 1)[0])]
        assert_equal(shards, ShardSet(many_shards))
