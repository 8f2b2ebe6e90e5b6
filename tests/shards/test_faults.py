"""Seeded faults of every kind: `verify` finds each, and reading raises a ShardError or gives the original.

A fifth of the faults is made here, and all ten thousand by `make fuzz`. `pytest -s` prints the count of each kind. For
`signed` kinds every digest is corrected afterwards, as a faulty writer or a hostile author would do, so that only
contradictions between manifest, index and samples reveal the fault.
"""

import hashlib
import io
import json
import re
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from egal_shards import ShardError, ShardSet, pack, verify
from egal_shards.records import Record, Source
from profiles import is_thorough
from shards.shard_sets import raw

MANIFEST, INDEX = "manifest.json", "index.parquet"
SHARDS = ("shard-000000.tar", "shard-000001.tar")


# A fault changes the files of a set, {name: bytes}, in place. `part`, from 0 to 1, is the share of the faults of its
# kind that came before: flipped bits are spread evenly over their files.


def flip(*names):
    def fault(files, rng, part):
        name = names[int(part * len(names))]
        data = bytearray(files[name])
        at = (part * len(names) % 1) * len(data) + rng.integers(32)
        data[int(at) % len(data)] ^= 1 << rng.integers(8)
        files[name] = bytes(data)

    return fault


def lost_sector(files, rng, part):
    """Replace 512 bytes, aligned or not, by zeros, ones or noise."""
    name = rng.choice(SHARDS)
    data = bytearray(files[name])
    at = rng.integers(len(data) - 512) // rng.choice([1, 512]) * rng.choice([1, 512])
    at = min(at, len(data) - 512)
    data[at : at + 512] = [bytes(512), b"\xff" * 512, rng.bytes(512)][rng.integers(3)]
    files[name] = bytes(data)


