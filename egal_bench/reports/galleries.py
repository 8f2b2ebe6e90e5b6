"""Galleries: what strategies bought, and where the final models look, as images with ROI and Grad-CAM on top."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

from egal_bench.reports.analysis import Analysis
from egal_bench.reports.names import number, shown, titled
from egal_bench.reports.question import PRIMARY
from egal_bench.reports.shard_sets import UNREADABLE, shards_of
from egal_bench.statistics.outcomes import direction
from egal_bench.tables.files import read
from egal_bench.tables.folder import RunName
from egal_shards import ShardSet
from egal_shards.reader import Sample

SAMPLES = 4  # per strategy
STRATEGIES = 8  # per gallery; more would make the file too large for a page
PIXELS = 128  # per side of an image in the page


def galleries(analysis: Analysis) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the galleries of every data set that can have any, and sentences on those that cannot.

    A gallery is a dict: kind ("bought" or "tested"), title, note, groups; a group is (heading, samples), a sample a
    dict of data URLs and texts for the page, and of the arrays `pixels`, `area` and `map` for print.
    Each shows the runs of the lowest seed.
    """
    finished: list[dict[str, Any]] = []
    notes: list[str] = []
    for dataset in analysis.joined.datasets:
        runs = _runs(analysis, dataset)
        kept = ((run, _explanations(analysis, run)) for run in runs)
        maps = {run: frame for run, frame in kept if frame is not None}
        if not maps:
            notes.append(
                f"{shown(dataset)}: no gallery: no run of the lowest seed has a readable table explanations (--keep)."
            )
            continue
        try:
            shards = shards_of(analysis.joined, next(iter(maps)))
            finished += _of_dataset(analysis, dataset, shards, maps)
        except UNREADABLE as error:
            notes.append(f"{shown(dataset)}: no gallery, because its shards cannot be read here: {_line(error)}.")
    return finished, notes


def _line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.rstrip(".")[:300]


def _runs(analysis: Analysis, dataset: str) -> list[RunName]:
    """Return the runs of the lowest seed: the baseline and the strategies with the best AUBC."""
    rows = analysis.of_question(analysis.estimates, PRIMARY)
    rows = rows[rows["dataset"] == dataset]
    values = dict(zip(rows["strategy"], direction(analysis.question.metric) * rows["mean"], strict=True))
    own = [run for run in analysis.joined.records if run.dataset == dataset]
    first = [run for run in own if run.seed == min(run.seed for run in own)]
    baseline = analysis.question.baseline
    best = sorted(first, key=lambda run: (run.strategy != baseline, -values.get(run.strategy, -np.inf), run.strategy))
    return best[:STRATEGIES]


def _explanations(analysis: Analysis, run: RunName) -> pd.DataFrame | None:
    folder, name = analysis.joined.places[run]
    if "explanations" not in analysis.joined.kept[run]:
        return None
    return read(folder.part("explanations", name), "explanations").to_pandas()


def _of_dataset(
    analysis: Analysis, dataset: str, shards: ShardSet, maps: dict[RunName, pd.DataFrame]
) -> list[dict[str, Any]]:
    positions = {key: i for i, key in enumerate(shards.index()["key"])}
    seed = next(iter(maps)).seed
    names = {run: titled(run.strategy, analysis.joined.oracles) for run in maps}
    bought = [(names[run], _bought(analysis, run, frame, shards, positions)) for run, frame in maps.items()]
    tested = [(names[run], _tested(frame, shards, positions)) for run, frame in maps.items()]
    described = [
        ("bought", "the last purchases", "The first purchases of the last query", bought),
        ("tested", "where the final models look", "The same test samples for every strategy", tested),
    ]
    legend = f"seed {seed}; the ROI is outlined in cyan, the Grad-CAM of the predicted class lies over it."
    return [
        {
            "kind": kind, "title": f"{shown(dataset)}: {title}", "note": f"{note}, {legend}",
            "groups": [group for group in groups if group[1]],
        }
        for kind, title, note, groups in described
        if any(samples for _, samples in groups)
    ]  # fmt: skip


