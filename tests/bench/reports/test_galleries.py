"""Galleries show samples with ROI and Grad-CAM where shards are at hand, and say why where they are not."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from bench.reports.made_up import write_results
from egal_bench.reports.analysis import analyse
from egal_bench.reports.galleries import galleries
from egal_bench.reports.joining import join
from egal_bench.reports.print_galleries import draw_galleries
from egal_bench.reports.question import Question
from egal_shards import ShardSet, pack
from egal_shards.sources import phantom


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "set"
    pack(phantom(samples=60, size=32, roi_area=0.08, seed=0), path, size=32, progress=False)
    return ShardSet(path)


def galleries_of(out):
    return galleries(analyse(join([out]), Question()))


def pixels(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))))


def test_every_strategy_shows_its_purchases_and_the_same_test_samples(tmp_path, shards):
    out = write_results(tmp_path, seeds=range(2), shards=shards)
    (bought, tested), notes = galleries_of(out)
    assert notes == []
    assert [name for name, _ in bought["groups"]] == [name for name, _ in tested["groups"]]
    assert {name for name, _ in bought["groups"]} == {"random", "egal", "entropy"}
    captions = [[sample["caption"].partition(":")[0] for sample in samples] for _, samples in tested["groups"]]
    assert captions[0] == captions[1] == captions[2]
    assert "score 0.50, H 0.50, D " in bought["groups"][0][1][0]["caption"]


def test_the_outline_borders_the_roi(tmp_path, shards):
    (_, tested), _ = galleries_of(write_results(tmp_path, seeds=[0], shards=shards))
    sample = tested["groups"][0][1][0]
    key = sample["caption"].partition(":")[0]
    position = shards.index().key.tolist().index(key)
    y, x = np.nonzero(pixels(sample["roi"])[..., 3])
    rows, columns = np.nonzero(shards[position].roi)
    scale = len(pixels(sample["roi"])) // len(shards[position].roi)
    assert (y.min() // scale, y.max() // scale) == (rows.min(), rows.max())
    assert (x.min() // scale, x.max() // scale) == (columns.min(), columns.max())


def test_galleries_are_printed_for_both_widths_with_embedded_fonts(tmp_path, shards):
    made, _ = galleries_of(write_results(tmp_path, seeds=[0], shards=shards))
    names = draw_galleries(made, tmp_path)
    assert names == [
        f"gallery_{number}_{kind}_{width}"
        for number, kind in ((1, "bought"), (2, "tested"))
        for width in ("one_column", "two_columns")
    ]
    for name in names:
        pdf = (tmp_path / f"{name}.pdf").read_bytes()
        assert b"/FontFile2" in pdf  # TrueType, embedded
        inches = float(re.search(rb"/MediaBox \[ 0 0 ([0-9.]+)", pdf)[1]) / 72
        assert inches == pytest.approx(3.5 if "one" in name else 7.2)
        pixels = Image.open(tmp_path / f"{name}.png")
        assert pixels.width == round(200 * inches)


@pytest.mark.parametrize(
    ("harm", "words"), [("remove", "does not exist"), ("change", "holds other data now"), ("keep", "--keep")]
)
def test_a_gallery_that_cannot_be_drawn_says_why(tmp_path, shards, harm, words):
    path = tmp_path / "set"
    shutil.copytree(shards.path, path)
    out = write_results(tmp_path / "runs", seeds=[0], shards=None if harm == "keep" else ShardSet(path))
    if harm != "keep":
        shutil.rmtree(path)
    if harm == "change":
        pack(phantom(samples=60, size=32, roi_area=0.08, seed=1), path, size=32, progress=False)
    made, (note,) = galleries_of(out)
    assert made == []
    assert words in note
