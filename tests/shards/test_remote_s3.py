"""Sets in S3, on a moto server on localhost."""

import logging

import numpy as np
import pytest

from egal_shards import ShardError, ShardSet, pack, remote, verify
from shards.shard_sets import source

boto3 = pytest.importorskip("boto3", reason="S3 is tested with moto[server] and s3fs")
pytest.importorskip("s3fs", reason="S3 needs the extra `remote`")
moto_server = pytest.importorskip("moto.server", reason="S3 is tested with moto[server]")

SECRET = "h1dden-h1dden"


@pytest.fixture(scope="module")
def endpoint():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch):
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "reader",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "EGAL_CACHE": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "_DELAY", 0.01)
    bucket = boto3.resource("s3").Bucket("pools")
    bucket.create()
    yield bucket
    bucket.objects.delete()
    bucket.delete()


@pytest.fixture
def local(tmp_path, bucket):
    pack(source(24), tmp_path / "set", size=8, shard_mb=0.02, progress=False)
    for path in (tmp_path / "set").iterdir():
        bucket.upload_file(str(path), f"brain/v1/{path.name}")
    return tmp_path / "set"


def test_a_set_in_s3_equals_the_local_one(local, tmp_path):
    shards, expected = ShardSet("s3://pools/brain/v1"), ShardSet(local)
    assert verify("s3://pools/brain/v1/", progress=False) == verify(local, progress=False)
    order = np.random.default_rng(0).permutation(len(expected))
    for ours, theirs in zip(shards.batches(order, 7), expected.batches(order, 7), strict=True):
        assert ours.keys == theirs.keys
        assert ours.images.equal(theirs.images)
        assert ours.roi.equal(theirs.roi)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [path for path in kept if SECRET.encode() in path.read_bytes() or SECRET in str(path)]


@pytest.mark.parametrize("requests", [1, 2, 3])
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_a_large_file_comes_in_several_requests(local, monkeypatch, requests, off):
    """S3 refuses a range that begins at the end of the file."""
    size = (local / "shard-000000.tar").stat().st_size
    monkeypatch.setattr("egal_shards.fetching._BLOCK", size // requests + off)
    sample, expected = ShardSet("s3://pools/brain/v1")[0], ShardSet(local)[0]
    np.testing.assert_array_equal(sample.image, expected.image)


def test_a_download_continues_a_partial_file(local, bucket, monkeypatch):
    monkeypatch.setattr("egal_shards.fetching._BLOCK", 1000)
    shards = ShardSet("s3://pools/brain/v1")
    first = (local / "shard-000000.tar").read_bytes()
    (shards.path / "shard-000000.tar.partial").write_bytes(first[:5000])
    bucket.put_object(
        Key="brain/v1/shard-000000.tar", Body=bytes(5000) + first[5000:]
    )  # the first 5000 bytes are not requested again
    np.testing.assert_array_equal(shards[0].image, ShardSet(local)[0].image)


def test_objects_that_were_cut_or_changed_are_refused(local, bucket):
    first = (local / "shard-000000.tar").read_bytes()
    for bad in (first[:-100], first + b"\0", bytes(len(first))):
        bucket.put_object(Key="brain/v1/shard-000000.tar", Body=bad)
        with pytest.raises(ShardError, match=r"s3://pools/brain/v1/shard-000000.tar: "):
            ShardSet("s3://pools/brain/v1")[0]


@pytest.mark.parametrize("url", ["s3://pools/absent", "s3://no-such-bucket/set"])
def test_a_missing_set_is_a_clear_error(bucket, url):
    with pytest.raises(ShardError, match=f"{url}/manifest.json: does not exist; check the URL"):
        ShardSet(url)


def test_missing_credentials_are_a_clear_error(bucket, monkeypatch, endpoint):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    __import__("s3fs").S3FileSystem.clear_instance_cache()
    with pytest.raises(ShardError, match="Unable to locate credentials; set them as for the AWS command line"):
        ShardSet("s3://pools/brain/v1")
