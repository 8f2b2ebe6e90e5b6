"""Bad input through the real command line: one `error:` line, status 2, no traceback, nothing half-written."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.command_line import egal_bench, error_of, json_of

TINY = ["--backbone=small-cnn", "--init=5", "--budget=2", "--rounds=1", "--seeds=1", "--steps=1", "--workers=1"]
BOX = "[[5, 5, 38, 28]]"  # corners: as x, y, width and height it would leave the image


def annotated_folder(folder: Path, n: int = 24, **columns) -> Path:
    """Write a folder of n grey 40x30 images of two classes with boxes.

    Args:
        columns: replace or add columns of labels.csv; None removes one.
    """
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (30, 40), np.uint8)).save(folder / f"images/{i:03}.png")
    table = {
        "file": [f"images/{i:03}.png" for i in range(n)],
        "label": ["ab"[i % 2] for i in range(n)],
        "boxes": [BOX] * n,
    }
    kept = {name: column for name, column in (table | columns).items() if column is not None}
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(kept)
        writer.writerows(zip(*kept.values(), strict=True))
    return folder


def replaced(column: list, i: int, value) -> list:
    return [*column[:i], value, *column[i + 1 :]]


FILES = [f"images/{i:03}.png" for i in range(24)]
LABELS = ["ab"[i % 2] for i in range(24)]
BAD_FOLDERS = {  # columns of labels.csv, flags of pack, words of the message
    "no boxes and no masks": ({"boxes": None}, (), ["labels.csv", "mask_file", "boxes"]),
    "misspelt label column": ({"label": None, "lable": LABELS}, (), ["labels.csv", "lable", "label"]),
    "empty label": ({"label": replaced(LABELS, 3, "")}, (), ["line 5", "label"]),
    "unknown label": ({"label": replaced(LABELS, 3, "bb")}, ("--classes=a,b",), ["line 5", "'bb'", "'b'"]),
    "missing image": ({"file": replaced(FILES, 2, "images/absent.png")}, (), ["images/absent.png"]),
    "duplicate file": ({"file": replaced(FILES, 2, "images/001.png")}, (), ["images/001.png"]),
    "path out of the folder": ({"file": replaced(FILES, 2, "../x.png")}, (), ["../x.png"]),
    "box outside": ({"boxes": [BOX] * 23 + ["[[5, 5, 41, 20]]"]}, (), ["images/023.png"]),
    "box without area": ({"boxes": [BOX] * 23 + ["[[5, 5, 5, 20]]"]}, (), ["images/023.png"]),
    "boxes not JSON": ({"boxes": ["[[5, 5"] + [BOX] * 23}, (), ["line 2"]),
    "class with one sample": ({"label": ["a"] * 23 + ["rare"]}, (), ["rare", "one"]),
    "group column absent": ({}, ("--group=patient",), ["patient"]),
    "group spans the given splits": (
        {"patient": ["p"] * 24, "side": ["pool", "test"] * 12}, ("--group=patient", "--split=side"), ["'p'"],
    ),
    "flag of another source": ({}, ("--shortcut=0.5",), ["--shortcut", "folder"]),
    "size of nothing": ({}, ("--size=0",), ["size", "0"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_pack_refuses(tmp_path, case):
    columns, flags, words = BAD_FOLDERS[case]
    source = annotated_folder(tmp_path / "in", **columns)
    message = error_of(egal_bench("pack", "folder", source, "out", *flags, cwd=tmp_path))
    for word in words:
        assert word in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_pack_names_a_corrupt_image(tmp_path):
    source = annotated_folder(tmp_path / "in")
    content = (source / "images/007.png").read_bytes()
    (source / "images/007.png").write_bytes(content[: len(content) // 2])
    assert "images/007.png" in error_of(egal_bench("pack", "folder", source, "out", cwd=tmp_path))
    assert not (tmp_path / "out").exists()


def test_pack_names_the_sizes_of_a_mask_that_does_not_fit(tmp_path):
    source = annotated_folder(tmp_path / "in", boxes=None, mask_file=["m.png"] * 24)
    Image.new("L", (39, 30), 255).save(source / "m.png")
    message = error_of(egal_bench("pack", "folder", source, "out", cwd=tmp_path))
    assert "39" in message
    assert "40" in message
    assert not (tmp_path / "out").exists()


def test_pack_refuses_an_output_that_is_taken(tmp_path):
    source = annotated_folder(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert "out" in error_of(egal_bench("pack", "folder", source, "out", cwd=tmp_path))
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
    (tmp_path / "file").write_text("")
    assert "file" in error_of(egal_bench("pack", "folder", source, "file/out", cwd=tmp_path))


def test_pack_refuses_a_source_that_does_not_exist(tmp_path):
    assert "did you mean 'folder'?" in error_of(egal_bench("pack", "foldr", "in", "new", cwd=tmp_path))
    assert "labels.csv" in error_of(egal_bench("pack", "folder", tmp_path / "nowhere", "new", cwd=tmp_path))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A shard set of the annotated folder."""
    cwd = tmp_path_factory.mktemp("packed")
    process = egal_bench("pack", "folder", annotated_folder(cwd / "in"), "set", "--size=32", "--json", cwd=cwd)
    size = (cwd / "set/shard-000000.tar").stat().st_size
    assert json_of(process) == {"samples": 24, "shards": 1, "bytes": size, "ok": True}
    return cwd / "set"


