"""Every change, cut, loss or addition in a set is an error that says where it is."""

import hashlib
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egal_shards import Manifest, ShardError, ShardSet, pack, verify
from shards.shard_sets import edit_index, edit_manifest, resign, source

FILES = ["manifest.json", "index.parquet", "shard-000000.tar", "shard-000001.tar"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine") / "set"
    pack(source(), folder, size=8, shard_mb=0.02, progress=False)
    assert sorted(path.name for path in folder.iterdir())[:4] == sorted(FILES)
    return folder


@pytest.fixture
def copy(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "set")


def refused(folder, message=None, check=verify):
    with pytest.raises(ShardError, match=message) as caught:
        check(folder) if check is ShardSet else check(folder, progress=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_all(folder):
    shards = ShardSet(folder)
    for i in range(len(shards)):
        shards[i]


def test_the_pristine_set_verifies(pristine):
    report = verify(pristine, progress=False)
    tars = list(pristine.glob("*.tar"))
    assert (report.samples, report.shards, report.ok) == (12, len(tars), True)
    assert report.bytes == sum(path.stat().st_size for path in tars)


@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_is_found(pristine, file, position, bit):
    path = pristine / file
    good = path.read_bytes()
    bad = bytearray(good)
    bad[int(position * len(bad))] ^= 1 << bit
    path.write_bytes(bad)
    try:
        message = refused(pristine)
    finally:
        path.write_bytes(good)
    assert file in message


def test_reading_names_a_sample_with_a_flipped_bit(copy):
    frame = ShardSet(copy).index()
    i = int(np.flatnonzero(frame.roi_area)[1])
    path = copy / f"shard-{frame.shard[i]:06d}.tar"
    good = path.read_bytes()
    for member in range(3):
        offset, size = frame.offsets[i][2 * member : 2 * member + 2]
        for at in (offset, offset + size - 1):
            bad = bytearray(good)
            bad[at] ^= 1
            path.write_bytes(bad)
            shards = ShardSet(copy)
            with pytest.raises(ShardError, match=f"{path.name}: sample {frame.key[i]}: .* do not match their digest"):
                shards[i]
            with pytest.raises(ShardError, match=frame.key[i]):
                list(shards.batches([i], 1))
            shards[(i + 1) % 12]  # its neighbours are undamaged
            refused(copy, f"{path.name}: sample {frame.key[i]}")
    path.write_bytes(good)
    verify(copy, progress=False)


@pytest.mark.parametrize("file", FILES)
def test_missing_files_are_named(copy, file):
    (copy / file).unlink()
    refused(copy, f"{file}: No such file", ShardSet)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:300], lambda _: b""]
)
def test_cut_and_grown_files_are_named(copy, file, change):
    path = copy / file
    path.write_bytes(change(path.read_bytes()))
    refused(copy, file, ShardSet)


def test_shard_cut_between_members_and_signed_is_refused(copy):
    """webdataset would read fewer samples without an error."""
    frame = ShardSet(copy).index()
    last = frame[frame.shard == 0].iloc[-1]
    path = copy / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[: last.offsets[0] - 512] + bytes(1024))
    resign(copy)
    refused(copy, "index.parquet: its offsets", ShardSet)


def test_shard_cut_after_opening_is_refused_on_reading(copy):
    shards = ShardSet(copy)
    path = copy / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ShardError, match=r"shard-000000.tar: sample s000"):
        shards[0]
    path.unlink()
    with pytest.raises(ShardError, match=r"shard-000000.tar: No such file"):
        shards[0]


def test_extra_files_are_refused(copy):
    (copy / "shard-000099.tar").write_bytes(b"")
    refused(copy, r"shard-000099.tar: is not part of the set")


def test_exchanged_shards_are_refused(copy):
    a, b = copy / "shard-000000.tar", copy / "shard-000001.tar"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    refused(copy)
    resign(copy)
    refused(copy)


def test_members_not_in_the_index_are_refused(copy):
    """A member in place of another, and a member after the last, in tars whose digests the manifest confirms."""
    path = copy / "shard-000000.tar"
    good = path.read_bytes()
    for header in (tarfile.TarInfo("../../evil"), tarfile.TarInfo("s000.image.npy")):
        header.size = 192
        if header.name == "s000.image.npy":
            header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
        path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + good[512:])
        resign(copy)
        refused(copy, r"shard-000000.tar: sample s000: member .* is not the regular file")
        with pytest.raises(ShardError, match=r"sample s000: member .* is not the regular file"):
            ShardSet(copy)[0]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("more.json"))
    path.write_bytes(good[:-1024] + stream.getvalue())
    resign(copy)
    refused(copy, r"shard-000000.tar: holds bytes after its last sample")


