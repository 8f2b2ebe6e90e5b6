"""Sets behind a URL: whole, equal to the local ones, or a named error; in a cache that stays sound and bounded."""

import fcntl
import io
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import numpy as np
import pytest

from egal_shards import ShardError, ShardSet, fetching, pack, remote, verify
from egal_shards.urls import redacted, set_name
from shards.fault_server import serving
from shards.shard_sets import edit_manifest, source

FIRST = "shard-000000.tar"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine") / "set"
    pack(source(24), folder, size=8, shard_mb=0.014, progress=False)
    assert len(list(folder.glob("*.tar"))) > 4
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EGAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_DELAY", 0.01)
    monkeypatch.setattr(remote, "_AHEAD", 0)  # so that requests come in a known order
    return tmp_path / "cache"


def until(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_equal(found, expected):
    assert (found.name, found.classes, len(found)) == (expected.name, expected.classes, len(expected))
    for i in range(len(expected)):
        ours, theirs = found[i], expected[i]
        assert (ours.key, ours.label, ours.group, ours.split) == (theirs.key, theirs.label, theirs.group, theirs.split)
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.roi, theirs.roi)


def test_a_remote_set_is_the_local_one_and_each_file_is_fetched_once(pristine, cache):
    with serving(pristine) as (url, script):
        shards, local = ShardSet(url), ShardSet(pristine)
        assert script.log == [("manifest.json", 0), ("index.parquet", 0)]  # shards on demand
        shards[0]
        assert script.log[2:] == [(FIRST, 0)]
        assert_equal(shards, local)
        order = np.random.default_rng(0).permutation(len(local))
        for ours, theirs in zip(shards.batches(order, 5), local.batches(order, 5), strict=True):
            assert ours.keys == theirs.keys
            assert ours.images.equal(theirs.images)
            assert ours.roi.equal(theirs.roi)
        assert verify(url, progress=False) == verify(pristine, progress=False)
        assert_equal(ShardSet(url), local)
    names = [name for name, _ in script.log]
    assert {name: names.count(name) for name in names if name != "manifest.json"} == {
        path.name: 1 for path in pristine.iterdir() if path.name != "manifest.json"
    }
    assert (shards.path.stat().st_mode & 0o777) == 0o700  # images of patients


FAULTS = {
    "reset": ["reset"],
    "cut": ["cut"],
    "short": ["short"],
    "errors": [500, 503, 429],
    "mixed": ["reset", 500, "cut", 502],
    "other range": ["cut", "other range"],
    "wrong": ["wrong"],
    "changed between resume": ["cut", "wrong"],
}


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("case", FAULTS)
def test_faults_that_pass_are_survived(pristine, cache, case, ranges):
    faults = {name: list(FAULTS[case]) for name in ("index.parquet", FIRST)}
    if case in ("reset", "errors", "mixed"):  # of the manifest there is no second source of truth
        faults["manifest.json"] = [500, 503]
    with serving(pristine, faults=faults, ranges=ranges) as (url, script):
        assert_equal(ShardSet(url), ShardSet(pristine))
    assert not any(faults.values())
    half = (pristine / FIRST).stat().st_size // 2
    if case in ("reset", "cut"):
        assert script.asked(FIRST) == [0, half]
    if case == "other range":  # known by what the server says it sends, from the beginning where it has no ranges
        assert script.asked(FIRST) == ([0, half, 0] if ranges else [0, half])
    assert not list(cache.glob("*/*.partial"))


@pytest.mark.parametrize("ranges", [True, False])
def test_no_more_is_handed_on_than_was_asked_for(pristine, ranges):
    data = (pristine / FIRST).read_bytes()
    with serving(pristine, ranges=ranges) as (url, _):
        for start, stop in ((0, 1), (0, 1000), (700, 1001), (len(data) - 1, len(data) + 9), (5, 5)):
            assert b"".join(fetching.chunks(f"{url}/{FIRST}", start, stop)) == data[start:stop]


def test_nobody_tries_again_for_a_consumer_that_has_left(cache, monkeypatch):
    tries = []

    def failing(*_):
        tries.append(0)
        raise fetching.Passing("the server is busy")

    monkeypatch.setattr(remote, "chunks", failing)
    monkeypatch.setattr(remote, "unwanted", lambda: len(tries) == 2)
    with pytest.raises(ShardError, match=r"http://there/x: nobody waits for it any more; what has come is kept"):
        remote._receive("http://there/x?sig=h1dden", io.BytesIO(), 10)
    assert len(tries) == 2