def test_verify_answers_in_json_and_counts_in_words(packed, tmp_path):
    process = egal_bench("verify", packed, "--json", cwd=tmp_path)
    assert json_of(process)["ok"] is True
    assert "24 samples in 1 shard, " in process.stdout


def test_verify_names_the_shard_of_a_flipped_bit(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    shard = bytearray((copy / "shard-000000.tar").read_bytes())
    shard[700] ^= 1
    (copy / "shard-000000.tar").write_bytes(shard)
    assert "shard-000000.tar" in error_of(egal_bench("verify", copy, cwd=tmp_path))


BAD_COMPARISONS = {
    "unknown strategy": (("--strategies=random,entrpy",), "unknown strategy 'entrpy': did you mean 'entropy'?"),
    "unknown parameter": (("--strategies=egal(lamda=1)",), "unknown parameter of egal 'lamda': did you mean 'lambda'?"),
    "unknown backbone": (("--backbone=resnet81",), "unknown backbone 'resnet81': did you mean 'resnet"),
    "unknown convention": (("--explain-convention=gradcam",), "unknown convention 'gradcam': did you mean 'grad-cam'?"),
    "budget larger than the pool": (("--init=10", "--budget=9"), "19 labels, but the pool of set has 1"),
    "weights absent": (("--weights=absent.pt",), "--weights absent.pt: No such file"),
    "unknown flag": (("--sedes=3",), "No such option: --sedes"),
    "value of another type": (("--seeds=many",), "--seeds: "),
    "configuration absent": (("--config=absent.yaml",), "--config absent.yaml: No such file"),
    "preset unknown": (("--preset=fast",), "unknown preset 'fast'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_COMPARISONS)
def test_compare_refuses(packed, tmp_path, case):
    flags, message = BAD_COMPARISONS[case]
    assert message in error_of(egal_bench("compare", packed, *TINY, "--out=out", *flags, cwd=tmp_path))
    assert list(tmp_path.glob("out/rounds")) == []


def test_compare_refuses_a_folder_that_is_no_comparison(packed, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("keep")
    refused = egal_bench("compare", packed, *TINY, "--out=out", cwd=tmp_path)
    assert "--out out holds something other" in error_of(refused)
    (tmp_path / "file").write_text("")
    assert "--out file" in error_of(egal_bench("compare", packed, *TINY, "--out=file/out", cwd=tmp_path))


def test_compare_refuses_a_set_whose_manifest_does_not_match(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest.replace('"a"', '"c"'))
    for folder in (copy, tmp_path / "absent"):
        assert "manifest.json" in error_of(egal_bench("compare", folder, *TINY, "--out=out", cwd=tmp_path))