def test_padding_that_carries_bytes_is_refused(copy):
    offsets = ShardSet(copy).index().offsets[0]
    path = copy / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[offsets[4] + offsets[5]] = 1
    path.write_bytes(data)
    resign(copy)
    refused(copy, "sample s000: the padding of member s000.json is not 0")


def first(column, value):
    return lambda columns: columns[column].__setitem__(0, value)


def offset(slot, change):
    def apply(columns):
        columns["offsets"][0] = list(columns["offsets"][0])
        columns["offsets"][0][slot] += change

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first("key", "../x"), "a key is not"),
        (first("key", "s000\n"), "a key is not"),
        (first("key", ""), "a key is not"),
        (first("key", "s001"), "a key occurs twice"),
        (first("key", None), "columns or row count"),
        (first("offsets", [None] * 6), "columns or row count"),
        (first("shard", 1), "its shards are not"),
        (first("shard", -1), "its shards are not"),
        (first("shard", 2**31 - 1), "its shards are not"),
        (first("label", 3), "its labels are not"),
        (first("label", -1), "its labels are not"),
        (first("label", 2**62), "its labels are not"),
        (first("split", "train"), "its splits are not"),
        (first("roi_area", 65), "ROI area is impossible"),
        (first("roi_area", -1), "ROI area is impossible"),
        (first("roi_area", 0), "ROI area is impossible"),
        *(
            (offset(slot, by), "its offsets are not")
            for slot in range(6)
            for by in (-512, 1, 512, 2**40, 2**62)
            if (slot, by) != (5, 1)
        ),
    ],
)
def test_index_against_manifest_or_format_is_refused(copy, change, message):
    edit_index(copy, change)
    refused(copy, message, ShardSet)


@pytest.mark.parametrize("column", ["label", "group", "split", "roi_area", "sha256", "key"])
def test_index_against_the_samples_is_refused(copy, column):
    """Two rows exchange a value, so every count still agrees and only the samples differ."""

    def trade(columns):
        values = columns[column]
        other = next(i for i, area in enumerate(columns["roi_area"]) if values[i] != values[0] and area)
        values[0], values[other] = values[other], values[0]

    edit_index(copy, trade)
    ShardSet(copy)
    refused(copy, "shard-00000.*: sample ")


def test_size_that_ends_in_the_padding_is_refused(copy):
    edit_index(copy, offset(5, 1))
    with pytest.raises(ShardError, match="sample s000: its bytes do not match"):
        ShardSet(copy)[0]
    refused(copy, r"sample s000: member 's000.json' of \d+ bytes is not")


def test_index_with_a_missing_row_is_refused(copy):
    edit_index(copy, lambda columns: [values.pop() for values in columns.values()])
    refused(copy, r"index.parquet: its columns or row count", ShardSet)


@pytest.mark.parametrize("column", [b"group", b"label", b"sha256"])
def test_index_with_a_renamed_column_is_refused(copy, column):
    path = copy / "index.parquet"
    path.write_bytes(path.read_bytes().replace(column, b"\0" + column[1:]))
    resign(copy)
    refused(copy, r"index.parquet: its columns or row count", ShardSet)


def test_index_that_is_not_parquet_is_refused(copy):
    (copy / "index.parquet").write_bytes(b"PAR1 but not really PAR1")
    resign(copy)
    refused(copy, r"index.parquet: cannot be read", ShardSet)


def put(*path_and_value):
    *path, last, value = path_and_value

    def apply(fields):
        for step in path:
            fields = fields[step]
        fields[last] = value

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("version", 2), r"version: this release of egal-bench reads format 1, not format 2"),
        (put("shards", 0, "file", "../shard-000000.tar"), "shards.0.file"),
        (put("shards", 0, "file", "/etc/passwd"), "shards.0.file"),
        (put("shards", 0, "file", "shard-000000.tar\n"), "shards.0.file"),
        (put("shards", 0, "file", "shard-000001.tar"), "not numbered"),
        (put("shards", 0, "samples", 1), "shards add up"),
        (put("shards", 0, "bytes", -1), "shards.0.bytes"),
        (put("shards", []), "shards: "),
        (put("counts", "samples", 13), "add up to 12, counts.samples is 13"),
        (put("counts", "splits", "pool", 0), "counts.splits add up"),
        (put("counts", "classes", "a", 5), "counts.classes add up"),
        (put("classes", ["a", "a", "c"]), "does not list the classes"),
        (put("classes", ["a", "b", "c", "d"]), "does not list the classes"),
        (put("image", "size", 10**9), "image.size"),
        (put("image", "format", "pyd"), "image.format"),
        (put("image", "channels", 2), "image.channels"),
        (put("index", "file", "../index.parquet"), "index.file"),
        (put("roi", "u8"), "roi: "),
        (put("more", 1), "more: "),
        (put("name", None), "name: "),
    ],
)
def test_manifest_against_the_format_is_refused(copy, change, message):
    edit_manifest(copy, change)
    refused(copy, f"manifest.json: .*{message}", ShardSet)


