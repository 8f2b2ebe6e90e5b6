"""`egal-bench inspect`: the content of a shard set, as a table and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option as Flag

from egal_bench.cli.output import Json, counted_noun, print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from egal_shards import ShardSet
    from egal_shards.inspecting import ClassSummary


def inspect(
    shards: Annotated[str, typer.Argument(help="folder or URL of a shard set")],
    out: Annotated[Path | None, Flag(help="file of the picture, PNG; none: NAME.contact.png")] = None,
    samples: Annotated[int, Flag(help="images per class in the picture, those with ROI first")] = 6,
    seed: Annotated[int, Flag(help="seed with which these images are drawn")] = 0,
    as_json: Json = False,
) -> None:
    """Show what a shard set holds: classes, ROIs, groups, and a picture of samples with their ROI outlined."""
    from egal_shards import ShardSet, inspecting
    from egal_shards.urls import set_name

    opened = ShardSet(shards)
    summary = inspecting.summarise(opened)
    picture = out or Path(f"{set_name(shards)}.contact.png")
    inspecting.save_contact_sheet(opened, picture, samples, seed)
    print(_title(opened))
    print_table(_table(opened, summary), 100)
    if any(row.roi_area for row in summary.values()):
        print("area p5: 5 % of the samples with ROI have a smaller ROI (area in % of the image); p50 is the median.")
    for line in _packing(opened):
        print(line)
    print(f"Picture: {picture}")
    if as_json:
        print_json(_as_json(opened, summary, picture))


def _title(shards: ShardSet) -> str:
    spec, files = shards.manifest.image, shards.manifest.shards
    size = sum(file.bytes for file in files) / 1e6
    return (
        f"{_plain(shards.name)}: {counted_noun(len(shards), 'sample')}, {spec.channels}×{spec.size}×{spec.size} "
        f"{spec.dtype} ({spec.format}), {counted_noun(len(files), 'shard')}, {size:.1f} MB"
    )


def _table(shards: ShardSet, summary: dict[str, ClassSummary]) -> Table:
    from rich import box
    from rich.table import Table

    from egal_shards.inspecting import QUANTILES

    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("class", overflow="fold")
    splits = list(shards.manifest.counts.splits)
    for name in ("samples", *splits, "groups", "with\nROI", *(f" area\np{100 * q:g}" for q in QUANTILES)):
        table.add_column(name, justify="right")
    for name, row in summary.items():
        areas = [f"{area:.3g}" for area in row.roi_area] if row.roi_area else ["" for _ in QUANTILES]
        share = f"{100 * row.with_roi / max(row.samples, 1):.0f} %"
        counts = (row.samples, *(row.splits[split] for split in splits), row.groups)
        table.add_row(_plain(name) or "all", *map(str, counts), share, *areas, end_section=name in shards.classes[-1:])
    return table


def _packing(shards: ShardSet) -> list[str]:
    """Return lines that say how the set was packed."""
    settings = {"resize": shards.manifest.resize, **shards.manifest.made}
    lines = [f"{_plain(name)}: {_plain(value)}" for name, value in settings.items() if value is not None]
    return [f"manifest: {shards.manifest.sha256}", *lines]


def _plain(value: Any) -> str:
    """Return `value` as text without unprintable characters, which a terminal would obey."""
    if isinstance(value, dict):
        return ", ".join(f"{_plain(name)} {_plain(part)}" for name, part in value.items() if part is not None)
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)


def _as_json(shards: ShardSet, summary: dict[str, ClassSummary], picture: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from egal_shards.inspecting import QUANTILES

    classes = {name: asdict(row) for name, row in summary.items()}
    return {
        "name": shards.name,
        "manifest_sha256": shards.manifest.sha256,
        "shards": len(shards.manifest.shards),
        "bytes": sum(file.bytes for file in shards.manifest.shards),
        "image": shards.manifest.image.model_dump(),
        **classes.pop(""),
        "quantiles": QUANTILES,
        "classes": classes,
        "made": shards.manifest.made,
        "out": str(picture),
    }
