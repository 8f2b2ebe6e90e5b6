"""`egal-bench pack`: its flags, and which of them a source takes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option as Flag

from egal_bench.errors import BenchError, unknown


def pack(
    source: Annotated[str, typer.Argument(help="folder | siim | phantom")],
    input: Annotated[str, typer.Argument(help="folder of the data; for phantom its kind, brain or chest")],
    out: Annotated[Path, typer.Argument(help="folder of the shard set, new or empty")],
    size: Annotated[int, Flag(help="pixels a side of the packed images")] = 224,
    channels: Annotated[int, Flag(help="1 (grey) or 3 (RGB)")] = 1,
    resize: Annotated[
        Literal["letterbox", "squash"], Flag(help="keep the aspect and pad with 0, or stretch")
    ] = "letterbox",
    shard_mb: Annotated[float, Flag(help="largest size of a shard, MB (10^6 bytes)")] = 64,
    image_format: Annotated[Literal["npy", "png", "jpg"], Flag(help="npy reads fastest; jpg is lossy")] = "npy",
    test: Annotated[float, Flag(help="share of the samples in the test set, above 0 and below 1")] = 0.3,
    seed: Annotated[int, Flag(help="seed of the split, and of the phantom's images")] = 0,
    group: Annotated[
        str | None, Flag(help="column of groups (patients) that no split cuts, or block:COLUMN:N, contiguous id blocks")
    ] = None,
    dup: Annotated[str | None, Flag(help="column of near-duplicate groups, kept on one side")] = None,
    split: Annotated[str | None, Flag(help="folder: column that fixes the split, pool or test")] = None,
    classes: Annotated[
        str | None, Flag(help="folder: the classes in order, comma-separated; none: the labels, sorted")
    ] = None,
    meta: Annotated[str | None, Flag(help="siim: CSV of image_id, orig_width, orig_height (pixels), groups")] = None,
    samples: Annotated[int | None, Flag(help="phantom: number of images; none: 2000")] = None,
    shortcut: Annotated[
        float | None, Flag(help="phantom: how strongly a marker outside the ROI predicts the class, 0 to 1; none: 0")
    ] = None,
    roi_area: Annotated[float | None, Flag(help="phantom: mean share of the image in the ROI; none: 0.03")] = None,
    roi_noise: Annotated[float | None, Flag(help="phantom: error of the expert's ROI, 0 to 1; none: 0")] = None,
    as_json: Annotated[bool, Flag("--json", help="the last line of stdout is the result as one JSON object")] = False,
) -> None:
    """Pack annotated images into a shard set."""
    import egal_shards
    from egal_shards.sources import SOURCES

    if source not in SOURCES:
        raise unknown("source", source, SOURCES)
    make = SOURCES[source].load()
    takes = inspect.signature(make).parameters
    options = {
        "group": group, "dup": dup, "split": split, "meta": meta, "samples": samples, "shortcut": shortcut,
        "roi_area": roi_area, "roi_noise": roi_noise, "classes": tuple(classes.split(",")) if classes else None,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - takes.keys():
        raise BenchError(f"--{name.replace('_', '-')} is not a flag of the source {source}: leave it out")
    shared = {name: value for name, value in {"size": size, "test": test, "seed": seed}.items() if name in takes}
    made = egal_shards.pack(
        make(input, **given, **shared), out, size=size, channels=channels, resize=resize, shard_mb=shard_mb,
        image_format=image_format, split=egal_shards.Split(test=test, seed=seed),
    )  # fmt: skip
    counts, shards = made.counts, made.shards
    sides = ", ".join(f"{n} {side}" for side, n in counts.splits.items())
    print(f"{out}: {counts.samples} samples ({sides}) of {len(made.classes)} classes in {len(shards)} shards")
    if as_json:
        size_of_all = sum(shard.bytes for shard in shards)
        print(json.dumps({"samples": counts.samples, "shards": len(shards), "bytes": size_of_all, "ok": True}))
