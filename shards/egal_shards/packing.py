"""From a source to a shard set: decode in parallel, write in order, appear all at once."""

import fcntl
import glob
import json
import os
import shutil
import sys
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from pydantic import ValidationError

from egal_shards import geometry, layout
from egal_shards.errors import ShardError
from egal_shards.forks import can_fork, forked_map
from egal_shards.intensity import fit_image
from egal_shards.manifest import Manifest
from egal_shards.progress import progress_bar
from egal_shards.records import Raw, Record, Source
from egal_shards.split import Split, assign
from egal_shards.threads import cores, ordered_map
from egal_shards.writer import Encoded, SetWriter, encode

_RUN = 16  # samples at least that a worker takes at a time; no group is cut for it
_RUN_BYTES = 16e6  # of pixels at most, which cuts groups too
_FORKED = 64  # samples for which processes are worth their start


class _Planned(NamedTuple):
    record: Record
    side: str  # "pool" | "test"
    unit: str


@dataclass(frozen=True)
class _Spec:
    size: int
    channels: int
    resize: geometry.Resize
    image_format: layout.ImageFormat
    dtype: layout.ImageDtype
    shard_mb: float

    def __post_init__(self) -> None:
        if not 8 <= self.size <= layout.MAX_SIZE:
            raise ShardError(f"size {self.size} is not between 8 and {layout.MAX_SIZE} pixels; 224 is usual")
        if self.channels not in (1, 3):
            raise ShardError(f"channels {self.channels} is neither 1 (grey) nor 3 (RGB)")
        if self.resize not in get_args(geometry.Resize):
            raise ShardError(f"resize {self.resize!r} is none of {', '.join(get_args(geometry.Resize))}")
        if self.image_format not in get_args(layout.ImageFormat):
            raise ShardError(f"image_format {self.image_format!r} is none of {', '.join(get_args(layout.ImageFormat))}")
        if self.dtype not in get_args(layout.ImageDtype):
            raise ShardError(f"dtype {self.dtype!r} is none of {', '.join(get_args(layout.ImageDtype))}")
        if not layout.storable(self.image_format, self.dtype, self.channels):
            raise ShardError(
                f"image_format {self.image_format} does not hold {self.dtype} of {self.channels} channels; use npy"
            )
        if not self.shard_mb > 0:
            raise ShardError(f"shard_mb {self.shard_mb} is not above 0; 64 is usual")


def pack(
    source: Source,
    out_dir: str | Path,
    *,
    size: int = 224,
    channels: int = 1,
    resize: geometry.Resize = "letterbox",
    shard_mb: float = 64,
    split: Split = Split(),  # noqa: B008
    image_format: layout.ImageFormat = "npy",
    dtype: layout.ImageDtype = "uint8",
    progress: bool = True,
) -> Manifest:
    """The manifest of the shard set written to `out_dir`, which must be new or empty.

    Images become dtype [channels,size,size], ROIs bool [size,size]; uint16 keeps what uint8 would round away, and is
    stored as npy or, in one channel, png. `shard_mb` is the most that a shard holds, in 10⁶ bytes (at least one
    sample). Equal sources and settings give equal bytes, whatever the number of workers. The
    set appears at `out_dir` once it is whole: an error or Ctrl-C leaves nothing there. ShardError for bad input.
    """
    spec = _Spec(size, channels, resize, image_format, dtype, shard_mb)
    _check_source(source, channels)
    splits, units = assign(source.records, source.classes, split)
    plan = [_Planned(*planned) for planned in zip(source.records, splits, units, strict=True)]
    fixed = any(record.split for record in source.records)
    made = {
        "source": source.made,
        "split": "fixed by the source" if fixed else {"test": split.test, "seed": split.seed},
        "shard_mb": shard_mb,
        "egal_bench": version("egal-bench"),
    }

    if progress and "note" in source.made:
        print(f"{source.name}: {source.made['note']}", file=sys.stderr)

    with _appearing(Path(out_dir)) as folder, SetWriter(folder, shard_mb * 1e6) as writer:
        bar = progress_bar(f"pack {source.name}", len(plan), progress)
        with bar as advance, closing(_encoded(plan, spec, source.classes)) as runs:
            for sample in chain.from_iterable(runs):
                writer.add(sample)
                advance(1)
        image = {"size": size, "channels": channels, "dtype": dtype, "format": image_format}
        writer.finish(name=source.name, classes=source.classes, image=image, resize=resize, made=made)
    return Manifest.read(out_dir)


