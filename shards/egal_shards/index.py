"""`index.parquet`: one row per sample in the order of the shards, checked against the manifest on reading."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from egal_shards.errors import ShardError
from egal_shards.layout import BLOCK, HEADER, KEY, MAX_SAMPLE_JSON, MAX_TEXT, SPLITS, roi_shape
from egal_shards.manifest import INDEX, MAX_INDEX_ROW, Manifest

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        # image offset, size, roi offset, size (0, 0 without an ROI), json offset, size: payload bytes in the shard
        pa.field("offsets", pa.list_(pa.field("element", pa.int64(), nullable=False), 6), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("roi_area", pa.int32(), nullable=False),  # pixels at the packed size
        pa.field("sha256", pa.binary(32), nullable=False),  # covers the payloads of image, roi and json, in this order
    ]
)

_TEXTS = ["key", "group", "split"]
_BATCH = 4096  # rows that are read at a time where an index is not read whole
_ROWS = 1 << 16  # rows whose offsets are checked at a time, roughly
_LETTERS = np.array([KEY.fullmatch(chr(byte)) is not None for byte in range(256)])
_NUMBERS = pa.list_(pa.field("element", pa.int64(), nullable=False))
_ACCEPTED = {name: (pa.dictionary(pa.int32(), pa.string()),) for name in _TEXTS} | {
    "offsets": (_NUMBERS, pa.list_(pa.int64()), pa.list_(pa.int64(), 6), SCHEMA.field("offsets").type)
}  # Arrow types that a file may have instead of those of SCHEMA


@dataclass(frozen=True, eq=False)
class Index:
    """The columns of the index. Strings stay in the compact form of Arrow until somebody reads them."""

    table: pa.Table
    texts: dict[str, pa.Array]  # the columns key, group, split and sha256 of the table
    shard: np.ndarray  # int32 [N]
    offsets: np.ndarray  # int64 [N,6]
    label: np.ndarray  # int64 [N]
    roi_area: np.ndarray  # int32 [N]

    def text(self, column: str, i: int) -> Any:
        """Return row i of a column of strings or digests."""
        return self.texts[column][i].as_py()

    def keys(self, rows: np.ndarray) -> list[str]:
        """Return the keys of these rows.

        Every batch needs its keys, and `take` of Arrow would be slower than reading the images of the batch.
        """
        ends, text = _key_bytes(self.texts["key"])
        letters = text.data
        return [str(letters[a:b], "ascii") for a, b in zip(ends[rows].tolist(), ends[rows + 1].tolist(), strict=True)]

    def span(self, i: int) -> tuple[int, int]:
        """Return (begin, end) of the bytes of row i in its shard, from the tar header of its image to its json."""
        return int(self.offsets[i, 0]) - BLOCK, int(self.offsets[i, 4] + self.offsets[i, 5])

    def payloads(self, i: int, span: bytes) -> tuple[bytes, bytes, bytes]:
        """Return image, roi (empty without an ROI) and json of row i, cut from the bytes of its span."""
        start, _ = self.span(i)
        parts = self.offsets[i].reshape(3, 2).tolist()
        image, roi, text = (span[at - start : at - start + size] if size else b"" for at, size in parts)
        return image, roi, text

    @classmethod
    def of(cls, table: pa.Table) -> "Index":
        """Return the index of a table with the columns of SCHEMA."""
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        offsets = columns["offsets"].flatten().to_numpy().reshape(-1, 6)
        numbers = {name: columns[name].to_numpy() for name in ("shard", "label", "roi_area")}
        texts = {name: columns[name] for name in ("key", "group", "split", "sha256")}
        return cls(table, texts, offsets=offsets, **numbers)

    def __len__(self) -> int:
        return len(self.label)

    def __reduce__(self) -> tuple[Callable[[bytes], "Index"], tuple[bytes]]:
        """Pickle the rows of the table alone: Arrow would add those of the larger table from which they were cut."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA) as stream:
            stream.write_table(self.table)
        return _unpickled, (sink.getvalue().to_pybytes(),)

    def take(self, rows: np.ndarray) -> "Index":
        """Return the index of some rows, in this order."""
        return Index.of(self.table.take(pa.array(rows)))

    @classmethod
    def joined(cls, parts: Sequence["Index"]) -> "Index":
        """Return the index of the rows of all parts, in their order."""
        return cls.of(pa.concat_tables([part.table for part in parts] or [SCHEMA.empty_table()]))

    @classmethod
    def read(cls, folder: Path, manifest: Manifest) -> "Index":
        """Return the index of a set. Raises ShardError where it is not the one that the manifest describes."""
        path = folder / INDEX
        index = cls.of(_table(path, manifest))
        for fault, passed in _rules(index, manifest):
            if not passed:
                raise ShardError(f"{path}: {fault}; pack the set again")
        return index

    @classmethod
    def by_shard(cls, folder: Path, manifest: Manifest) -> Iterator["Index"]:
        """Yield the rows of each shard in order, with one shard in memory at a time, however large the index is.

        What `read` checks of a set is checked of each shard. Only a key that occurs in two shards is not noticed.
        Raises ShardError.
        """
        path = folder / INDEX
        batches = _batches(path, manifest)
        pending = SCHEMA.empty_table()
        for number, shard in enumerate(manifest.shards):
            parts = [pending]
            while (rows := sum(part.num_rows for part in parts)) < shard.samples:
                if (batch := next(batches, None)) is None:
                    raise _foreign(path)
                parts.append(batch)
            table = pa.concat_tables(parts)
            index, pending = cls.of(table.slice(0, shard.samples)), table.slice(shard.samples, rows - shard.samples)
            for fault, passed in _rules_of_shard(index, manifest, number):
                if not passed:
                    raise ShardError(f"{path}: {fault}; pack the set again")
            yield index


