"""`egal-bench profile`: what it measures, writes, prints and refuses."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.command_line import egal_bench, json_of
from egal_bench.errors import BenchError
from egal_bench.profiling import measurements
from egal_bench.profiling.stages import MEANING

STAGES = ["read", "decode", "batches", "transfer", "forward", "explanation", "scoring", "acquisition", "pass"]
FLAGS = [
    "--backbone=small-cnn", "--size=32", "--phantom-samples=60", "--threads=1", "--precision=float32",
    "--batch-size=8", "--samples=19", "--rounds=3", "--trace=traces/t.json", "--json",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder in which the command has run once, in a process of its own, and this process."""
    folder = tmp_path_factory.mktemp("command")
    return folder, egal_bench("profile", *FLAGS, cwd=folder, status=0)


@pytest.fixture
def result(finished):
    """The JSON object that the command has printed."""
    return json_of(finished[1])


@pytest.fixture
def table(finished):
    """The table that the command has written."""
    (path,) = (finished[0] / "profiles").glob("*.parquet")
    return measurements.load(path)


@pytest.fixture
def seconds(table):
    """The times of all runs of each stage in the table."""
    return {row.stage: np.asarray(row.seconds) for row in table.itertuples()}


def test_the_json_has_the_keys_of_the_contract(result):
    assert {
        "device", "backbone", "size", "batch", "images_per_s", "forward_images_per_s", "share_of_forward", "stages",
        "peers", "peak_mb",
    } <= set(result)  # fmt: skip
    assert (result["device"], result["backbone"], result["size"], result["batch"]) == ("cpu", "small-cnn", 32, 8)
    assert list(result["stages"]) == STAGES
    assert result["peers"] == {}


def test_every_figure_of_the_table_follows_from_its_seconds(table, seconds):
    assert all(len(times) == 3 for times in seconds.values())
    assert (table["samples"] == 16).all()  # 19 in whole batches of 8
    for row in table.itertuples():
        for q in (5, 25, 50, 75, 95):
            assert getattr(row, f"rate_q{q:02}") == pytest.approx(np.percentile(16 / seconds[row.stage], q))
        assert row.share_of_forward == pytest.approx(np.median(seconds["forward"] / seconds[row.stage]))


def test_every_figure_of_the_json_follows_from_the_seconds(result, seconds):
    for stage, times in seconds.items():
        assert result["stages"][stage] == pytest.approx(np.median(16 / times), abs=1e-3)
    assert result["images_per_s"] == result["stages"]["pass"]
    assert result["forward_images_per_s"] == result["stages"]["forward"]
    assert result["share_of_forward"] == pytest.approx(np.median(seconds["forward"] / seconds["pass"]), abs=1e-4)


def test_the_table_says_what_was_measured_and_where(result, table):
    assert table["stage"].tolist() == STAGES
    settings = {"backbone": "small-cnn", "size": 32, "batch": 8, "precision": "float32", "threads": 1}
    assert table[list(settings)].drop_duplicates().to_dict("records") == [settings]
    for name in ("time", "device", "driver", "versions", "dataset"):
        assert table[name].nunique() == 1, name
        assert table[name].notna().all(), name
    assert table["peak_mb"].round(1).unique().tolist() == [result["peak_mb"]]
    assert 50 < result["peak_mb"] < 20_000
    share = table.set_index("stage")["share_of_roof"].dropna()
    assert set(share.index) == {"read", "decode", "batches", "forward", "explanation", "scoring", "pass"}
    assert ((share > 0) & (share < 3)).all()


def test_every_stage_is_printed_with_its_rate_and_its_meaning(finished):
    out = finished[1].stdout
    for name in STAGES:
        rates, meaning = (line for line in out.splitlines() if line.startswith((f"  {name} ", f" {name} ")))
        assert any(digit in rates for digit in "0123456789"), name
        assert meaning.split()[1:4] == MEANING[name].split()[:3], name
    assert "…" not in out


