"""Packs a source into a shard set: decodes in parallel, writes in order, and shows the set once it is complete."""

import fcntl
import glob
import json
import os
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from pydantic import ValidationError

from egal_shards import geometry, layout, observations
from egal_shards.errors import ShardError, printable
from egal_shards.forks import can_fork, forked_map
from egal_shards.intensity import fit_image
from egal_shards.manifest import Manifest
from egal_shards.notes import collected
from egal_shards.progress import progress_bar
from egal_shards.records import Raw, Record, Source
from egal_shards.split import Split, assign
from egal_shards.threads import cores, ordered_map
from egal_shards.writer import Encoded, SetWriter, encode

_RUN = 16  # samples that a worker takes at a time, at least; the run goes on to the end of the group
_RUN_BYTES = 16e6  # bytes of pixels in a run, at most, even where that cuts a group
_FORKED = 64  # forked processes are worth their start for at least this many samples


class _Planned(NamedTuple):
    """A record with its side of the split and its unit."""

    record: Record
    side: str  # "pool" | "test"
    unit: str


@dataclass(frozen=True)
class _Spec:
    """The settings of `pack` that every sample needs, checked."""

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
                f"image_format {self.image_format} cannot store {self.dtype} with channels {self.channels}; use npy"
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
    """Write a shard set and return its manifest. Raises ShardError for bad input.

    Images become dtype [channels,size,size], ROIs bool [size,size]. Equal sources and settings give equal bytes,
    whatever the number of workers. The set appears at `out_dir` once it is complete: an error or Ctrl-C leaves nothing
    behind.

    Args:
        source: The records to pack.
        out_dir: Folder to write, new or empty.
        size: Pixels per side of the packed images.
        channels: 1 (grey) or 3 (RGB).
        resize: "letterbox" keeps the aspect, centred on zeros; "squash" stretches.
        shard_mb: Limit of a shard in 10⁶ bytes. A larger sample has a shard of its own.
        split: Share of the test set and seed of the draw. A split that the source fixes takes precedence.
        image_format: "npy", "png" or "jpg".
        dtype: "uint8", or "uint16", which loses less and needs npy or, with one channel, png.
        progress: Whether to show progress and the note of the source on stderr.
    """
    spec = _Spec(size, channels, resize, image_format, dtype, shard_mb)
    _check_source(source, channels)
    say = _Speaker(source.name, progress)
    if "note" in source.made:
        say(source.made["note"])
    splits, units = assign(source.records, source.classes, split)
    for remark in observations.remarks(source, splits):
        say(remark)
    plan = [_Planned(*planned) for planned in zip(source.records, splits, units, strict=True)]
    fixed = any(record.split for record in source.records)
    settings = {
        "source": source.made,
        "split": "fixed by the source" if fixed else {"test": split.test, "seed": split.seed},
        "shard_mb": shard_mb,
        "egal_bench": version("egal-bench"),
    }

    notes: Counter[str] = Counter()
    with_roi = 0
    with _complete_or_absent(Path(out_dir)) as folder, SetWriter(folder, shard_mb * 1e6) as writer:
        bar = progress_bar(f"pack {source.name}", len(plan), progress)
        with bar as advance, closing(_encoded(plan, spec, source.classes)) as runs:
            for sample in chain.from_iterable(runs):
                writer.add(sample)
                notes.update(sample.notes)
                with_roi += sample.row["roi_area"] > 0
                advance(1)
        observations.check_masks(notes, source.name)
        image = {"size": size, "channels": channels, "dtype": dtype, "format": image_format}
        writer.finish(name=source.name, classes=source.classes, image=image, resize=resize, made=settings)
    for line in observations.summary(notes, len(plan), with_roi):
        say(line)
    return Manifest.read(out_dir)


@dataclass(frozen=True)
class _Speaker:
    """Writes lines about a source to stderr, where progress is shown."""

    name: str
    speaks: bool

    def __call__(self, line: str) -> None:
        if self.speaks:
            print(printable(f"{self.name}: {line}"), file=sys.stderr)


def _check_source(source: Source, channels: int) -> None:
    """Raise ShardError where the records are not fit to be packed, before any is loaded."""
    if source.channels not in (None, channels):
        raise ShardError(
            f"{source.name}: makes images of {source.channels} channel{'s' * (source.channels != 1)}, and channels is "
            f"{channels}; set channels to {source.channels}, since modalities are not mixed"
        )
    if not source.records:
        raise ShardError(f"{source.name}: has no samples to pack; check what it reads")
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
        if record.label not in (source.classes or ("",)):
            raise ShardError(f"{record.file}: label {record.label!r} is none of {list(source.classes)}; fix it")
        seen[record.key] = record.file