def test_each_try_waits_twice_as_long_as_the_one_before(monkeypatch):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    monkeypatch.setattr(remote, "chunks", lambda *_: (_ for _ in ()).throw(fetching.Passing("the server is busy")))
    with pytest.raises(ShardError, match="the server is busy, after 5 attempts; 0 of 10 bytes are kept"):
        remote._receive("http://there/x", io.BytesIO(), 10)
    assert waits == [0.5, 1, 2, 4]


def test_a_stalled_and_a_trickling_connection_time_out_and_resume(pristine, cache, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT", 0.3)
    with serving(pristine, faults={FIRST: ["stall"], "shard-000001.tar": ["trickle"]}) as (url, script):
        assert_equal(ShardSet(url), ShardSet(pristine))
    assert script.asked(FIRST) == [0, (pristine / FIRST).stat().st_size // 2]
    assert script.asked("shard-000001.tar")[1] > (pristine / "shard-000001.tar").stat().st_size // 2


def test_more_faults_than_tries_are_survived_where_each_brings_progress(pristine, cache, monkeypatch):
    monkeypatch.setattr(remote, "_PROGRESS", 1)
    with serving(pristine, faults={FIRST: ["cut"] * 9}) as (url, script):
        ShardSet(url)[0]
    assert len(script.asked(FIRST)) == 10
    assert script.asked(FIRST) == sorted(set(script.asked(FIRST)))


def test_lasting_errors_end_after_bounded_tries_and_the_next_run_goes_on(pristine, cache, caplog):
    with serving(pristine, faults={FIRST: ["cut", *[500] * 20]}) as (url, script):
        shards = ShardSet(url)
        with pytest.raises(ShardError, match=rf"{url}/{FIRST}: HTTP 500 .*after 5 attempts; .* run it again") as caught:
            shards[0]
        assert "\n" not in str(caught.value)
        assert len(script.asked(FIRST)) == 5
        pauses = [float(text.rsplit(maxsplit=2)[1]) for text in caplog.messages]
        assert pauses == [0.01, 0.02, 0.04, 0.08]
        script.faults.clear()
        del script.log[:]
        shards[0]
        assert script.asked(FIRST) == [(pristine / FIRST).stat().st_size // 2]


def test_wrong_content_is_fetched_twice_and_never_kept(pristine, cache):
    with serving(pristine, faults={FIRST: ["wrong"] * 9}) as (url, script):
        with pytest.raises(ShardError, match=f"{FIRST}: its bytes do not match their digest in the manifest; .*upload"):
            ShardSet(url)[0]
        assert script.asked(FIRST) == [0, 0]
    assert not list(cache.glob(f"*/{FIRST}")) + list(cache.glob(f"*/{FIRST}.partial"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data + b"\0", r"it has more than the \d+ bytes that the manifest says; .*upload it again"),
        (lambda data: data[:-1], "the file on the server is shorter than what was read of it; .*upload it again"),
    ],
)
def test_a_file_of_another_size_than_the_manifest_says(pristine, cache, tmp_path, change, says):
    copy = shutil.copytree(pristine, tmp_path / "copy")
    (copy / FIRST).write_bytes(change((copy / FIRST).read_bytes()))
    with serving(copy) as (url, _), pytest.raises(ShardError, match=f"{url}/{FIRST}: {says}"):
        ShardSet(url)[0]


@pytest.mark.parametrize(("status", "says"), [(404, "check the URL"), (403, "credentials"), (401, "credentials")])
def test_refusals_are_final(pristine, cache, status, says):
    with serving(pristine, faults={"manifest.json": [status] * 9}) as (url, script):
        with pytest.raises(ShardError, match=rf"{url}/manifest.json: HTTP {status} .*{says}"):
            ShardSet(url)
        assert len(script.log) == 1


def self_signed(path):
    """A PEM file of a key and its certificate for 127.0.0.1."""
    pytest.importorskip("cryptography", reason="comes with moto[server]")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, host = datetime.now(UTC), x509.IPAddress(ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([host]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + certificate.public_bytes(pem))
    return path


def test_https_trusts_known_certificates_alone(pristine, cache, tmp_path, monkeypatch, caplog):
    certificate = self_signed(tmp_path / "server.pem")
    with serving(pristine, certificate) as (url, script):
        with pytest.raises(ShardError, match=f"{url}/manifest.json: .*certificate verify failed.*SSL_CERT_FILE"):
            ShardSet(url)
        assert (script.log, caplog.messages) == ([], [])  # nor tried again
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert_equal(ShardSet(url), ShardSet(pristine))


def test_no_server_at_all(cache):
    with serving(cache) as (url, _):
        pass
    with pytest.raises(ShardError, match=rf"{url}/manifest.json: Connection refused, after 5 attempts; check"):
        ShardSet(url)


def test_a_manifest_without_end_is_read_to_a_bound(pristine, cache):
    with (
        serving(pristine, faults={"manifest.json": ["endless"]}) as (url, script),
        pytest.raises(ShardError, match=f"{url}/manifest.json: is larger than 16 MiB"),
    ):
        ShardSet(url)
    assert script.sent < 64 << 20  # what fits into the socket's buffers beyond 16 MiB


def test_secrets_are_sent_and_appear_nowhere_else(pristine, cache, caplog):
    caplog.set_level(logging.DEBUG)
    with serving(pristine, login="Basic dXNlcjpoMWRkZW4=", query="sig=h1dden") as (url, script):
        secret = url.replace("://", "://user:h1dden@") + "?sig=h1dden"
        script.faults = {FIRST: [500, "wrong"], "shard-000001.tar": [500] * 9, "shard-000002.tar": ["wrong"] * 2}
        shards = ShardSet(secret)
        shards[0]
        says = [repr(shards)]
        for i in (int(np.flatnonzero(shards.rows.shard == number)[0]) for number in (1, 2)):
            with pytest.raises(ShardError, match=url) as caught:
                shards[i]
            says.append(str(caught.value))
        script.query = "sig=other"
        with pytest.raises(ShardError, match="HTTP 401") as caught:
            ShardSet(secret)
    says += [str(caught.value), caplog.text, *(str(path) for path in cache.rglob("*"))]
    assert "next attempt" in caplog.text
    assert not [text for text in says if "h1dden" in text]
    assert not [path for path in cache.rglob("*") if path.is_file() and b"h1dden" in path.read_bytes()]


def test_credentials_are_not_sent_on_to_where_a_server_redirects(pristine, cache, tmp_path):
    with (
        serving(pristine) as (other, there),  # which answers 401 where any are sent
        serving(tmp_path, login="Basic dXNlcjpoMWRkZW4=", moved_to=other) as (url, _),
    ):
        assert_equal(ShardSet(url.replace("://", "://user:h1dden@")), ShardSet(pristine))
        assert len(there.log) == 2 + len(list(pristine.glob("*.tar")))


def test_a_set_that_was_changed_at_its_url_is_another_set(pristine, cache, tmp_path):
    copy = shutil.copytree(pristine, tmp_path / "copy")
    with serving(copy) as (url, script):
        first = ShardSet(url)
        parcel = pickle.dumps(first)
        edit_manifest(copy, lambda fields: fields.update(name="other"))
        again = ShardSet(url)
        assert (first.name, again.name) == ("tiny", "other")
        assert first.path != again.path
        del script.log[:]
        assert pickle.loads(parcel).name == "tiny"  # noqa: S301
        assert script.log == []
        (first.path / "manifest.json").write_bytes(b"damaged")
        with pytest.raises(ShardError, match=f"{url}: was changed since another process opened it"):
            pickle.loads(parcel)  # noqa: S301
        del script.log[:]
        (again.path / "manifest.json").write_bytes(b"damaged")
        assert pickle.loads(pickle.dumps(again)).name == "other"  # noqa: S301
        assert script.log == [("manifest.json", 0)]


def read_all(shards):
    return [(sample.key, sample.image.tobytes()) for sample in (shards[i] for i in range(len(shards)))]


def test_worker_processes_read_a_pickled_set(pristine, cache):
    with serving(pristine) as (url, script), multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(read_all, [ShardSet(url)] * 2)
    assert found == [read_all(ShardSet(pristine))] * 2
    assert len(script.log) == len(set(script.log)) == 2 + len(list(pristine.glob("*.tar")))


def start(url, code="s = ShardSet(sys.argv[1]); [s[i] for i in range(len(s))]"):
    """A process that reads all of a set."""
    code = f"import sys; from egal_shards import ShardSet, verify; {code}"
    return subprocess.Popen([sys.executable, "-c", code, url], env=os.environ, stderr=subprocess.PIPE)


def test_processes_that_start_at_once_fetch_each_file_once(pristine, cache):
    with serving(pristine) as (url, script):
        processes = [start(url) for _ in range(2)]
        assert [process.communicate(timeout=60)[1] for process in processes] == [b""] * 2
    names = [name for name, _ in script.log if name != "manifest.json"]
    assert sorted(names) == sorted(path.name for path in pristine.iterdir() if path.name != "manifest.json")


def test_a_killed_process_leaves_nothing_that_blocks_or_looks_whole(cache, tmp_path):
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
        assert script.asked(FIRST) == [0, half]


@pytest.mark.parametrize(
    "code", ["verify(sys.argv[1], progress=False)", "s = ShardSet(sys.argv[1]); list(s.batches(range(len(s)), 2))"]
)
def test_ctrl_c_does_not_wait_for_the_shard_and_keeps_what_has_come(cache, tmp_path, code):
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
        assert [start >= half for start in script.asked(FIRST)] == [False, True]


def test_a_file_damaged_in_the_cache_is_fetched_again(pristine, cache):
    with serving(pristine) as (url, script):
        shards = ShardSet(url)
        shards[0]
        path = shards.path / FIRST
        for bad in (path.read_bytes()[:-1], bytes(path.stat().st_size), b""):
            path.write_bytes(bad)
            (shards.path / "index.parquet").write_bytes(bad)
            assert_equal(ShardSet(url), ShardSet(pristine))
        assert len(script.asked(FIRST)) == 4
        os.truncate(path, 100)  # when `shards` had checked it
        assert_equal(shards, ShardSet(pristine))
        assert len(script.asked(FIRST)) == 5


def held(cache):
    return sum(path.stat().st_size for path in cache.glob("*/*") if path.name != "manifest.json")


def test_the_cache_stays_below_its_limit_and_evicts_what_was_used_longest_ago(pristine, cache, monkeypatch):
    sizes = [path.stat().st_size for path in sorted(pristine.glob("*.tar"))]
    limit = sizes[0] + sizes[1] + (pristine / "index.parquet").stat().st_size + 1000
    monkeypatch.setenv("EGAL_CACHE_GB", str(limit / 1e9))
    with serving(pristine) as (url, _):
        shards = ShardSet(url)
        opener = [int(np.flatnonzero(shards.rows.shard == number)[0]) for number in range(len(sizes))]
        for number in (0, 1, 0, 2):
            shards[opener[number]]
            time.sleep(0.02)  # the clock of the file system
            assert held(cache) <= limit
        assert {path.name for path in shards.path.glob("*.tar")} == {FIRST, "shard-000002.tar"}
        assert_equal(shards, ShardSet(pristine))
        assert held(cache) <= limit


def test_what_is_open_is_not_evicted_and_foreign_files_are_not_touched(pristine, cache, monkeypatch):
    monkeypatch.setenv("EGAL_CACHE_GB", str((pristine / FIRST).stat().st_size * 1.5 / 1e9))
    (cache / "thesis").mkdir(parents=True)
    (cache / "thesis" / FIRST).write_bytes(bytes(10**6))
    with serving(pristine) as (url, _):
        shards = ShardSet(url)
        notes = shards.path / "notes.txt"
        notes.write_bytes(bytes(10**6))
        os.utime(notes, (0, 0))  # used longest ago
        with shards.open_shard(0) as file:
            for number in (1, 2):
                shards.open_shard(number).close()
            assert (shards.path / FIRST).exists()
            assert file.read() == (pristine / FIRST).read_bytes()
        shards.open_shard(3).close()
        assert not (shards.path / FIRST).exists()
        assert (shards.path / "manifest.json").exists()
    assert (cache / "thesis" / FIRST).stat().st_size == notes.stat().st_size == 10**6


def test_a_lock_ends_with_its_use_though_a_process_was_forked_meanwhile(tmp_path):
    with remote._locked(tmp_path / "lock"):
        child = multiprocessing.get_context("fork").Process(target=signal.pause)
        child.start()
    try:
        with (tmp_path / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or BlockingIOError
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_what_is_evicted_between_opening_and_locking_is_fetched_again(pristine, cache, monkeypatch):
    flock, path = fcntl.flock, None

    def late(file, operation):
        nonlocal path
        if path and operation == fcntl.LOCK_SH:
            path, evicted = None, path
            evicted.unlink()
        flock(file, operation)

    with serving(pristine) as (url, script):
        shards = ShardSet(url)
        shards.open_shard(0).close()
        path = shards.path / FIRST
        monkeypatch.setattr(fcntl, "flock", late)
        with shards.open_shard(0) as file:
            assert path is None
            assert file.read() == (pristine / FIRST).read_bytes()
        assert (shards.path / FIRST).exists()  # so that what is open is what others will see
        assert script.asked(FIRST) == [0, 0]


def test_what_is_being_fetched_is_not_evicted(pristine, cache, monkeypatch):
    size = (pristine / FIRST).stat().st_size
    monkeypatch.setenv("EGAL_CACHE_GB", str(1.2 * size / 1e9))
    with serving(pristine, faults={FIRST: ["stall"]}) as (url, script), ThreadPoolExecutor(1) as pool:
        shards = ShardSet(url)
        reading, partial = pool.submit(shards.__getitem__, 0), shards.path / f"{FIRST}.partial"
        until(lambda: partial.exists() and partial.stat().st_size == size // 2)
        shards.open_shard(1).close()  # there is no room for both
        assert partial.exists()
        script.released.set()
        np.testing.assert_array_equal(reading.result().image, ShardSet(pristine)[0].image)
    assert script.asked(FIRST) == [0, size // 2]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("much", "EGAL_CACHE_GB is 'much'"),
        ("0", "EGAL_CACHE_GB is '0'"),
        ("inf", "EGAL_CACHE_GB is 'inf'"),
        ("1e-9", "more than the cache may hold; raise EGAL_CACHE_GB"),
    ],
)
def test_cache_limits_that_make_no_sense(pristine, cache, monkeypatch, value, says):
    monkeypatch.setenv("EGAL_CACHE_GB", value)
    with serving(pristine) as (url, _), pytest.raises(ShardError, match=says):
        ShardSet(url)


def test_a_cache_that_cannot_be_written(pristine, cache, monkeypatch):
    cache.write_text("a file")
    with serving(pristine) as (url, _), pytest.raises(ShardError, match=r"cache.*Not a directory; .*EGAL_CACHE"):
        ShardSet(url)


@pytest.mark.parametrize(("room", "ahead"), [(100, 2), (3, 1), (2, 0)])
def test_the_next_shards_are_fetched_while_one_is_read_in_order(pristine, cache, monkeypatch, room, ahead):
    """At most two, and no more than the cache can hold beside the one that is read and the one before."""
    monkeypatch.setattr(remote, "_AHEAD", 2)
    size = max(path.stat().st_size for path in pristine.glob("*.tar"))
    monkeypatch.setenv("EGAL_CACHE_GB", str((room + 0.5) * size / 1e9))
    with serving(pristine) as (url, script):
        shards = ShardSet(url)
        home = [int(np.flatnonzero(shards.rows.shard == number)[0]) for number in range(5)]
        shards[home[0]]
        until(lambda: not shards.remote._fetching)
        assert len(list(shards.path.glob("*.tar"))) == 1 + ahead
        shards[home[3]]  # out of order: nothing follows it
        assert not shards.remote._fetching
        shards[home[4]]  # in order
        assert len(shards.remote._fetching) <= ahead
        assert_equal(shards, ShardSet(pristine))
        until(lambda: not shards.remote._fetching)
    if room == 100:
        assert sorted(set(script.log)) == sorted(script.log)


def test_a_fault_while_fetching_ahead_is_met_by_whoever_reads(pristine, cache, monkeypatch):
    monkeypatch.setattr(remote, "_AHEAD", 1)
    with serving(pristine, faults={"shard-000001.tar": [404, 404]}) as (url, script):
        shards = ShardSet(url)
        shards[0]
        while not script.asked("shard-000001.tar"):
            time.sleep(0.01)
        with pytest.raises(ShardError, match=r"shard-000001.tar: HTTP 404"):
            shards[int(np.flatnonzero(shards.rows.shard == 1)[0])]
        assert_equal(shards, ShardSet(pristine))


def test_files_through_fsspec(pristine, cache):
    pytest.importorskip("fsspec", reason="needs the extra `remote`")
    assert_equal(ShardSet(pristine.as_uri()), ShardSet(pristine))
    with pytest.raises(ShardError, match=r"absent/manifest.json: is not there"):
        ShardSet(f"{pristine.as_uri()}/absent")


@pytest.fixture
def stored(pristine):
    """The class of a file system of fsspec that holds the set, as object stores do whose packages are not here."""
    memory = pytest.importorskip("fsspec", reason="needs the extra `remote`").filesystem("memory")
    memory.put(str(pristine), "/pools/brain", recursive=True)
    yield type(memory)
    memory.rm("/pools", recursive=True)


def test_any_filesystem_that_fsspec_knows(pristine, cache, stored):
    assert verify("memory://pools/brain", progress=False) == verify(pristine, progress=False)
    assert_equal(ShardSet("memory://pools/brain"), ShardSet(pristine))


@pytest.mark.parametrize("less", [0, 1, 2])
def test_nothing_is_asked_for_that_begins_at_the_end_of_a_file(pristine, cache, stored, monkeypatch, less):
    """Stores answer such a request with an error."""
    cat, size = stored.cat_file, (pristine / FIRST).stat().st_size

    def strict(self, path, start=None, end=None):
        assert start < len(cat(self, path))
        return cat(self, path, start=start, end=end)

    monkeypatch.setattr(stored, "cat_file", strict)
    monkeypatch.setattr(fetching, "_BLOCK", size - less)
    assert ShardSet("memory://pools/brain").open_shard(0).read() == (pristine / FIRST).read_bytes()


def test_faults_of_a_filesystem(pristine, cache, stored, monkeypatch):
    """Passing ones are survived, from where they came; that of permissions is final. None tells secrets."""
    faults, cat, asked = [], stored.cat_file, []

    def flaky(self, path, start=None, end=None):
        if path.endswith(FIRST):
            asked.append(start)
            if start and faults:
                raise faults.pop(0)
        return cat(self, path, start=start, end=end)

    monkeypatch.setattr(stored, "cat_file", flaky)
    monkeypatch.setattr(fetching, "_BLOCK", 1000)
    faults[:] = [ConnectionResetError(104, "reset"), TimeoutError("late"), OSError("throttled")]
    assert_equal(ShardSet("memory://pools/brain"), ShardSet(pristine))
    assert asked[:6] == [0, 1000, 1000, 1000, 1000, 2000]
    shutil.rmtree(cache)
    faults[:] = [PermissionError(13, "a://user:h1dden@b/c?sig=h1dden is not yours")]
    with pytest.raises(ShardError, match=f"memory://pools/brain/{FIRST}: a://b/c is not yours; give credentials"):
        ShardSet("memory://pools/brain")[0]


def test_a_store_whose_package_is_missing_is_named(cache, monkeypatch):
    pytest.importorskip("fsspec", reason="needs the extra `remote`")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ShardError, match=r"gs://bucket/set/manifest.json: needs a package .*gcsfs .*named here"):
        ShardSet("gs://bucket/set")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense://host/set", "nonsense://host/set/manifest.json: cannot be opened .*check the URL"),
        ("http://[::1/set", "the URL of a shard set is not valid"),
        ("http://host:port/set", "is not a URL; check its host and port"),
    ],
)
def test_urls_that_are_none(cache, url, says):
    with pytest.raises(ShardError, match=says):
        ShardSet(url)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("see https://u:p@host:8/a/b?sig=1#f now", "see https://host:8/a/b now"),
        ("(url='s3://key:secret@bucket/x')", "(url='s3://bucket/x')"),
        ("http://[::1?sig=1", "(not a valid URL)"),
        ("a://b and no c:/d", "a://b and no c:/d"),
    ],
)
def test_texts_are_redacted(text, says):
    assert redacted(text) == says


def test_a_set_is_named_by_the_last_part_of_its_url(tmp_path, monkeypatch):
    names = ["https://u:p@host:8/pools/brain/?sig=a/b", "s3://u:p@bucket", "file:///x/brain", tmp_path / "brain"]
    assert [set_name(path) for path in names] == ["brain", "bucket", "brain", "brain"]
    monkeypatch.chdir(tmp_path)
    assert set_name(".") == tmp_path.name
    with pytest.raises(ShardError, match="not valid"):
        set_name("http://[::1/brain")


def test_without_the_extra_the_error_names_it(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ShardError, match=r"s3://bucket/set/manifest.json: .*pip install 'egal-bench\[remote\]'"):
        ShardSet("s3://bucket/set")
