"""A set written from the description of the format in docs/shards.md, without our code, can be read."""

import hashlib
import io
import json
import math
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from egal_shards import ShardSet, verify

CLASSES = ("benign", "malignant", "never seen")


def npy(descr, shape, data):
    """Return an array as docs/shards.md describes "npy headers"."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n" + data


def roi_payload(pixels, size):
    """Return an ROI as docs/shards.md describes "ROI bits": bit y mod 32 of word ⌊y/32⌋ of row x is pixel (y, x)."""
    words = math.ceil(size / 32)
    rows = [[0] * words for _ in range(size)]
    for y, x in pixels:
        rows[x][y // 32] |= 1 << (y % 32)
    data = b"".join(word.to_bytes(4, "little") for row in rows for word in row)
    return npy("<u4", f"({size}, {words})", data)


def image_payload(image):
    descr = {1: "|u1", 2: "<u2"}[image.dtype.itemsize]
    channels, height, width = image.shape
    return npy(descr, f"({channels}, {height}, {width})", image.astype(descr).tobytes("C"))


def samples(size, channels, dtype):
    """Yield (key, image, ROI pixels, label, group, split) of six samples."""
    rng = np.random.default_rng(5)
    for i in range(6):
        image = rng.integers(0, np.iinfo(dtype).max + 1, (channels, size, size), dtype)
        roi = [] if i % 3 == 2 else [(y, x) for y in range(i, size - 1) for x in (3, 5 + i)]
        yield f"case-{i}_T1", image, roi, i % 2, f"patient {i // 2} é", "test" if i >= 4 else "pool"


def write_set(folder, size, channels, dtype):
    """Write tar shards, index.parquet and manifest.json."""
    columns = {name: [] for name in ("key", "shard", "offsets", "label", "group", "split", "roi_area", "sha256")}
    shards = []
    chosen = list(samples(size, channels, dtype))
    for number, part in enumerate((chosen[:4], chosen[4:])):
        stream, name = io.BytesIO(), f"shard-{number:06d}.tar"
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, image, roi, label, group, split in part:
                contents = {
                    "label": label, "class": CLASSES[label], "group": group, "split": split,
                    "boxes": [[1.5, 2, 3, 4]], "original_size": [640, 480], "file": f"raw/{key}.dcm",
                }  # fmt: skip
                members = {
                    "image.npy": image_payload(image),
                    "roi.npy": roi_payload(roi, size) if roi else b"",
                    "json": json.dumps(contents).encode(),
                }
                offsets = []
                for extension, payload in members.items():
                    if not payload:
                        offsets += [0, 0]
                        continue
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(payload)
                    offsets += [tar.offset + 512, len(payload)]
                    tar.addfile(info, io.BytesIO(payload))
                row = key, number, offsets, label, group, split, len(roi)
                digest = hashlib.sha256(b"".join(members.values())).digest()
                for column, value in zip(columns.values(), (*row, digest), strict=True):
                    column.append(value)
        data = stream.getvalue()
        (folder / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        shards.append({"file": name, "bytes": len(data), "samples": len(part), "sha256": digest})
    types = {
        "key": pa.string(), "shard": pa.int32(), "offsets": pa.list_(pa.int64(), 6), "label": pa.int64(),
        "group": pa.string(), "split": pa.string(), "roi_area": pa.int32(), "sha256": pa.binary(32),
    }  # fmt: skip
    arrow = size % 2 == 0  # other languages write no schema of Arrow
    pq.write_table(pa.table(columns, schema=pa.schema(types)), folder / "index.parquet", store_schema=arrow)
    index = (folder / "index.parquet").read_bytes()
    manifest = {
        "checksum": "0" * 64,
        "version": 1,
        "name": "by hand",
        "classes": CLASSES,
        "counts": {
            "samples": 6,
            "splits": {"pool": 4, "test": 2},
            "classes": {"benign": 3, "malignant": 3, "never seen": 0},
        },
        "image": {"size": size, "channels": channels, "dtype": dtype, "format": "npy"},
        "resize": "squash",
        "roi": "u32-along-y",
        "shards": shards,
        "index": {"file": "index.parquet", "bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
        "made": {"by": "hand"},
    }
    text = json.dumps(manifest, indent=2).encode()
    checksum = hashlib.sha256(text).hexdigest().encode()
    (folder / "manifest.json").write_bytes(text.replace(b"0" * 64, checksum, 1))


@pytest.mark.parametrize(
    ("size", "channels", "dtype"), [(20, 1, "uint8"), (32, 3, "uint8"), (33, 1, "uint16"), (70, 3, "uint16")]
)
def test_a_set_written_from_the_description_is_read(tmp_path, size, channels, dtype):
    write_set(tmp_path, size, channels, dtype)
    report = verify(tmp_path, progress=False)
    assert (report.samples, report.shards) == (6, 2)
    shards = ShardSet(tmp_path)
    assert (shards.name, shards.classes) == ("by hand", CLASSES)
    for sample, (key, image, roi, label, group, split) in zip(shards, samples(size, channels, dtype), strict=True):
        assert (sample.key, sample.label, sample.group, sample.split) == (key, label, group, split)
        assert sample.has_roi == bool(roi)
        np.testing.assert_array_equal(sample.image, image)
        assert sample.image.dtype == dtype
        assert sorted(zip(*np.nonzero(sample.roi), strict=True)) == sorted(roi)
    [batch] = shards.batches(range(6), 6)
    bits = batch.roi.numpy().view(np.uint32)
    for i, (_, _, roi, *_) in enumerate(samples(size, channels, dtype)):
        assert [bool(bits[i, x, y // 32] >> np.uint32(y % 32) & 1) for y, x in roi] == [True] * len(roi)
