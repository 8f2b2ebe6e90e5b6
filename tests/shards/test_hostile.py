"""Sets whose author means harm and gets every digest right are refused by name.

Nothing of them is run or written, and they take no more memory than honest sets. Each payload would leave a trace: the
file `trace` in the working folder, or the memory.
"""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import textwrap
import zlib
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from egal_shards import ShardError, ShardSet, pack, verify
from shards.hostile_files import NESTED, chunk, jpeg, png, zipped
from shards.shard_sets import edit_index, edit_manifest, resign, source

SHARD = "shard-000000.tar"


class Bomb:
    """An object that leaves a trace when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch trace",)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    home = tmp_path_factory.mktemp("pristine")
    for image_format in ("npy", "png", "jpg"):
        pack(source(), home / image_format, size=8, shard_mb=0.02, image_format=image_format, progress=False)
    return home


@pytest.fixture
def copy(pristine, tmp_path, monkeypatch):
    """Return a function that copies the set of one image format. Traces would appear in the working folder."""
    monkeypatch.chdir(tmp_path)
    return lambda image_format="npy": shutil.copytree(pristine / image_format, tmp_path / "set")


def read_by_shard(folder):
    shards = ShardSet.without_index(folder)
    for rows in shards.index_by_shard():
        shards.with_rows(rows)[0]


def refused(folder, message=None, opens=True):
    """Assert that `verify` refuses the set, and so does every way to read sample 0, or opening the set."""
    checks = [lambda: verify(folder, progress=False)]
    if opens:
        shards = ShardSet(folder)
        checks += [lambda: shards[0], lambda: list(shards.batches([0, 1], 2))]
    else:
        checks += [lambda: ShardSet(folder), lambda: read_by_shard(folder)]
    for check in checks:
        with pytest.raises(ShardError, match=message) as caught:
            check()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000
    assert os.listdir() == [folder.name], "something was written"


def forge(folder, payloads=None, headers=None):
    """Give sample 0 other payloads {0: image, 1: roi, 2: json} and tar headers, and let index and manifest agree."""
    frame = ShardSet(folder).index()
    rows = frame[frame.shard == 0]
    tar = (folder / SHARD).read_bytes()
    blocks, offsets, digests, end = [], [], [], 0
    for i, row in rows.iterrows():
        parts = row.offsets.reshape(3, 2)
        members = []
        for part, (at, size) in enumerate(parts.tolist()):
            payload, header = tar[at : at + size], tar[at - 512 : at] if size else b""
            if i == 0 and payloads and part in payloads:
                payload = payloads[part]
                header = tarfile.TarInfo.frombuf(header, "ascii", "strict")
                header.size = len(payload)
                header = header.tobuf(tarfile.USTAR_FORMAT)
            if i == 0 and headers and part in headers:
                header = headers[part](tarfile.TarInfo.frombuf(header, "ascii", "strict"))
            blocks += [header, payload.ljust(-(-len(payload) // 512) * 512, b"\0")]
            members.append((end + len(header) if payload else 0, len(payload), payload))
            end += len(header) + len(blocks[-1])
        offsets.append([value for at, size, _ in members for value in (at, size)])
        digests.append(hashlib.sha256(b"".join(payload for *_, payload in members)).digest())
    (folder / SHARD).write_bytes(b"".join(blocks) + bytes(1024))

    def change(columns):
        columns["offsets"][: len(rows)], columns["sha256"][: len(rows)] = offsets, digests

    edit_index(folder, change)


def npy(text, size=192):
    """Return an npy file of `size` bytes whose header is this text."""
    return (b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.encode().ljust(117) + b"\n").ljust(size, b"\1")


OBJECTS = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"

NPY = {
    "pickled objects": npy(OBJECTS, 128) + pickle.dumps(Bomb()).ljust(64, b"\0"),
    "bare pickle": pickle.dumps(Bomb()).ljust(192, b"\0"),
    "code in the header": npy("{'descr': __import__('os').system('touch trace'), 'shape': (1, 8, 8)}"),
    "giant shape": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000000000), }"),
    "negative shape": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8), }"),
    "nested header": npy("{'descr': " + "[" * 90),
    "object dtype": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 8, 8), }"),
    "memory order": npy("{'descr': '|u1', 'fortran_order': True, 'shape': (1, 8, 8), }"),
    **NESTED,
}


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("name", NPY)
def test_npy_files_by_others_are_refused(copy, name, part):
    folder = copy()
    size = int(ShardSet(folder).rows.offsets[0, 2 * part + 1])
    forge(folder, {part: NPY[name].ljust(size, b"\0")[:size]})
    refused(folder, "sample s000: an array in it is not the")


def test_the_pickle_would_have_left_its_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with suppress(AttributeError):  # what was unpickled is no array
        np.load(io.BytesIO(NPY["pickled objects"]), allow_pickle=True)
    assert os.listdir() == ["trace"]


def renamed(name):
    def header(member):
        member.name = name
        return member.tobuf(tarfile.USTAR_FORMAT)

    return header


def typed(kind, link="/etc/passwd"):
    def header(member):
        member.type, member.linkname = kind, link
        return member.tobuf(tarfile.GNU_FORMAT)

    return header


def sized(size):
    def header(member):
        member.size = size
        return member.tobuf(tarfile.GNU_FORMAT)

    return header


def preceded(kind, **fields):
    """Return a function that puts a PAX header, which overrides the header of the member, before it."""

    def header(member):
        if kind == "global":
            extra = tarfile.TarInfo.create_pax_global_header(fields)
        else:
            extra = member.create_pax_header(member.get_info() | {"name": member.name}, "utf-8")
            text = b"".join(record(name, value) for name, value in fields.items())
            info = tarfile.TarInfo("././@PaxHeader")
            info.type, info.size = tarfile.XHDTYPE, len(text)
            extra = info.tobuf(tarfile.USTAR_FORMAT) + text.ljust(512, b"\0")
            return extra + member.tobuf(tarfile.USTAR_FORMAT)
        return extra + member.tobuf(tarfile.USTAR_FORMAT)

    return header


def record(name, value):
    body = f" {name}={value}\n".encode()
    size = len(body) + 2
    return b"%d" % (size if len(b"%d" % size) == 2 else size + 1) + body


HEADERS = {
    "absolute name": renamed("/tmp/trace"),
    "name that climbs": renamed("../trace"),
    "pickle by name": renamed("s000.pyd"),
    "other pickle": renamed("s000.pickle"),
    "torch pickle": renamed("s000.pth"),
    "shell by name": renamed("pipe:touch trace"),
    "name with a NUL": renamed("s000.image.npy\0.pyd"),
    "hard link": typed(tarfile.LNKTYPE),
    "symbolic link": typed(tarfile.SYMTYPE),
    "link that climbs": typed(tarfile.SYMTYPE, "../../trace"),
    "character device": typed(tarfile.CHRTYPE),
    "block device": typed(tarfile.BLKTYPE),
    "pipe": typed(tarfile.FIFOTYPE),
    "folder": typed(tarfile.DIRTYPE),
    "sparse file": typed(tarfile.GNUTYPE_SPARSE),
    "long name": typed(tarfile.GNUTYPE_LONGNAME),
    "long link": typed(tarfile.GNUTYPE_LONGLINK),
    "PAX header": typed(tarfile.XHDTYPE),
    "global PAX header": typed(tarfile.XGLTYPE),
    "contiguous file": typed(tarfile.CONTTYPE),
    "unknown type": typed(b"Z"),
    "8 GiB": sized(8**11 - 1),
    "2 to the 70": sized(2**70),
    "no bytes": sized(0),
    "negative": sized(-1),
}


@pytest.mark.parametrize("name", HEADERS)
def test_tar_headers_by_others_are_refused(copy, name):
    folder = copy()
    forge(folder, headers={0: HEADERS[name]})
    if name == "name with a NUL":  # tar names end at NUL: it is the right one
        assert verify(folder, progress=False).ok
    else:
        refused(folder, "sample s000: (member .* is not the regular file|the tar header of .* is damaged)")


PAX = {
    "size": preceded("pax", size="1099511627776"),
    "path": preceded("pax", path="../trace"),
    "linkpath": preceded("pax", linkpath="/etc/passwd"),
    "sparse": preceded("pax", **{"GNU.sparse.major": "1", "GNU.sparse.realsize": "1099511627776"}),
    "global": preceded("global", path="../trace"),
}


@pytest.mark.parametrize("name", PAX)
def test_pax_headers_before_a_member(copy, name):
    folder = copy()
    forge(folder, headers={0: PAX[name]})
    refused(folder, "index.parquet: its offsets are not those of whole members", opens=False)


@pytest.mark.parametrize(
    "text",
    [
        pickle.dumps(Bomb()),
        b"[" * 200_000,
        b'{"about":' * 50_000,
        b'{"label": 1' + b"0" * 500_000 + b"}",
        b'{"label": NaN}',
        b'{"label": 0, "label": 0}',
        b"\xff\xfe{}",
        b'"' + b"x" * 1_000_000 + b'"',
        zlib.compress(bytes(1 << 20)),
    ],
    ids=["pickle", "deep list", "deep object", "long number", "NaN", "twice", "not UTF-8", "long text", "compressed"],
)
def test_json_by_others_is_refused(copy, text):
    folder = copy()
    forge(folder, {2: text})
    refused(folder, "sample s000: its json does not follow the format")


def test_json_above_its_bound(copy):
    folder = copy()
    forge(folder, {2: b" " * (1 << 20) + b"{}"})
    refused(folder, "index.parquet: its offsets", opens=False)


IMAGES = {
    "giant PNG": ("png", png(60_000, 60_000, rows=zlib.compress(bytes(1 << 20)))),
    "endless PNG": ("png", png(2**31 - 1, 2**31 - 1)),
    "PNG with a text bomb": ("png", png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(40 << 20), 9)))),
    "PNG with a profile bomb": ("png", png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(40 << 20), 9)))),
    "GIF in a PNG set": ("png", b"GIF89a" + bytes(300)),
    "EPS in a PNG set": ("png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(trace) (w) file\n"),
    "TIFF in a JPEG set": ("jpg", b"II*\0" + bytes(300)),
    "giant JPEG": ("jpg", jpeg(65_000, 65_000)),
    "pickle": ("png", pickle.dumps(Bomb())),
    **{name: ("png", data) for name, data in NESTED.items()},
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_by_others_are_refused(copy, name):
    image_format, payload = IMAGES[name]
    folder = copy(image_format)
    forge(folder, {0: payload[: 128 + (1 << 16)]})
    refused(folder, "sample s000: its image (is not the|cannot be decoded)")


def parquet(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def many_groups(table):
    """Return a Parquet file of thousands of row groups, all but the first empty."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table)
        for _ in range(4000):
            writer.write_table(table.slice(0, 0), row_group_size=1)
    return sink.getvalue()