def _unpickled(content: bytes) -> Index:
    with pa.ipc.open_stream(content) as stream:
        return Index.of(stream.read_all())


def index_bytes(columns: dict[str, list[Any]]) -> bytes:
    """Return the bytes of the Parquet file of these columns."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink, compression="zstd", store_schema=False)
    return sink.getvalue().to_pybytes()


def _table(path: Path, manifest: Manifest) -> pa.Table:
    """Return the table of an index whose digest and columns are right, each column as one chunk."""
    try:
        if path.stat().st_size != manifest.index.bytes:
            raise ShardError(f"{path}: its size is not the one in the manifest; copy or pack the set again")
        raw = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; copy or pack the set again") from None
    if hashlib.sha256(raw).hexdigest() != manifest.index.sha256:
        raise ShardError(f"{path}: does not match its digest in the manifest; copy or pack the set again")
    foreign = _foreign(path)
    try:
        # A hostile file can repeat one long string in every row at 4 bytes each. Strings stay in their dictionaries
        # until they are known to be short.
        file = pq.ParquetFile(pa.BufferReader(raw), read_dictionary=_TEXTS)
        if not _plausible(file, manifest.counts.samples):
            raise foreign
        columns = [_column(file, field, path) for field in SCHEMA]  # one by one, since each needs twice its memory
        table = pa.table(columns, schema=SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{path}: cannot be read ({str(error).splitlines()[0]}); pack the set again") from None
    except KeyError:  # a column of _TEXTS is missing
        raise foreign from None
    except ValueError as error:  # a missing value in a column that may have none
        raise error if isinstance(error, ShardError) else foreign from None
    if any(column.null_count for column in (*columns, columns[SCHEMA.get_field_index("offsets")].values)):
        raise foreign
    return table


def _foreign(path: Path) -> ShardError:
    return ShardError(f"{path}: its columns or row count are not those of the format; pack the set again")


def _batches(path: Path, manifest: Manifest) -> Iterator[pa.Table]:
    """Yield the rows of an index whose digest and columns are right, a few thousand at a time."""
    try:
        if path.stat().st_size != manifest.index.bytes:
            raise ShardError(f"{path}: its size is not the one in the manifest; copy or pack the set again")
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != manifest.index.sha256:
                raise ShardError(f"{path}: does not match its digest in the manifest; copy or pack the set again")
            stream.seek(0)
            # without a buffer, Arrow reads a whole column at once
            file = pq.ParquetFile(stream, read_dictionary=_TEXTS, buffer_size=1 << 18, pre_buffer=False)
            if not _plausible(file, manifest.counts.samples):
                raise _foreign(path)
            for batch in file.iter_batches(_BATCH, use_threads=False):
                columns = [_plain(pa.chunked_array([batch.column(field.name)]), field, path) for field in SCHEMA]
                if any(column.null_count for column in (*columns, columns[2].flatten())):
                    raise _foreign(path)
                yield pa.table(columns, schema=SCHEMA)
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror or error}; copy or pack the set again") from None
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise error if isinstance(error, ShardError) else _foreign(path) from None


def _plausible(file: pq.ParquetFile, samples: int) -> bool:
    """Return whether the metadata of the file fit an index of this many samples. No column is read."""
    metadata, schema = file.metadata, file.schema_arrow
    groups = [metadata.row_group(n) for n in range(min(metadata.num_row_groups, samples + 1))]
    unpacked = sum(group.column(n).total_uncompressed_size for group in groups for n in range(group.num_columns))
    return (
        schema.names == SCHEMA.names
        and all(field.type in _ACCEPTED.get(field.name, (SCHEMA.field(field.name).type,)) for field in schema)
        and metadata.num_rows == samples == sum(group.num_rows for group in groups)
        and unpacked <= samples * MAX_INDEX_ROW + (1 << 20)
    )


def _column(file: pq.ParquetFile, field: pa.Field, path: Path) -> pa.Array:
    """Return a column as one array. Raises ShardError for strings that are too long."""
    # The threads of Arrow can abort a process that exits right afterwards
    column = file.read(columns=[field.name], use_threads=False)[field.name]
    array = _plain(column, field, path)
    del column
    pa.default_memory_pool().release_unused()  # else Arrow would keep as much memory again for later
    return array


def _plain(column: pa.ChunkedArray, field: pa.Field, path: Path) -> pa.Array:
    """Return a column as one array of its type in SCHEMA. Raises ShardError for strings that are too long."""
    if pa.types.is_dictionary(column.type):
        longest = max((pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0 for chunk in column.chunks), default=0)
        if longest > MAX_TEXT:
            raise ShardError(f"{path}: a {field.name} in it is longer than {MAX_TEXT} bytes; pack the set again")
    return pa.concat_arrays(column.cast(field.type).chunks)


def _rules(index: Index, manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """Yield (fault, whether the set is free of it) for each rule. A rule presupposes the rules before it."""
    samples = [shard.samples for shard in manifest.shards]
    split = index.table["split"]
    yield "a key is not 1 to 80 of A-Z a-z 0-9 _ -", _valid_keys(index.texts["key"])
    yield "a key occurs twice", _no_repetition(index.texts["key"])
    ordered = np.array_equal(index.shard, np.repeat(np.arange(len(samples)), samples))
    yield "its shards are not those of the manifest, in order", ordered
    blocks = np.array_split(np.arange(len(samples)), min(len(samples), -(-len(index.shard) // _ROWS)))
    contiguous = all(_contiguous(index, manifest, int(block[0]), int(block[-1]) + 1) for block in blocks)
    yield "its offsets are not those of whole members, one after the other", contiguous
    labels = index.label[(index.label >= 0) & (index.label < len(manifest.classes))]
    per_class = np.bincount(labels, minlength=len(manifest.classes)).tolist()
    counted = per_class == list(manifest.counts.classes.values())
    labelled = bool(manifest.classes) or bool((index.label == -1).all())  # a set without classes has no labels
    yield "its labels are not those that the manifest counts", counted and labelled
    splits = {name: pc.sum(pc.equal(split, name)).as_py() for name in SPLITS}
    yield "its splits are not those that the manifest counts", splits == manifest.counts.splits
    yield "an ROI area is impossible", _possible_areas(index, manifest)


def _rules_of_shard(index: Index, manifest: Manifest, number: int) -> Iterator[tuple[str, bool]]:
    """Yield (fault, whether a shard is free of it) for each rule, given the rows of shard `number`."""
    yield "a key is not 1 to 80 of A-Z a-z 0-9 _ -", _valid_keys(index.texts["key"])
    yield "a key occurs twice", _no_repetition(index.texts["key"])
    yield "its shards are not those of the manifest, in order", bool((index.shard == number).all())
    yield (
        "its offsets are not those of whole members, one after the other",
        _contiguous(index, manifest, number, number + 1),
    )
    lowest, classes = (0, len(manifest.classes)) if manifest.classes else (-1, 0)
    labelled = (index.label >= lowest) & (index.label < classes)
    yield "its labels are not those that the manifest counts", bool(labelled.all())
    sides = pc.is_in(index.texts["split"], pa.array(SPLITS))
    yield "its splits are not those that the manifest counts", bool(pc.all(sides).as_py())
    yield "an ROI area is impossible", _possible_areas(index, manifest)


def _possible_areas(index: Index, manifest: Manifest) -> bool:
    """Return whether exactly the rows with an ROI have an area, of at most the pixels of an image."""
    marked = (index.roi_area > 0) == (index.offsets[:, 3] > 0)
    possible = marked & (index.roi_area >= 0) & (index.roi_area <= manifest.image.size**2)
    return bool(possible.all())


def _valid_keys(keys: pa.Array) -> bool:
    """Return whether every key matches KEY, by one look-up of the bytes of all keys."""
    sizes = pc.min_max(pc.binary_length(keys)).as_py()
    ends, text = _key_bytes(keys)
    return bool(sizes["min"] >= 1 and sizes["max"] <= 80 and _LETTERS[text[ends[0] : ends[-1]]].all())


def _no_repetition(keys: pa.Array) -> bool:
    """Return whether no two keys are equal.

    Counts the keys in parts, by their last letter, since Arrow needs several times the memory of what it counts.
    """
    ends, text = _key_bytes(keys)
    last = text[ends[1:] - 1]
    parts = (keys.filter(pa.array(last == letter)) for letter in np.unique(last))
    return all(pc.count_distinct(part).as_py() == len(part) for part in parts)


def _key_bytes(keys: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return (ends int32 [N+1], text uint8): key i is text[ends[i] : ends[i+1]]."""
    _, ends, text = keys.buffers()
    return np.frombuffer(ends, np.int32)[keys.offset :][: len(keys) + 1], np.frombuffer(text or b"", np.uint8)