def _bought(
    analysis: Analysis, run: RunName, maps: pd.DataFrame, shards: ShardSet, positions: dict[str, int]
) -> list[dict[str, Any]]:
    pool = maps[maps["split"] == "pool"]
    own = analysis.joined.selections
    own = own[(own["dataset"] == run.dataset) & (own["strategy"] == run.strategy) & (own["seed"] == run.seed)]
    last = pool[pool["round"] == pool["round"].max()].assign(round=lambda frame: frame["round"] + 1)
    rows = last.merge(own, on=["round", "key"]).sort_values("rank").head(SAMPLES)
    return [
        _sample(row, shards[positions[row["key"]]], shards.classes,
                f"score {number(row['score'])}, H {number(row['entropy'])}, D {number(row['misalignment'])}")
        for row in rows.to_dict("records")
    ]  # fmt: skip


def _tested(maps: pd.DataFrame, shards: ShardSet, positions: dict[str, int]) -> list[dict[str, Any]]:
    test = maps[maps["split"] == "test"]
    rows = test[test["round"] == test["round"].max()].sort_values("key").head(SAMPLES)
    return [_sample(row, shards[positions[row["key"]]], shards.classes, "") for row in rows.to_dict("records")]


def _sample(row: dict[Any, Any], sample: Sample, classes: Sequence[str], scores: str) -> dict[str, Any]:
    truth, predicted = (
        shown(classes[k]) if k < len(classes) else f"class {k}" for k in (sample.label, int(row["predicted"]))
    )
    caption = f"{shown(sample.key)}: {truth}, predicted {predicted}{'; ' if scores else ''}{scores}"
    roi = " with an ROI" if sample.has_roi else " without ROI"
    pixels, class_map = _pixels(sample), np.asarray(row["map"], np.float64).reshape(row["height"], row["width"])
    image = Image.fromarray(pixels).resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)
    layer = (255 * coloured(class_map)).astype(np.uint8)
    return {
        "image": _data_url(image, "jpeg"), "roi": _outline(sample.roi) if sample.has_roi else None,
        "cam": _data_url(Image.fromarray(layer), "png"), "caption": caption, "alt": f"Image{roi}, {caption}",
        "pixels": pixels, "area": sample.roi if sample.has_roi else None, "map": class_map, "scores": scores,
    }  # fmt: skip


def _pixels(sample: Sample) -> np.ndarray:
    """Return the image as uint8 [H, W, 3]."""
    pixels = sample.image.transpose(1, 2, 0).astype(np.float64)
    low, high = (0.0, 255.0) if sample.image.dtype == np.uint8 else (pixels.min(), pixels.max())
    pixels = ((pixels - low) * (255 / max(high - low, 1))).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3]).convert("RGB"))


def _outline(roi: np.ndarray) -> str:
    """Return the border of the ROI on a transparent ground."""
    at = (np.arange(PIXELS) * len(roi)) // PIXELS
    area = np.pad(roi[np.ix_(at, at)], 1)
    inside = area[:-2, 1:-1] & area[2:, 1:-1] & area[1:-1, :-2] & area[1:-1, 2:]
    layer = np.zeros((PIXELS, PIXELS, 4), np.uint8)
    layer[area[1:-1, 1:-1] & ~inside] = (0, 229, 255, 255)
    return _data_url(Image.fromarray(layer), "png")


def coloured(class_map: np.ndarray) -> np.ndarray:
    """Return the map [h, w], from 0 to its maximum, as colours [h, w, 4] in 0..1 that are opaque where it is high."""
    positive = np.maximum(np.nan_to_num(class_map), 0)
    scaled = positive / positive.max() if positive.max() > 0 else positive
    layer = matplotlib.colormaps["inferno"](scaled)
    layer[..., 3] = scaled
    return layer


def _data_url(image: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    image.save(stream, kind)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