def _encoded(plan: list[_Planned], spec: _Spec, classes: Sequence[str]) -> Generator[list[Encoded], None, None]:
    """Yield the samples, in order and in runs, from one process or thread per core."""

    def encode_run(run: list[_Planned]) -> list[Encoded]:
        return [_encode(*planned, spec, classes) for planned in run]

    runs = list(_runs(plan, int(_RUN_BYTES / (spec.size**2 * spec.channels * np.dtype(spec.dtype).itemsize)) or 1))
    if can_fork() and cores() > 1 and len(plan) >= _FORKED:
        return forked_map(encode_run, runs, min(cores(), len(runs)))
    return ordered_map(encode_run, runs, cores(), cores())


def _runs(plan: list[_Planned], limit: int) -> Iterator[list[_Planned]]:
    """Yield runs of at most `limit` consecutive samples.

    A run ends with a group where possible, since the samples of a group can share a file (a volume).
    """
    run: list[_Planned] = []
    for planned in plan:
        if len(run) >= limit or (len(run) >= _RUN and run[-1].record.group != planned.record.group):
            yield run
            run = []
        run.append(planned)
    yield run


def _encode(record: Record, side: str, unit: str, spec: _Spec, classes: Sequence[str]) -> Encoded:
    """Return the encoded sample of a record, loaded and resized."""
    with collected() as notes:
        raw = record.load()
    height, width = _check_raw(raw, record.file, spec)
    at = geometry.place(width, height, spec.size, spec.resize)
    image = fit_image(raw.image, at, spec.channels, spec.dtype)
    boxes = geometry.fit_boxes(raw.boxes, width, height, record.file)
    mask = geometry.draw_boxes(boxes, at) if raw.mask is None else geometry.resize_mask(raw.mask, at)
    fields = {
        "label": classes.index(record.label) if classes else -1,
        "class": record.label,
        "group": unit,
        "split": side,
        "boxes": boxes,
        "original_size": (width, height),
        "file": record.file,
        "about": record.about | raw.about,
    }
    try:
        contents = layout.SampleJson.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ShardError(f"{record.file}: {where} cannot be written: {first['msg']}; use plain values") from None
    area = int(np.count_nonzero(mask))
    roi = layout.encode_roi(mask) if area else b""
    notes += observations.noticed(raw, spec.channels, mask)
    encoded = layout.encode_image(image, spec.image_format)
    return encode(record.key, contents, area, encoded, roi, spec.image_format, tuple(notes))


def _check_raw(raw: Raw, file: str, spec: _Spec) -> tuple[int, int]:
    """Return (height, width) of the image. Raises ShardError where image and ROI are not as `Raw` says."""
    shape, kind = raw.image.shape, raw.image.dtype.name
    if kind not in ("uint8", "uint16", "float32") or shape[2:] not in ((), (3,)) or 0 in shape or len(shape) < 2:
        raise ShardError(f"{file}: image is {kind} {list(shape)}; it must be uint8, uint16 or float32 [H,W] or [H,W,3]")
    if kind == "uint16" and spec.dtype == "uint8":
        raise ShardError(
            f"{file}: holds 16-bit values; pack dtype uint16, or give the window LOW,HIGH that 8 bits show"
        )
    if kind == "float32" and not (raw.image.min() >= 0 and raw.image.max() <= 1):
        raise ShardError(f"{file}: holds values outside 0 to 1, or NaN, after its window; fix the values of the file")
    if raw.mask is None:
        return shape[0], shape[1]
    if raw.boxes:
        raise ShardError(f"{file}: has both a mask and boxes; the ROI comes from one of them, drop the other")
    if raw.mask.dtype != bool or raw.mask.ndim != 2:
        raise ShardError(f"{file}: mask is {raw.mask.dtype} {list(raw.mask.shape)}; it must be bool [H,W]")
    if raw.mask.shape != shape[:2]:
        raise ShardError(
            f"{file}: its mask is {raw.mask.shape[1]}×{raw.mask.shape[0]} (w×h) and the image {shape[1]}×{shape[0]}; "
            "give both the same size"
        )
    return shape[0], shape[1]


@contextmanager
def _complete_or_absent(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`, which is renamed to `out` on success and removed on error or Ctrl-C."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ShardError(f"{out}: exists already; choose another folder")
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out.absolute())
        folder = out.absolute().parent / f".{out.absolute().name}.{uuid.uuid4().hex[:8]}.partial"
        folder.mkdir()
        with _handle(folder) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # this lock ends with the process, also if it is killed
            try:
                yield folder
                os.fsync(handle)
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
    """Remove the folders of earlier packs into `out` that were killed, and so hold no locks."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.{'[0-9a-f]' * 8}.partial"):
        with _handle(folder) as handle, suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _handle(folder: Path) -> Iterator[int]:
    """Yield a file descriptor of the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)