def _contiguous(index: Index, manifest: Manifest, begin: int, end: int) -> bool:
    """Return whether the members of the shards [begin, end) follow each other without a gap.

    Payload sizes must be those of the format, and members must fill each shard from its first block to its end marker.
    """
    first, last = np.searchsorted(index.shard, (begin, end))
    shard, offsets = index.shard[first:last] - begin, index.offsets[first:last]
    image, roi, text = offsets[:, 1], offsets[:, 3], offsets[:, 5]
    spec = manifest.image
    pixels = np.dtype(spec.dtype).itemsize * spec.channels * spec.size**2  # bytes
    words = 4 * int(np.prod(roi_shape(manifest.image.size)))
    if manifest.image.format == "npy":
        sized = (image == HEADER + pixels).all()
    else:
        sized = ((image > 0) & (image <= 2 * pixels + (1 << 16))).all()  # far above what an encoder can need
    if not (sized and np.isin(roi, (0, HEADER + words)).all() and ((text > 1) & (text <= MAX_SAMPLE_JSON)).all()):
        return False
    sizes = offsets[:, 1::2]
    spans = np.where(sizes > 0, BLOCK + -(-sizes // BLOCK) * BLOCK, 0)  # header and padded payload
    ends = np.cumsum(spans).reshape(-1, 3)
    first_rows = np.searchsorted(shard, np.arange(end - begin))  # first row of each shard
    base = (ends[:, 2] - spans.sum(axis=1))[first_rows]
    starts = np.where(sizes > 0, ends - spans - (base - BLOCK)[shard][:, None], 0)
    capacity = np.array([file.bytes for file in manifest.shards[begin:end]]) - 2 * BLOCK
    last_rows = np.append(first_rows[1:], len(shard)) - 1
    return bool(np.array_equal(offsets[:, 0::2], starts) and (ends[last_rows, 2] - base <= capacity).all())
