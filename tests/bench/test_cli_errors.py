"""Bad input through the real command line: one `error:` line, status 2, no traceback, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EGAL_BENCH = str(Path(sys.executable).with_name("egal-bench"))
TINY = ["--backbone=small-cnn", "--init=5", "--budget=2", "--rounds=1", "--seeds=1", "--steps=1", "--workers=1"]


def run(cwd: Path, *words) -> subprocess.CompletedProcess:
    return subprocess.run([EGAL_BENCH, *map(str, words)], capture_output=True, text=True, cwd=cwd)


def error_of(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0]
    return lines[0]


def dataset(folder: Path, n: int = 24, **columns) -> Path:
    """A folder of n grey 40x30 images of two classes with boxes; `columns` replace or add columns of labels.csv."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (30, 40), np.uint8)).save(folder / f"images/{i:03}.png")
    table = {
        "file": [f"images/{i:03}.png" for i in range(n)],
        "label": ["ab"[i % 2] for i in range(n)],
        "boxes": [json.dumps([[5, 5, 20, 20]])] * n,
    }
    write_labels(folder, table | columns)
    return folder


def write_labels(folder: Path, table: dict) -> None:
    import csv

    kept = {name: column for name, column in table.items() if column is not None}
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(kept)
        writer.writerows(zip(*kept.values(), strict=True))


def replaced(column: list, i: int, value) -> list:
    return [*column[:i], value, *column[i + 1 :]]


FILES = [f"images/{i:03}.png" for i in range(24)]
LABELS = ["ab"[i % 2] for i in range(24)]
BOX = "[[5, 5, 20, 20]]"
BAD_FOLDERS = {
    "no boxes and no masks": ({"boxes": None}, (), ["labels.csv", "mask_file", "boxes"]),
    "no label column": ({"label": None}, (), ["labels.csv", "label"]),
    "empty label": ({"label": replaced(LABELS, 3, "")}, (), ["line 5", "label"]),
    "unknown label": ({"label": replaced(LABELS, 3, "bb")}, ("--classes=a,b"), ["line 5", "'bb'", "'b'"]),
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
    source = dataset(tmp_path / "in", **columns)
    flags = (flags,) if isinstance(flags, str) else flags
    message = error_of(run(tmp_path, "pack", "folder", source, "out", *flags))
    for word in words:
        assert word in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_pack_names_a_corrupt_image_and_a_mask_of_another_size(tmp_path):
    source = dataset(tmp_path / "in")
    whole = (source / "images/007.png").read_bytes()
    (source / "images/007.png").write_bytes(whole[: len(whole) // 2])
    assert "images/007.png" in error_of(run(tmp_path, "pack", "folder", source, "out"))
    masked = dataset(tmp_path / "masked", boxes=None, mask_file=["m.png"] * 24)
    Image.new("L", (39, 30), 255).save(masked / "m.png")
    message = error_of(run(tmp_path, "pack", "folder", masked, "out"))
    assert "39" in message
    assert "40" in message
    assert not (tmp_path / "out").exists()


def test_pack_refuses_an_output_that_is_taken_and_a_source_that_is_not(tmp_path):
    source = dataset(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert "out" in error_of(run(tmp_path, "pack", "folder", source, "out"))
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
    assert "did you mean 'folder'?" in error_of(run(tmp_path, "pack", "foldr", source, "new"))
    assert "labels.csv" in error_of(run(tmp_path, "pack", "folder", tmp_path / "nowhere", "new"))
    (tmp_path / "file").write_text("")
    assert "file" in error_of(run(tmp_path, "pack", "folder", source, "file/out"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    done = run(folder, "pack", "folder", dataset(folder / "in"), "set", "--size=32", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == {"samples": 24, "shards": 1, "bytes": (folder / "set/shard-000000.tar").stat().st_size, "ok": True}
    return folder / "set"


def test_verify_answers_in_json_and_names_a_flipped_bit(packed, tmp_path):
    done = run(tmp_path, "verify", packed, "--json")
    assert json.loads(done.stdout.splitlines()[-1])["ok"] is True
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in packed.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    shard = bytearray((copy / "shard-000000.tar").read_bytes())
    shard[700] ^= 1
    (copy / "shard-000000.tar").write_bytes(shard)
    assert "shard-000000.tar" in error_of(run(tmp_path, "verify", copy))


BAD_COMPARISONS = {
    "unknown strategy": (("--strategies=random,entrpy",), "unknown strategy 'entrpy': did you mean 'entropy'?"),
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
    flags, says = BAD_COMPARISONS[case]
    assert says in error_of(run(tmp_path, "compare", packed, *TINY, "--out=out", *flags))
    assert list(tmp_path.glob("out/rounds")) == []


def test_compare_refuses_a_folder_that_is_not_a_comparison(packed, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("keep")
    assert "--out out holds something other" in error_of(run(tmp_path, "compare", packed, *TINY, "--out=out"))
    (tmp_path / "file").write_text("")
    assert "--out file" in error_of(run(tmp_path, "compare", packed, *TINY, "--out=file/out"))


def test_compare_refuses_a_set_whose_manifest_does_not_match(packed, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in packed.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(manifest.replace('"a"', '"c"'))
    assert "manifest.json" in error_of(run(tmp_path, "compare", copy, *TINY, "--out=out"))
    assert "manifest.json" in error_of(run(tmp_path, "compare", tmp_path / "absent", *TINY, "--out=out"))


def test_debug_shows_the_traceback(tmp_path):
    done = run(tmp_path, "pack", "folder", "nowhere", "out", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