def members(tar):
    """Return the offsets of the headers and of the end marker."""
    at, headers = 0, []
    while tar[at]:
        headers.append(at)
        at += 512 + -(-int(tar[at + 124 : at + 135], 8) // 512) * 512
    return [*headers, at]


def cut_shard(where):
    """Cut a shard in a member, and perhaps end it like a tar, fill it up with zeros, or sign it as well."""

    def fault(files, rng, part):
        name = rng.choice(SHARDS)
        tar = files[name]
        starts = members(tar)
        n = rng.integers(len(starts) - 1)
        at = {
            "member": starts[n],
            "header": starts[n] + rng.integers(1, 512),
            "payload": rng.integers(starts[n] + 513, starts[n + 1]),
        }[where]
        tail = [b"", bytes(1024), bytes(len(tar) - at), bytes(1024 - at % 512)][how := rng.integers(4)]
        files[name] = tar[:at] + tail
        if how == 3:
            sign(files)

    return fault


def cut(name):
    def fault(files, rng, part):
        files[name] = files[name][: rng.integers(len(files[name]))]

    return fault


def grown(files, rng, part):
    name = rng.choice([MANIFEST, INDEX, *SHARDS])
    files[name] += [bytes(int(rng.integers(1, 2048))), rng.bytes(512), b"\n"][rng.integers(3)]


def missing(files, rng, part):
    del files[rng.choice([MANIFEST, INDEX, *SHARDS])]


def extra(files, rng, part):
    name = ["shard-000002.tar", "shard-999999.tar", "x", ".hidden", "index.parquet.bak", "s000.json"][rng.integers(6)]
    files[name] = [b"", rng.bytes(100), files[SHARDS[0]]][rng.integers(3)]


def swapped(files, rng, part):
    a, b = rng.choice([MANIFEST, INDEX, *SHARDS], 2, replace=False)
    files[a], files[b] = files[b], files[a]


def swapped_shards_signed(files, rng, part):
    a, b = rng.choice(SHARDS, 2, replace=False)
    files[a], files[b] = files[b], files[a]
    sign(files)


def duplicated(files, rng, part):
    a, b = rng.choice(SHARDS, 2, replace=False)
    files[rng.choice([a, "shard-000002.tar"])] = files[b]


def renamed(files, rng, part):
    name = rng.choice([MANIFEST, INDEX, *SHARDS])
    files[f"{name}{rng.integers(9)}" if rng.random() < 0.5 else f"shard-{rng.integers(2, 10**6):06d}.tar"] = files.pop(
        name
    )


def moved_members(files, rng, part):
    """Exchange two members, so that each is complete but their order is wrong."""
    name = rng.choice(SHARDS)
    tar, starts = files[name], members(files[name])
    a, b = sorted(rng.choice(len(starts) - 1, 2, replace=False))
    parts = [tar[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    parts[a], parts[b] = parts[b], parts[a]
    files[name] = b"".join(parts)
    if rng.random() < 0.5:
        sign(files)


def edited_index(signed):
    """Write other rows into the index: a row dropped, repeated or moved, values exchanged or invented."""

    def fault(files, rng, part):
        table = pq.read_table(io.BytesIO(files[INDEX]))
        columns = table.to_pydict()
        rows = len(columns["key"])
        a, b = (int(i) for i in rng.choice(rows, 2, replace=False))
        column = rng.choice(table.column_names)
        values = columns[column]
        how = rng.integers(5)
        if how == 0:
            [column.pop(a) for column in columns.values()]
        elif how == 1:
            [column.__setitem__(a, column[b]) for column in columns.values()]
        elif how == 2:
            [column.insert(b, column.pop(a)) for column in columns.values()]
        elif how == 3:
            values[a], values[b] = values[b], values[a]
        elif column in ("shard", "label", "roi_area"):
            values[a] += int(rng.integers(1, 9)) * int(rng.choice([-1, 1]))
        elif column == "offsets":
            slot = rng.integers(6)
            values[a] = [value + (i == slot) * int(rng.integers(1, 999)) for i, value in enumerate(values[a])]
        else:
            values[a] = rng.bytes(32) if column == "sha256" else values[a] + "0"
        sink = io.BytesIO()
        pq.write_table(pa.table(columns, schema=table.schema), sink)
        if columns != table.to_pydict():
            files[INDEX] = sink.getvalue()
            if signed:
                sign(files)

    return fault


def edited_manifest(signed):
    """Change a field of well-formed JSON. Signed: only fields that the other files can contradict."""

    def fault(files, rng, part):
        fields = json.loads(files[MANIFEST])
        step = int(rng.choice([-2, -1, 1, 2, 7]))
        a, b, n = (int(i) for i in rng.integers(2, size=3))
        shard, counts = fields["shards"][n], fields["counts"]

        def traded(values):
            values[a], values[b] = values[b], values[a]

        def trade(items):
            names, values = list(items), list(items.values())
            traded(values)
            return dict(zip(names, values, strict=True))

        def rename():
            fields["classes"][a] = "other"
            counts["classes"] = dict(zip(fields["classes"], counts["classes"].values(), strict=True))

        changes = [
            lambda: counts.update(samples=counts["samples"] + step),
            lambda: counts.update(classes=trade(counts["classes"])),
            lambda: counts["splits"].update(pool=counts["splits"]["pool"] + step),
            lambda: counts["classes"].update(a=counts["classes"]["a"] + step),
            lambda: traded(fields["classes"]),
            rename,
            lambda: traded(fields["shards"]),
            lambda: shard.update(samples=shard["samples"] + step),
            lambda: shard.update(bytes=shard["bytes"] + 512 * step),
            lambda: shard.update(file=f"shard-{n + step % 9:06d}.tar"),
            lambda: shard.update(sha256=rng.bytes(32).hex()),
            lambda: fields["shards"].pop(n),
            lambda: fields["shards"].append({**shard, "file": SHARDS[a]}),
            lambda: fields["image"].update(size=8 + step),
            lambda: fields["image"].update(channels=int(rng.choice([0, 2, 3]))),
            lambda: fields["image"].update(dtype=str(rng.choice(["uint16", "int8", "object"]))),
            lambda: fields["image"].update(format=str(rng.choice(["png", "jpg", "pyd"]))),
            lambda: fields["index"].update(bytes=fields["index"]["bytes"] + step),
            lambda: fields["index"].update(sha256=rng.bytes(32).hex()),
            lambda: fields.update(version=1 + step),
            lambda: fields.update(unknown=step),
            lambda: fields.pop(str(rng.choice([name for name in fields if name != "checksum"]))),
            lambda: fields.update({str(rng.choice([name for name in fields if name != "checksum"])): None}),
        ]
        if not signed:
            changes += [lambda: fields.update(name="other"), lambda: fields.update(resize="squash")]
            changes += [lambda: fields["made"].update(seed=step), lambda: fields.update(checksum="0" * 64)]
        before = json.dumps(fields)
        changes[rng.integers(len(changes))]()
        if json.dumps(fields) != before:
            files[MANIFEST] = json.dumps(fields).encode()
            if signed:
                sign(files, manifest_only=True)

    return fault


def sign(files, manifest_only=False):
    """Correct the digests and sizes in the manifest, and its own checksum."""
    fields = json.loads(files[MANIFEST])
    for entry in [] if manifest_only else [fields["index"], *fields["shards"]]:
        data = files[entry["file"]]
        entry["bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    text = json.dumps({**fields, "checksum": "0" * 64})
    files[MANIFEST] = re.sub("0{64}", hashlib.sha256(text.encode()).hexdigest(), text, count=1).encode()


KINDS = {
    "bit of a shard flipped": (1800, flip(*SHARDS)),
    "bit of the index flipped": (1800, flip(INDEX)),
    "bit of the manifest flipped": (1800, flip(MANIFEST)),
    "sector of a shard lost": (600, lost_sector),
    "shard cut at a member boundary": (400, cut_shard("member")),
    "shard cut in a header": (500, cut_shard("header")),
    "shard cut in a payload": (600, cut_shard("payload")),
    "index cut": (250, cut(INDEX)),
    "manifest cut": (250, cut(MANIFEST)),
    "file grown": (300, grown),
    "file missing": (50, missing),
    "file too many": (150, extra),
    "files swapped": (150, swapped),
    "shards swapped, signed": (50, swapped_shards_signed),
    "shard duplicated": (100, duplicated),
    "file renamed": (150, renamed),
    "members moved": (300, moved_members),
    "index edited": (300, edited_index(signed=False)),
    "index edited, signed": (800, edited_index(signed=True)),
    "manifest edited": (300, edited_manifest(signed=False)),
    "manifest edited, signed": (500, edited_manifest(signed=True)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four samples in two shards: with a mask, with boxes, without an ROI, and with a mask again."""
    folder = tmp_path_factory.mktemp("faults") / "set"
    records = [
        Record(f"s{i:03d}", "ab"[i % 2], f"g{i}", f"{i}.png", partial(raw, i), split=["pool", "test"][i // 2])
        for i in range(4)
    ]
    pack(Source("tiny", ("a", "b"), records, {}), folder, size=8, shard_mb=0.008, progress=False)
    assert sorted(path.name for path in folder.iterdir()) == sorted([MANIFEST, INDEX, *SHARDS])
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    """A set that was opened and read once before the fault."""
    shards = ShardSet(folder)
    assert read(shards, by_batches=True) == read(shards, by_batches=False)
    return shards


def read(shards, by_batches):
    """Return {position: contents} of the samples that can be read."""
    samples = {}
    for i in range(0, len(shards), 1 + by_batches):
        try:
            if by_batches:
                [batch] = shards.batches([i, i + 1], 2)
                samples |= {i + n: plain(batch, n) for n in range(2)}
            else:
                sample = shards[i]
                words = np.packbits(np.pad(sample.roi.T, [(0, 0), (0, 24)]), axis=1, bitorder="little")
                samples[i] = (sample.key, sample.image.tobytes(), words.tobytes(), sample.has_roi, sample.label)
        except ShardError:
            continue
    return samples


def plain(batch, n):
    arrays = batch.images[n].numpy().tobytes(), batch.roi[n].numpy().tobytes()
    return batch.keys[n], *arrays, bool(batch.has_roi[n]), int(batch.labels[n])


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_found(folder, opened, kind):
    count, fault = KINDS[kind]
    count = count if is_thorough() else count // 5
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    original = read(opened, by_batches=False)
    rng = np.random.default_rng([list(KINDS).index(kind), 13])
    done = 0
    while done < count:
        files = dict(good)
        fault(files, rng, done / count)
        if files == good:
            continue
        done += 1
        replace_files(folder, good, files)
        try:
            with pytest.raises(ShardError) as caught:
                verify(folder, progress=False)
            assert "\n" not in str(caught.value)
            samples = [*read_fresh(folder, done)]
            if any(files.get(name) != good[name] for name in SHARDS):
                samples += read(opened, by_batches=done % 2 == 0).items()
            assert [i for i, sample in samples if sample != original[i]] == [], f"{kind}, number {done}"
        finally:
            replace_files(folder, files, good)
    print(f"\n{count:5} {kind} ", end="")


def read_fresh(folder, done):
    try:
        shards = ShardSet(folder)
    except ShardError:
        return {}.items()
    return read(shards, by_batches=done % 8 == 0).items()


def replace_files(folder, present, target):
    """Replace the files `present` in the folder by `target`, both {name: bytes}."""
    for name in present.keys() - target.keys():
        (folder / name).unlink()
    for name, data in target.items():
        if present.get(name) != data:
            (folder / name).write_bytes(data)