def repeated(table, text):
    """Return a Parquet file whose dictionary has one long text, to which every row refers."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), [text])
    return parquet(table.set_column(table.schema.get_field_index("group"), "group", texts), compression="zstd")


def unpickled(table):
    """Return a Parquet file with a column of an Arrow extension type whose description is a pickle."""
    field = pa.field(
        "label",
        pa.int64(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Bomb()),
        },
    )
    schema = table.schema.set(table.schema.get_field_index("label"), field)
    return parquet(pa.table(table.columns, schema=schema))


def nested(table):
    deep = pa.array([[[[0]]]] * len(table))
    return parquet(table.set_column(table.schema.get_field_index("label"), "label", deep))


INDICES = {
    "long texts": lambda table: repeated(table, "x" * 2000),
    "bomb of a text": lambda table: repeated(table, "x" * (32 << 20)),
    "row groups": many_groups,
    "nested columns": nested,
    "too many rows": lambda table: parquet(pa.concat_tables([table] * 100_000), compression="zstd"),
    "one more column": lambda table: parquet(table.append_column("more", table["label"])),
    "gzip": lambda table: gzip.compress(parquet(table)),
    "zip": lambda table: zipped(parquet(table)),
    "pickle": lambda table: pickle.dumps(Bomb()),
}


@pytest.mark.parametrize("name", INDICES)
def test_indices_by_others_are_refused(copy, name):
    folder = copy()
    path = folder / "index.parquet"
    path.write_bytes(INDICES[name](pq.read_table(path)))
    resign(folder)
    refused(folder, r"index.parquet|manifest.json: index has \d+ bytes, too many", opens=False)


def test_extension_type_with_a_pickle_runs_nothing(copy):
    folder = copy()
    path = folder / "index.parquet"
    path.write_bytes(unpickled(pq.read_table(path)))
    resign(folder)
    with suppress(ShardError):
        verify(folder, progress=False)
    assert os.listdir() == ["set"]


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields["shards"][0].update(file="pipe:touch trace"),
        lambda fields: fields["shards"][0].update(file="/etc/passwd"),
        lambda fields: fields["shards"][0].update(file="../shard-000000.tar"),
        lambda fields: fields["index"].update(file="http://localhost/index.parquet"),
        lambda fields: fields["shards"][0].update(samples=2**61),
        lambda fields: fields["index"].update(bytes=2**61),
        lambda fields: fields["image"].update(size=2**40),
        lambda fields: fields.update(made=deep(400)),
    ],
)
def test_manifests_by_others_are_refused(copy, change):
    folder = copy()
    edit_manifest(folder, change)
    refused(folder, "manifest.json: ", opens=False)


def deep(levels):
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("body", [b"[" * (8 << 20), b"1" * (8 << 20), b'{"a":' * (2 << 20), b'"' + b"x" * (15 << 20)])
def test_raw_manifest_with_its_checksum_right(copy, body):
    folder = copy()
    raw = b'{"checksum": "' + b"0" * 64 + b'", "version": ' + body
    (folder / "manifest.json").write_bytes(raw.replace(b"0" * 64, hashlib.sha256(raw).hexdigest().encode(), 1))
    refused(folder, "manifest.json: ", opens=False)


@pytest.mark.parametrize("name", ["manifest.json", "index.parquet", SHARD])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_pipes_folders_and_devices_in_a_set_are_refused(copy, name, make):
    """No reader waits for a pipe to be written, or reads a device to its end."""
    folder = copy()
    (folder / name).unlink()
    make(folder / name)
    refused(folder, name, opens=False)


@pytest.mark.parametrize("path", ["pipe:touch trace", "pipe:touch trace |", "-", "/dev/zero", "|touch trace"])
def test_paths_are_nothing_but_paths(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShardError):
        ShardSet(path)
    assert os.listdir() == []


def test_memory_is_bounded(copy, tmp_path):
    """In a process of its own, sets that would unpack to gigabytes take at most 100 MB more than an honest set."""
    code = r"""
        import re, sys
        from pathlib import Path
        from egal_shards import ShardError, ShardSet, verify

        def peak():  # getrusage would count the parent of a forked process
            return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

        verify(sys.argv[1], progress=False)
        before = peak()
        for folder in sys.argv[2:]:
            try:
                verify(folder, progress=False)
            except ShardError as error:
                print(error)
        print(peak() - before)
    """
    honest, bombs = copy(), []

    def bomb(make):
        folder = shutil.copytree(honest, tmp_path / f"bomb{len(bombs)}")
        path = folder / "index.parquet"
        path.write_bytes(make(pq.read_table(path)))
        resign(folder)
        bombs.append(folder)
        return folder

    bomb(lambda table: repeated(table, "x" * (200 << 20)))
    bomb(lambda table: parquet(pa.concat_tables([table] * 100_000).combine_chunks(), compression="zstd"))
    sparse = bomb(parquet)
    os.truncate(sparse / "index.parquet", 1 << 36)
    edit_manifest(sparse, lambda fields: fields["index"].update(bytes=1 << 36))
    giant = bomb(parquet)
    forge(giant, headers={0: sized(2**40)})
    command = [sys.executable, "-c", textwrap.dedent(code), honest, *bombs]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *errors, grown = done.stdout.splitlines()
    assert len(errors) == len(bombs)
    assert int(grown) < 100


def test_a_set_forged_without_change_is_read(copy):
    """A set that `forge` writes unchanged is sound, so the other tests see the forged part alone."""
    folder = copy()
    forge(folder)
    assert verify(folder, progress=False).samples == 12
