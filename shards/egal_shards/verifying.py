"""Checks every byte of a shard set against its manifest and its index."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from egal_shards import layout
from egal_shards.decoding import check_header, decode_sample
from egal_shards.errors import ShardError
from egal_shards.manifest import INDEX, MANIFEST
from egal_shards.progress import progress_bar
from egal_shards.reader import ShardSet
from egal_shards.threads import cores, ordered_map


@dataclass(frozen=True)
class Report:
    """The numbers of samples and shards that were verified, and the bytes of all shards."""

    samples: int
    shards: int
    bytes: int
    ok: bool = True


def verify(path: str | Path, progress: bool = True) -> Report:
    """Read, check and decode every byte of a set, and return its counts.

    Raises ShardError, with the names of shard and sample, for the first problem: files missing or added, members that
    the index does not list, bytes that differ from a digest, arrays that are not what the manifest declares, json or
    ROI area that disagree with the index. Shards are read in parallel, each once, from front to back.

    Args:
        path: Folder or URL of the set.
        progress: Whether to show a progress bar on stderr.
    """
    shards = ShardSet(path)
    manifest = shards.manifest
    known = {MANIFEST, INDEX, *(shard.file for shard in manifest.shards)}
    for entry in [] if shards.remote else sorted(shards.path.iterdir()):
        if entry.name not in known:
            raise ShardError(f"{entry}: is not part of the set; move it elsewhere")
    numbers = range(len(manifest.shards))
    with progress_bar(f"verify {shards.name}", len(shards), progress) as advance:
        for samples in ordered_map(lambda number: _verify_shard(shards, number), numbers, cores(), cores()):
            advance(samples)
    return Report(len(shards), len(numbers), sum(shard.bytes for shard in manifest.shards))


class _Tape:
    """A shard that is read from front to back, and hashed at the same time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`."""
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _verify_shard(shards: ShardSet, number: int) -> int:
    """Verify a shard and return the number of its samples."""
    index, declared = shards.rows, shards.manifest.shards[number]
    rows = np.flatnonzero(index.shard == number)
    with shards.open_shard(number) as file:
        tape = _Tape(file)
        for i in rows:
            _verify_sample(shards, int(i), tape, declared.file)
        ending = 0
        while block := tape.read(1 << 20):
            ending += len(block)
            if any(block):
                raise ShardError(f"{declared.file}: holds bytes after its last sample; copy or pack the set again")
    if ending < 2 * layout.BLOCK or tape.digest.hexdigest() != declared.sha256:
        raise ShardError(f"{declared.file}: does not match its digest in the manifest; copy or pack the set again")
    return len(rows)


def _verify_sample(shards: ShardSet, i: int, tape: _Tape, shard: str) -> None:
    """Verify row i of the index, whose members come next on the tape."""
    index, manifest = shards.rows, shards.manifest
    key = index.text("key", i)
    where = f"{shard}: sample {key}"
    sizes = [int(size) for size in index.offsets[i, 1::2]]  # image, roi, json
    names = iter(layout.members(key, manifest.image.format, sizes[1] > 0))
    image, roi, text = (_read_member(tape, next(names), size, where) if size else b"" for size in sizes)
    decode_sample((image, roi, text), i, index, manifest)


def _read_member(tape: _Tape, name: str, size: int, where: str) -> bytes:
    """Return the payload of the member that comes next on the tape."""
    check_header(tape.read(layout.BLOCK), name, size, where)
    payload = tape.read(size)
    if any(tape.read(layout.padded(size) - size)):
        raise ShardError(f"{where}: the padding of member {name} is not 0; copy or pack the set again")
    return payload
