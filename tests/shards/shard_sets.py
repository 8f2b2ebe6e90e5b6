"""Small sources for the tests of shards, and functions that tamper with sets."""

import hashlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from egal_shards.records import Raw, Record, Source

CLASSES = ("a", "b", "c")


def raw(i, height=20, width=31, colour=False):
    """Return an image with, in turn, a mask, boxes, or no ROI."""
    rng = np.random.default_rng([7, i])
    image = rng.integers(0, 256, (height, width, 3) if colour else (height, width), dtype=np.uint8)
    if i % 3 == 0:
        return Raw(image, rng.random((height, width)) < 0.4)
    return Raw(image, None, ((1.5, 2.0, 17.25, 19.0), (20.0, 0.0, 31.0, 5.5)) if i % 3 == 1 else ())


def source(samples=12, load=raw, split=lambda i: "", **settings):
    """Return a source of samples in three classes, with two samples per group."""

    def record(i):
        return Record(
            key=f"s{i:03d}",
            label=CLASSES[i // 2 % 3],
            group=f"g{i // 2:03d}",
            file=f"images/{i}.png",
            load=lambda: load(i),
            split=split(i),
        )

    return Source("tiny", CLASSES, [record(i) for i in range(samples)], {"source": "test", **settings})


def edit_manifest(folder, change):
    """Apply change(dict) to the manifest and correct its checksum, by the rule of docs/shards.md."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    fields["checksum"] = "0" * 64
    text = json.dumps({"checksum": fields.pop("checksum"), **fields})
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(re.sub("0{64}", digest, text, count=1))


def edit_index(folder, change):
    """Apply change(dict of column lists) to the index, and correct the manifest."""
    path = folder / "index.parquet"
    table = pq.read_table(path)
    columns = table.to_pydict()
    change(columns)
    loose = [field.with_nullable(True) for field in table.schema]
    loose[table.schema.get_field_index("offsets")] = pa.field("offsets", pa.list_(pa.int64()))
    pq.write_table(pa.table(columns, schema=pa.schema(loose)), path)
    resign(folder)


def resign(folder):
    """Correct sizes and digests in the manifest for the present bytes of index and shards."""

    def change(fields):
        for entry in [fields["index"], *fields["shards"]]:
            data = (folder / entry["file"]).read_bytes()
            entry["bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()

    edit_manifest(folder, change)