def _check_source(source: Source, channels: int) -> None:
    if source.channels not in (None, channels):
        raise ShardError(
            f"{source.name}: its images have {source.channels} channels that are not to be mixed, and channels is "
            f"{channels}; pack {source.channels}"
        )
    if not source.records:
        raise ShardError(f"{source.name}: has no samples; nothing to pack")
    if len(set(source.classes)) != len(source.classes):
        raise ShardError(f"{source.name}: a class is listed twice in {list(source.classes)}; list each once")
    try:
        json.dumps(source.made, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ShardError(f"{source.name}: its `made` cannot be written as JSON ({error}); use plain values") from None
    seen: dict[str, str] = {}
    for record in source.records:
        if not layout.KEY.fullmatch(record.key):
            raise ShardError(f"{record.file}: key {record.key!r} is not 1 to 80 of A-Z a-z 0-9 _ -; rename it")
        if len(record.group.encode()) > layout.MAX_TEXT:
            raise ShardError(f"{record.file}: its group has more than {layout.MAX_TEXT} bytes; shorten it")
        if record.key in seen:
            raise ShardError(f"{record.file}: has the same key {record.key!r} as {seen[record.key]}; rename one")
        if record.label not in source.classes:
            raise ShardError(f"{record.file}: label {record.label!r} is none of {list(source.classes)}; mend it")
        seen[record.key] = record.file


def _encoded(plan: list[_Planned], spec: _Spec, classes: Sequence[str]) -> Generator[list[Encoded], None, None]:
    """The samples in order, from a process or a thread a core."""

    def encode_run(run: list[_Planned]) -> list[Encoded]:
        return [_encode(*planned, spec, classes) for planned in run]

    runs = list(_runs(plan, int(_RUN_BYTES / (spec.size**2 * spec.channels * np.dtype(spec.dtype).itemsize)) or 1))
    if can_fork() and cores() > 1 and len(plan) >= _FORKED:
        return forked_map(encode_run, runs, min(cores(), len(runs)))
    return ordered_map(encode_run, runs, cores(), cores())


def _runs(plan: list[_Planned], most: int) -> Iterator[list[_Planned]]:
    """Consecutive samples, at most `most`: whole groups where they fit, whose files (a volume) are then read once."""
    run: list[_Planned] = []
    for planned in plan:
        if len(run) >= most or (len(run) >= _RUN and run[-1].record.group != planned.record.group):
            yield run
            run = []
        run.append(planned)
    yield run


def _encode(record: Record, side: str, unit: str, spec: _Spec, classes: Sequence[str]) -> Encoded:
    raw = record.load()
    height, width = _checked(raw, record.file, spec)
    at = geometry.place(width, height, spec.size, spec.resize)
    image = fit_image(raw.image, at, spec.channels, spec.dtype)
    boxes = geometry.fit_boxes(raw.boxes, width, height, record.file)
    mask = geometry.draw_boxes(boxes, at) if raw.mask is None else geometry.resize_mask(raw.mask, at)
    fields = {
        "label": classes.index(record.label),
        "class": record.label,
        "group": unit,
        "split": side,
        "boxes": boxes,
        "original_size": (width, height),
        "file": record.file,
        "about": record.about | raw.about,
    }
    try:
        about = layout.SampleJson.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ShardError(f"{record.file}: {where} cannot be written: {first['msg']}; use plain values") from None
    area = int(np.count_nonzero(mask))
    roi = layout.encode_roi(mask) if area else b""
    return encode(record.key, about, area, layout.encode_image(image, spec.image_format), roi, spec.image_format)


def _checked(raw: Raw, file: str, spec: _Spec) -> tuple[int, int]:
    """(height, width) of the image."""
    shape, kind = raw.image.shape, raw.image.dtype.name
    if kind not in ("uint8", "uint16", "float32") or shape[2:] not in ((), (3,)) or 0 in shape or len(shape) < 2:
        raise ShardError(f"{file}: image is {kind} {list(shape)}; it must be uint8, uint16 or float32 [H,W] or [H,W,3]")
    if kind == "uint16" and spec.dtype == "uint8":
        raise ShardError(
            f"{file}: holds 16-bit values; pack dtype uint16, or give the window LOW,HIGH that 8 bits show"
        )
    if kind == "float32" and not (raw.image.min() >= 0 and raw.image.max() <= 1):
        raise ShardError(f"{file}: holds values outside 0 to 1, or NaN, after its window; mend or leave out the file")
    if raw.mask is None:
        return shape[0], shape[1]
    if raw.boxes:
        raise ShardError(f"{file}: has both a mask and boxes; the ROI comes from one of them, drop the other")
    if raw.mask.dtype != bool or raw.mask.ndim != 2:
        raise ShardError(f"{file}: mask is {raw.mask.dtype} {list(raw.mask.shape)}; it must be bool [H,W]")
    if raw.mask.shape != shape[:2]:
        raise ShardError(
            f"{file}: its mask is {raw.mask.shape[1]}×{raw.mask.shape[0]} (w×h) and the image {shape[1]}×{shape[0]}; "
            "they must be of one size"
        )
    return shape[0], shape[1]


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that becomes `out` on success and vanishes on anything else."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ShardError(f"{out}: exists already; choose another folder, or delete it first")
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out.absolute())
        folder = out.absolute().parent / f".{out.absolute().name}.{uuid.uuid4().hex[:8]}.partial"
        folder.mkdir()
        with _handle(folder) as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # ends with the process, however that ends
            try:
                yield folder
                os.fsync(held)
                folder.rename(out)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        with _handle(out.absolute().parent) as parent:
            os.fsync(parent)
    except OSError as error:
        raise ShardError(
            f"{error.filename or out}: {error.strerror or error}; check the disk and permissions"
        ) from error


def _remove_abandoned(out: Path) -> None:
    """What packs into `out` left behind that were killed: nobody holds the lock of its folder."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.{'[0-9a-f]' * 8}.partial"):
        with _handle(folder) as handle, suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _handle(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)
