"""Arbitrary bytes with right digests in every parser end in a ShardError of one line, or in a consistent result.

A few seconds here; `make fuzz` runs the same tests for longer.
"""

import hashlib
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egal_shards import Manifest, ShardError, ShardSet, pack
from egal_shards.decoding import check_header, decode_sample
from egal_shards.index import Index
from shards.shard_sets import source

quick = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("fuzz")
    for image_format in ("npy", "png", "jpg"):
        pack(source(), home / image_format, size=8, shard_mb=0.02, image_format=image_format, progress=False)
    shutil.copytree(home / "npy", home / "bad")
    return home


@st.composite
def spoiled(draw, good):
    """Draw `good` with some bytes overwritten, cut out, repeated or inserted, and sometimes entirely other bytes."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 40))
        match draw(st.integers(0, 4)):
            case 0:
                data[at : at + size] = draw(st.binary(max_size=40))
            case 1:
                data[at : at + 1] = draw(st.sampled_from([b"\0", b"\xff", b"[", b"{", b'"', b"9" * 30, b"-", b"e9999"]))
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size] * draw(st.integers(1, 50))
            case 4:
                data = bytearray(draw(st.binary(max_size=200)))
    return bytes(data)


def refused(run):
    """Return the result of `run`, or None where it raises ShardError with one line."""
    try:
        return run()
    except ShardError as error:
        if "\n" in str(error):
            raise AssertionError("more than one line") from error
        return None


@quick
@given(st.data())
def test_spoiled_manifests_are_refused_or_consistent(folders, data):
    good = (folders / "npy" / "manifest.json").read_bytes()
    raw = data.draw(spoiled(good))
    raw = re.sub(rb'(?<=\A\{\n "checksum": ")[0-9a-f]{64}', b"0" * 64, raw)
    raw = raw.replace(b"0" * 64, hashlib.sha256(raw).hexdigest().encode(), 1)
    (folders / "bad" / "manifest.json").write_bytes(raw)
    manifest = refused(lambda: Manifest.read(folders / "bad"))
    assert manifest is None or manifest.counts.samples == sum(shard.samples for shard in manifest.shards)


@quick
@given(st.data())
def test_spoiled_indices_are_refused_or_consistent(folders, data):
    good = (folders / "npy" / "index.parquet").read_bytes()
    raw = data.draw(spoiled(good))
    (folders / "bad" / "index.parquet").write_bytes(raw)
    manifest = Manifest.read(folders / "npy")
    index = manifest.index.model_copy(update={"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()})
    rows = refused(lambda: Index.read(folders / "bad", manifest.model_copy(update={"index": index})))
    assert rows is None or rows.table.column_names == pq.read_table(folders / "npy" / "index.parquet").column_names


@quick
@given(st.data(), st.sampled_from(["npy", "png", "jpg"]), st.integers(0, 2))
def test_spoiled_samples_are_refused_or_of_the_format(folders, data, image_format, part):
    shards = ShardSet(folders / image_format)
    rows = shards.rows
    with shards.open_shard(0) as file:
        file.seek(rows.span(0)[0])
        payloads = list(rows.payloads(0, file.read(rows.span(0)[1] - rows.span(0)[0])))
    payloads[part] = data.draw(spoiled(payloads[part]))
    digest = hashlib.sha256(b"".join(payloads)).digest()
    object.__setattr__(
        rows, "text", lambda column, i, text=rows.text: digest if column == "sha256" else text(column, i)
    )
    sample = refused(lambda: decode_sample(tuple(payloads), 0, rows, shards.manifest))
    if sample is not None:
        assert (sample.image.shape, sample.image.dtype, sample.words.shape) == ((1, 8, 8), np.uint8, (8, 1))


@quick
@given(st.data())
def test_spoiled_tar_headers_are_refused(folders, data):
    good = (folders / "npy" / "shard-000000.tar").read_bytes()[:512]
    block = data.draw(spoiled(good))[:512]
    if refused(lambda: check_header(block, "s000.image.npy", 192, "sample") or True):
        assert block.startswith(b"s000.image.npy\0")