def test_the_norms_that_the_copy_does_without_are_counted(finished):
    assert "Copy for passes: 4 of 4 batch norms are part of convolutions.\n" in finished[1].stdout


def test_the_picture_shows_stages_with_and_without_the_network(finished):
    (picture,) = (finished[0] / "profiles").glob("*.png")
    with Image.open(picture) as image:
        image.load()
        assert min(image.size) > 400
        colours = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 20)}
        assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours


def test_the_trace_shows_the_pass_its_stages_and_reading_threads(finished):
    events = json.loads((finished[0] / "traces/t.json").read_text())["traceEvents"]
    spans = pd.DataFrame([event for event in events if event.get("cat") == "user_annotation"]).set_index("name")
    counts = {"pass": 1, "reading": 1, "forward": 2, "explanation": 2, "acquisition": 1}
    assert spans.index.value_counts().to_dict() == counts  # both batches are read in one run
    begin, end = spans["ts"]["pass"], spans["ts"]["pass"] + spans["dur"]["pass"]
    inside = spans.loc[["reading", "forward", "explanation"]]
    assert (inside["ts"] >= begin).all()
    assert (inside["ts"] + inside["dur"] <= end).all()
    assert spans["tid"]["pass"] not in set(spans.loc[["reading"], "tid"])


def test_nothing_else_is_left_in_the_folders(finished):
    folder, _ = finished
    profiles = sorted(path.suffix or path.name for path in (folder / "profiles").iterdir())
    assert profiles == [".locks", ".parquet", ".png", "shards"]
    assert [path.name for path in (folder / "traces").iterdir()] == ["t.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "0"], "--batch-size 0: must be a number of images, or auto"),
        (["--batch-size", "many"], "--batch-size many: must be a number of images, or auto"),
        (["--batch-size", "61"], r"--batch-size 61: the pool has \d+ samples"),
        (["--samples", "0"], "--samples 0: must be at least 1"),
        (["--samples", "4000"], r"--samples 4000: the pool has \d+ samples"),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--backbone", "resnet81"], "unknown backbone 'resnet81'"),
        (["--backbone", "mixer_b16_224", "--size", "224"], "no feature map .* choose a convolutional network"),
        (["--out", "file"], "file: File exists; choose another folder"),
        (["--trace", "file/t.json"], "file: File exists; choose another folder"),
        (["--threshold", "2"], "--threshold: "),
        (["--explain-convention", "gradcam"], "unknown convention 'gradcam': did you mean 'grad-cam'"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(dataset, tmp_path, profile_status, capsys, words, message):
    (tmp_path / "file").touch()
    assert profile_status(dataset.shards.where, "--backbone=small-cnn", *words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert not list(tmp_path.rglob("*.parquet"))
    assert not list(tmp_path.rglob("*.png"))


def test_ctrl_c_leaves_no_half_written_file(dataset, tmp_path, profile_status, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(measurements.pq, "write_table", interrupt)
    words = ["--backbone=small-cnn", "--samples=16", "--batch-size=8", "--rounds=1", "--json"]
    assert profile_status(dataset.shards.where, *words) == 130
    assert [path.name for path in tmp_path.rglob("*")] == ["profiles"]
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == ["error: interrupted"]


@pytest.mark.parametrize(
    ("device", "words", "expected"),
    [("cpu", [], (400, 224)), ("cuda", [], (4400, 224)), ("cuda", ["--phantom-samples", 90, "--size", 64], (90, 64))],
)
def test_the_phantom_has_more_than_ten_batches_on_a_gpu(profile_status, monkeypatch, device, words, expected):
    def measure(config, *_, **__):
        configs.append(config)
        raise BenchError("measured enough")

    configs = []
    monkeypatch.setattr("egal_bench.models.devices.chosen_device", lambda _: device)
    monkeypatch.setattr("egal_bench.profiling.profile.profile", measure)
    assert profile_status(*words) == 2
    assert [(config.phantom_samples, config.size) for config in configs] == [expected]