def test_image_size_against_the_shards_is_refused(copy):
    edit_manifest(copy, put("image", "size", 16))
    refused(copy, "its offsets are not", ShardSet)


def test_manifest_edited_without_its_checksum_is_refused(copy):
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"tiny"', '"tinz"'))
    refused(copy, "does not match its own checksum", ShardSet)


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"checksum": "' + "0" * 64 + '"}', "\0" * 100])
def test_file_that_is_not_a_manifest_is_refused(copy, text):
    (copy / "manifest.json").write_text(text)
    refused(copy, "manifest.json: does not match its own checksum", ShardSet)


def test_a_huge_manifest_is_not_read_to_its_end(copy):
    with (copy / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    refused(copy, "larger than 16 MiB", ShardSet)


def test_manifest_identity_is_the_digest_of_its_file(pristine, copy):
    assert Manifest.read(pristine).sha256 == Manifest.read(copy).sha256
    edit_manifest(copy, put("name", "other"))
    assert Manifest.read(pristine).sha256 != Manifest.read(copy).sha256
    assert ShardSet(copy).name == "other"


def test_folders_that_are_not_a_set_are_refused(tmp_path):
    refused(tmp_path, r"manifest.json: No such file.*is .* a shard set", ShardSet)
    refused(tmp_path / "absent", "No such file", ShardSet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields | {"class": "b"}, "differ from the index"),
        (lambda fields: fields | {"label": 1}, "differ from the index"),
        (lambda fields: fields | {"split": {"pool": "test", "test": "pool"}[fields["split"]]}, "differ from the index"),
        (lambda fields: fields | {"group": "g999"}, "differ from the index"),
        (lambda fields: fields | {"boxes": [[1, 2, 3]]}, "json does not follow the format"),
        (lambda fields: fields | {"extra": 1}, "json does not follow the format"),
        (lambda _: [], "json does not follow the format"),
    ],
)
def test_json_against_the_index_is_refused(copy, change, message):
    """The digests agree, as after a faulty writer."""
    frame = ShardSet(copy).index()
    row = frame.iloc[0]
    path = copy / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    at, size = row.offsets[4:]
    text = json.dumps(change(json.loads(data[at : at + size])), separators=(",", ":")).encode()
    block = tarfile.TarInfo("s000.json")
    block.size = len(text)
    data[at - 512 : at + 512] = block.tobuf(tarfile.USTAR_FORMAT) + text.ljust(512, b"\0")
    path.write_bytes(data)
    parts = [bytes(data[a : a + n]) for a, n in row.offsets[:4].reshape(2, 2)]

    def digest(columns):
        columns["sha256"][0] = hashlib.sha256(b"".join(parts) + text).digest()
        columns["offsets"][0] = [*columns["offsets"][0][:5], len(text)]

    edit_index(copy, digest)
    refused(copy, f"shard-000000.tar: sample s000: .*{message}")


def test_roi_padding_bits_and_area_are_checked(copy):
    frame = ShardSet(copy).index()
    row = frame.iloc[0]
    path = copy / "shard-000000.tar"
    good = path.read_bytes()
    at = row.offsets[2] + 128
    for byte, message in [(1, "padding bits"), (0, r"ROI has \d+ pixels, the index says")]:
        data = bytearray(good)
        data[at + byte] ^= 1  # row y=8 of an 8-pixel column is padding, row y=0 is a pixel
        path.write_bytes(data)
        payload = b"".join(bytes(data[a : a + n]) for a, n in row.offsets.reshape(3, 2))
        edit_index(copy, first("sha256", hashlib.sha256(payload).digest()))
        refused(copy, f"shard-000000.tar: sample s000: .*{message}")
