"""Sets behind a URL: equal to the local set or a clear error, whatever the server does."""

import io
import logging
import multiprocessing
import pickle
import shutil
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import numpy as np
import pytest

from egal_shards import ShardError, ShardSet, fetching, remote, verify
from egal_shards.urls import redacted, set_name
from shards.fault_server import serving
from shards.remote_sets import FIRST, assert_equal
from shards.shard_sets import edit_manifest


def test_a_remote_set_equals_the_local_one_fetched_once(many_shards, cache):
    with serving(many_shards) as (url, script):
        shards, local = ShardSet(url), ShardSet(many_shards)
        assert script.log == [("manifest.json", 0), ("index.parquet", 0)]  # shards on demand
        shards[0]
        assert script.log[2:] == [(FIRST, 0)]
        assert_equal(shards, local)
        order = np.random.default_rng(0).permutation(len(local))
        for ours, theirs in zip(shards.batches(order, 5), local.batches(order, 5), strict=True):
            assert ours.keys == theirs.keys
            assert ours.images.equal(theirs.images)
            assert ours.roi.equal(theirs.roi)
        assert verify(url, progress=False) == verify(many_shards, progress=False)
        assert_equal(ShardSet(url), local)
    names = [name for name, _ in script.log]
    assert {name: names.count(name) for name in names if name != "manifest.json"} == {
        path.name: 1 for path in many_shards.iterdir() if path.name != "manifest.json"
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
def test_transient_faults_are_survived(many_shards, cache, case, ranges):
    faults = {name: list(FAULTS[case]) for name in ("index.parquet", FIRST)}
    if case in ("reset", "errors", "mixed"):  # a damaged manifest cannot be told from another one
        faults["manifest.json"] = [500, 503]
    with serving(many_shards, faults=faults, ranges=ranges) as (url, script):
        assert_equal(ShardSet(url), ShardSet(many_shards))
    assert not any(faults.values())
    half = (many_shards / FIRST).stat().st_size // 2
    if case in ("reset", "cut"):
        assert script.starts(FIRST) == [0, half]
    if case == "other range":  # a server without ranges sends the file from its beginning
        assert script.starts(FIRST) == ([0, half, 0] if ranges else [0, half])
    assert not list(cache.glob("*/*.partial"))


@pytest.mark.parametrize("ranges", [True, False])
def test_exactly_the_requested_bytes_are_returned(many_shards, ranges):
    data = (many_shards / FIRST).read_bytes()
    with serving(many_shards, ranges=ranges) as (url, _):
        for start, stop in ((0, 1), (0, 1000), (700, 1001), (len(data) - 1, len(data) + 9), (5, 5)):
            assert b"".join(fetching.chunks(f"{url}/{FIRST}", start, stop)) == data[start:stop]


def test_no_retry_after_the_consumer_has_left(cache, monkeypatch):
    tries = []

    def failing(*_):
        tries.append(0)
        raise fetching.Transient("the server is busy")

    monkeypatch.setattr(remote, "chunks", failing)
    monkeypatch.setattr(remote, "unwanted", lambda: len(tries) == 2)
    with pytest.raises(ShardError, match=r"http://host/x: the download was stopped; the bytes that arrived are kept"):
        remote._receive("http://host/x?sig=h1dden", io.BytesIO(), 10)
    assert len(tries) == 2


def test_pauses_between_attempts_double(monkeypatch):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    monkeypatch.setattr(remote, "chunks", lambda *_: (_ for _ in ()).throw(fetching.Transient("the server is busy")))
    with pytest.raises(ShardError, match="the server is busy, after 5 attempts; 0 of 10 bytes are kept"):
        remote._receive("http://host/x", io.BytesIO(), 10)
    assert waits == [0.5, 1, 2, 4]


def test_slow_connections_time_out_and_resume(many_shards, cache, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT", 0.3)
    with serving(many_shards, faults={FIRST: ["stall"], "shard-000001.tar": ["trickle"]}) as (url, script):
        assert_equal(ShardSet(url), ShardSet(many_shards))
    assert script.starts(FIRST) == [0, (many_shards / FIRST).stat().st_size // 2]
    assert script.starts("shard-000001.tar")[1] > (many_shards / "shard-000001.tar").stat().st_size // 2


def test_attempts_with_progress_do_not_count(many_shards, cache, monkeypatch):
    monkeypatch.setattr(remote, "_PROGRESS", 1)
    with serving(many_shards, faults={FIRST: ["cut"] * 9}) as (url, script):
        ShardSet(url)[0]
    assert len(script.starts(FIRST)) == 10
    assert script.starts(FIRST) == sorted(set(script.starts(FIRST)))


def test_lasting_errors_end_and_the_next_run_resumes(many_shards, cache, caplog):
    with serving(many_shards, faults={FIRST: ["cut", *[500] * 20]}) as (url, script):
        shards = ShardSet(url)
        with pytest.raises(ShardError, match=rf"{url}/{FIRST}: HTTP 500 .*after 5 attempts; .* run it again") as caught:
            shards[0]
        assert "\n" not in str(caught.value)
        assert len(script.starts(FIRST)) == 5
        pauses = [float(text.rsplit(maxsplit=2)[1]) for text in caplog.messages]
        assert pauses == [0.01, 0.02, 0.04, 0.08]
        script.faults.clear()
        del script.log[:]
        shards[0]
        assert script.starts(FIRST) == [(many_shards / FIRST).stat().st_size // 2]


def test_wrong_content_is_fetched_twice_and_never_kept(many_shards, cache):
    with serving(many_shards, faults={FIRST: ["wrong"] * 9}) as (url, script):
        with pytest.raises(ShardError, match=f"{FIRST}: its bytes do not match their digest in the manifest; .*upload"):
            ShardSet(url)[0]
        assert script.starts(FIRST) == [0, 0]
    assert not list(cache.glob(f"*/{FIRST}")) + list(cache.glob(f"*/{FIRST}.partial"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data + b"\0", r"it has more than the \d+ bytes in the manifest; .*upload it again"),
        (lambda data: data[:-1], "the file on the server is shorter than what was read of it; .*upload it again"),
    ],
)
def test_a_file_of_the_wrong_size_is_refused(many_shards, cache, tmp_path, change, says):
    copy = shutil.copytree(many_shards, tmp_path / "copy")
    (copy / FIRST).write_bytes(change((copy / FIRST).read_bytes()))
    with serving(copy) as (url, _), pytest.raises(ShardError, match=f"{url}/{FIRST}: {says}"):
        ShardSet(url)[0]


@pytest.mark.parametrize(("status", "says"), [(404, "check the URL"), (403, "credentials"), (401, "credentials")])
def test_refusals_are_not_retried(many_shards, cache, status, says):
    with serving(many_shards, faults={"manifest.json": [status] * 9}) as (url, script):
        with pytest.raises(ShardError, match=rf"{url}/manifest.json: HTTP {status} .*{says}"):
            ShardSet(url)
        assert len(script.log) == 1


def self_signed(path):
    """Write a PEM file with a key and its certificate for 127.0.0.1."""
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


def test_https_trusts_only_known_certificates(many_shards, cache, tmp_path, monkeypatch, caplog):
    certificate = self_signed(tmp_path / "server.pem")
    with serving(many_shards, certificate) as (url, script):
        with pytest.raises(ShardError, match=f"{url}/manifest.json: .*certificate verify failed.*SSL_CERT_FILE"):
            ShardSet(url)
        assert (script.log, caplog.messages) == ([], [])  # and the request is not repeated
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert_equal(ShardSet(url), ShardSet(many_shards))


def test_an_absent_server_is_a_clear_error(cache):
    with serving(cache) as (url, _):
        pass
    with pytest.raises(ShardError, match=rf"{url}/manifest.json: Connection refused, after 5 attempts; check"):
        ShardSet(url)


def test_an_endless_manifest_is_not_read_to_its_end(many_shards, cache):
    with (
        serving(many_shards, faults={"manifest.json": ["endless"]}) as (url, script),
        pytest.raises(ShardError, match=f"{url}/manifest.json: is larger than 16 MiB"),
    ):
        ShardSet(url)
    assert script.sent < 64 << 20  # 16 MiB and the buffers of the socket


def test_secrets_reach_the_server_and_nothing_else(many_shards, cache, caplog):
    caplog.set_level(logging.DEBUG)
    with serving(many_shards, login="Basic dXNlcjpoMWRkZW4=", query="sig=h1dden") as (url, script):
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


def test_credentials_are_not_sent_after_a_redirect(many_shards, cache, tmp_path):
    with (
        serving(many_shards) as (other, target),  # it answers 401 to any credentials
        serving(tmp_path, login="Basic dXNlcjpoMWRkZW4=", moved_to=other) as (url, _),
    ):
        assert_equal(ShardSet(url.replace("://", "://user:h1dden@")), ShardSet(many_shards))
        assert len(target.log) == 2 + len(list(many_shards.glob("*.tar")))


def test_a_set_that_changed_at_its_url_is_another_set(many_shards, cache, tmp_path):
    copy = shutil.copytree(many_shards, tmp_path / "copy")
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
        with pytest.raises(ShardError, match=f"{url}: has changed since another process opened it"):
            pickle.loads(parcel)  # noqa: S301
        del script.log[:]
        (again.path / "manifest.json").write_bytes(b"damaged")
        assert pickle.loads(pickle.dumps(again)).name == "other"  # noqa: S301
        assert script.log == [("manifest.json", 0)]


def read_all(shards):
    return [(sample.key, sample.image.tobytes()) for sample in (shards[i] for i in range(len(shards)))]


def test_worker_processes_read_a_pickled_set(many_shards, cache):
    with serving(many_shards) as (url, script), multiprocessing.get_context("spawn").Pool(2) as pool:
        samples = pool.map(read_all, [ShardSet(url)] * 2)
    assert samples == [read_all(ShardSet(many_shards))] * 2
    assert len(script.log) == len(set(script.log)) == 2 + len(list(many_shards.glob("*.tar")))


def test_file_urls_are_read_through_fsspec(many_shards, cache):
    pytest.importorskip("fsspec", reason="needs the extra `remote`")
    assert_equal(ShardSet(many_shards.as_uri()), ShardSet(many_shards))
    with pytest.raises(ShardError, match=r"absent/manifest.json: does not exist"):
        ShardSet(f"{many_shards.as_uri()}/absent")


@pytest.fixture
def stored(many_shards):
    """The class of a file system of fsspec that holds the set. It stands for object stores."""
    memory = pytest.importorskip("fsspec", reason="needs the extra `remote`").filesystem("memory")
    memory.put(str(many_shards), "/pools/brain", recursive=True)
    yield type(memory)
    memory.rm("/pools", recursive=True)


def test_any_filesystem_of_fsspec_is_read(many_shards, cache, stored):
    assert verify("memory://pools/brain", progress=False) == verify(many_shards, progress=False)
    assert_equal(ShardSet("memory://pools/brain"), ShardSet(many_shards))


@pytest.mark.parametrize("less", [0, 1, 2])
def test_no_request_begins_at_the_end_of_a_file(many_shards, cache, stored, monkeypatch, less):
    """Stores answer such a request with an error."""
    cat, size = stored.cat_file, (many_shards / FIRST).stat().st_size

    def strict(self, path, start=None, end=None):
        assert start < len(cat(self, path))
        return cat(self, path, start=start, end=end)

    monkeypatch.setattr(stored, "cat_file", strict)
    monkeypatch.setattr(fetching, "_BLOCK", size - less)
    assert ShardSet("memory://pools/brain").open_shard(0).read() == (many_shards / FIRST).read_bytes()


def test_transient_faults_of_fsspec_are_survived(many_shards, cache, stored, monkeypatch):
    """Reading continues after transient faults and ends at missing permissions. No error shows secrets."""
    faults, cat, starts = [], stored.cat_file, []

    def flaky(self, path, start=None, end=None):
        if path.endswith(FIRST):
            starts.append(start)
            if start and faults:
                raise faults.pop(0)
        return cat(self, path, start=start, end=end)

    monkeypatch.setattr(stored, "cat_file", flaky)
    monkeypatch.setattr(fetching, "_BLOCK", 1000)
    faults[:] = [ConnectionResetError(104, "reset"), TimeoutError("late"), OSError("throttled")]
    assert_equal(ShardSet("memory://pools/brain"), ShardSet(many_shards))
    assert starts[:6] == [0, 1000, 1000, 1000, 1000, 2000]
    shutil.rmtree(cache)
    faults[:] = [PermissionError(13, "a://user:h1dden@b/c?sig=h1dden is not yours")]
    with pytest.raises(ShardError, match=f"memory://pools/brain/{FIRST}: a://b/c is not yours; give credentials"):
        ShardSet("memory://pools/brain")[0]


def test_a_store_whose_package_is_missing_is_named(cache, monkeypatch):
    pytest.importorskip("fsspec", reason="needs the extra `remote`")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ShardError, match=r"gs://bucket/set/manifest.json: needs a package .*gcsfs.*in parentheses"):
        ShardSet("gs://bucket/set")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense://host/set", "nonsense://host/set/manifest.json: cannot be opened .*check the URL"),
        ("http://[::1/set", "the URL of a shard set is not valid"),
        ("http://host:port/set", "is not a valid URL; check its host and port"),
    ],
)
def test_invalid_urls_are_refused(cache, url, says):
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
