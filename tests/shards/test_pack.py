"""Packing and reading back: samples return unchanged in every format, and equal input gives equal bytes."""

import dataclasses
import fcntl
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading

import numpy as np
import pandas as pd
import pytest
import webdataset
from PIL import Image

from egal_shards import Manifest, Raw, Record, ShardError, ShardSet, Source, Split, pack, packing, verify
from egal_shards.geometry import draw_boxes, place, resize_image, resize_mask
from shards.shard_sets import CLASSES, raw, source


def quiet_pack(*args, **settings):
    return pack(*args, **{"size": 16, "progress": False, **settings})


def expected(i, channels, colour, resize, size=16):
    """Return image [C,H,W] and ROI by the functions of geometry, which have their own tests."""
    original = raw(i, colour=colour)
    at = place(original.image.shape[1], original.image.shape[0], size, resize)
    image = resize_image(np.asarray(Image.fromarray(original.image).convert("L" if channels == 1 else "RGB")), at)
    roi = draw_boxes(original.boxes, at) if original.mask is None else resize_mask(original.mask, at)
    return np.atleast_3d(image).transpose(2, 0, 1), roi


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize(("image_format", "resize"), [("npy", "letterbox"), ("png", "squash"), ("jpg", "letterbox")])
def test_samples_come_back(tmp_path, channels, colour, image_format, resize):
    made = source(load=lambda i: raw(i, colour=colour))
    quiet_pack(made, tmp_path / "set", channels=channels, image_format=image_format, resize=resize, shard_mb=0.01)
    shards = ShardSet(tmp_path / "set")
    assert len(shards) == 12
    assert shards.classes == CLASSES
    assert len(shards.manifest.shards) > 1
    for i, record in enumerate(made.records):
        sample = shards[i]
        image, roi = expected(i, channels, colour, resize)
        if image_format == "jpg":
            stream = io.BytesIO()
            Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0)).save(
                stream, "JPEG", quality=95, subsampling=0
            )
            image = np.atleast_3d(np.asarray(Image.open(stream))).transpose(2, 0, 1)
        assert np.array_equal(sample.image, image)
        assert np.array_equal(sample.roi, roi)
        assert sample.has_roi == roi.any() == (i % 3 != 2)
        assert (sample.key, sample.group) == (record.key, record.group)
        assert shards.classes[sample.label] == record.label
    assert verify(tmp_path / "set", progress=False).samples == 12


def test_a_set_is_indexed_like_a_sequence(pack_set):
    shards = pack_set(source())
    assert shards[-1].key == shards[np.int64(11)].key == "s011"
    assert [sample.key for sample in shards] == [f"s{i:03d}" for i in range(12)]
    for i in (12, -13):
        with pytest.raises(IndexError, match="of a set of 12"):
            shards[i]


def test_manifest_and_index_describe_the_samples(tmp_path):
    manifest = quiet_pack(source(note="x"), tmp_path / "set", shard_mb=0.01, split=Split(0.4, 5))
    assert manifest == Manifest.read(tmp_path / "set")
    assert manifest.counts.samples == sum(shard.samples for shard in manifest.shards) == 12
    assert manifest.counts.classes == {"a": 4, "b": 4, "c": 4}
    assert manifest.made["split"] == {"test": 0.4, "seed": 5}
    assert manifest.made["source"] == {"source": "test", "note": "x"}
    index = ShardSet(tmp_path / "set").index()
    assert index.key.tolist() == [f"s{i:03d}" for i in range(12)]
    assert index.split.value_counts().to_dict() == manifest.counts.splits
    assert index.groupby("group").split.nunique().max() == 1
    assert [index[name].dtype for name in ("key", "group", "split")] == [object] * 3
    for i, row in index.iterrows():
        assert row.roi_area == expected(i, 1, False, "letterbox")[1].sum()
        with (tmp_path / "set" / f"shard-{row.shard:06d}.tar").open("rb") as file:
            file.seek(row.offsets[4])
            contents = json.loads(file.read(row.offsets[5]))
        assert contents == {
            "label": row.label,
            "class": CLASSES[row.label],
            "group": row.group,
            "split": row.split,
            "boxes": [list(box) for box in raw(i).boxes],
            "original_size": [31, 20],
            "file": f"images/{i}.png",
        }


def test_strings_of_the_index_survive_a_numpy_shuffle(pack_set):
    groups = pack_set(source()).index().group.unique()
    np.random.default_rng(0).shuffle(groups)
    assert sorted(groups) == [f"g{i:03d}" for i in range(6)]


def test_shards_keep_their_size_limit(tmp_path):
    manifest = quiet_pack(source(30), tmp_path / "set", shard_mb=0.02)
    assert all(shard.bytes <= 20_000 for shard in manifest.shards)
    assert min(shard.samples for shard in manifest.shards[:-1]) > 1
    alone = quiet_pack(source(30), tmp_path / "alone", shard_mb=0.000001)
    assert [shard.samples for shard in alone.shards] == [1] * 30


def test_stock_tar_and_webdataset_read_the_shards(tmp_path):
    quiet_pack(source(), tmp_path / "set", shard_mb=0.01)
    paths = sorted(map(str, (tmp_path / "set").glob("shard-*.tar")))
    read = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in read] == [f"s{i:03d}" for i in range(12)]
    for i, sample in enumerate(read):
        image, roi = expected(i, 1, False, "letterbox")
        assert np.array_equal(sample["image.npy"], image)
        assert ("roi.npy" in sample) == roi.any()
        if roi.any():
            bits = np.unpackbits(sample["roi.npy"].view(np.uint8), axis=1, bitorder="little")
            assert np.array_equal(bits[:, :16].T, roi)
        assert sample["json"]["class"] == CLASSES[sample["json"]["label"]]
    with tarfile.open(paths[0]) as tar:
        assert all(member.isreg() and member.mtime == 0 for member in tar)


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    slow_first = threading.Event()

    def load(i):
        if i == 0:
            slow_first.wait(0.2)  # with threads, the first sample is the last to be decoded
        return raw(i)

    contents = []
    monkeypatch.setattr(packing, "_RUN", 1)  # else one worker would take all samples
    for workers in (1, 2, 7):
        monkeypatch.setattr(packing, "cores", lambda workers=workers: workers)
        out = tmp_path / str(workers)
        manifest = quiet_pack(source(load=load), out, shard_mb=0.01)
        contents.append((manifest.sha256, {p.name: p.read_bytes() for p in out.iterdir()}))
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("value", [np.float32(1), (1, 2), {1: 2}, float("nan"), {"deep": [b"x"]}, object()])
@pytest.mark.parametrize("of", ["record", "file"])
def test_facts_that_are_not_json_are_refused(tmp_path, value, of):
    made = source(load=lambda i: dataclasses.replace(raw(i), about={"scanner": value} if of == "file" else {}))
    if of == "record":
        made = dataclasses.replace(made, records=[dataclasses.replace(r, about={"a": value}) for r in made.records])
    with pytest.raises(
        ShardError, match=r"images/0.png: about\.(scanner|a)\S* cannot be written: .*; use plain values"
    ):
        quiet_pack(made, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_facts_about_a_sample_are_in_its_json(tmp_path, pack_set):
    made = source(load=lambda i: dataclasses.replace(raw(i), about={"window": [0.25, i], "both": "file"}))
    records = [dataclasses.replace(record, about={"visit": 2, "both": "record"}) for record in made.records]
    pack_set(dataclasses.replace(made, records=records))
    with tarfile.open(tmp_path / "set" / "shard-000000.tar") as tar:
        facts = json.load(tar.extractfile("s003.json"))["about"]
    assert facts == {"visit": 2, "window": [0.25, 3], "both": "file"}


def test_other_settings_give_another_identity(tmp_path):
    sets = [{}, {"split": Split(0.3, 1)}, {"resize": "squash"}, {"size": 17}, {"channels": 3}, {"image_format": "png"}]
    assert len({quiet_pack(source(), tmp_path / str(i), **s).sha256 for i, s in enumerate(sets)}) == len(sets)


def test_a_set_can_be_pickled(tmp_path, monkeypatch):
    quiet_pack(source(), tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    frozen = pickle.dumps(ShardSet("set"))
    monkeypatch.chdir("/")
    assert np.array_equal(pickle.loads(frozen)[3].image, expected(3, 1, False, "letterbox")[0])  # noqa: S301


def test_fixed_split_goes_into_the_set(tmp_path):
    made = source(split=lambda i: "test" if i // 2 % 2 else "pool")
    manifest = quiet_pack(made, tmp_path / "set")
    assert manifest.made["split"] == "fixed by the source"
    assert ShardSet(tmp_path / "set").index().split.tolist() == [record.split for record in made.records]


def with_record(**changes):
    fields = {"key": "k", "label": "a", "group": "g", "file": "f.png", "load": lambda: raw(0)} | changes
    return Source("tiny", CLASSES, [*source().records, Record(**fields)], {})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Source("tiny", CLASSES, [], {}), "tiny: has no samples"),
        (Source("tiny", ("a", "a"), source().records, {}), "class is listed twice"),
        (Source("tiny", CLASSES, source().records, {"x": np.int64(1)}), "cannot be written as JSON"),
        (Source("tiny", CLASSES, source().records, {"x": float("nan")}), "cannot be written as JSON"),
        (with_record(key="a.b"), "f.png: key 'a.b' is not"),
        (with_record(key="../x"), "key '../x' is not"),
        (with_record(key="é"), "key 'é' is not"),
        (with_record(key="k\n"), "is not"),
        (with_record(key="k" * 81), "is not 1 to 80"),
        (with_record(key="s003"), r"f.png: has the same key 's003' as images/3.png"),
        (with_record(label="z"), "f.png: label 'z' is none of"),
        (with_record(load=lambda: Raw(np.zeros((4, 4)), None)), r"f.png: image is float64 \[4, 4\]"),
        (with_record(load=lambda: Raw(np.zeros((4, 4, 4), np.uint8), None)), "f.png: image is"),
        (with_record(load=lambda: Raw(np.zeros((4, 0), np.uint8), None)), "f.png: image is"),
        (with_record(load=lambda: Raw(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))), "f.png: mask is uint8"),
        (
            with_record(load=lambda: Raw(np.zeros((4, 5), np.uint8), np.zeros((5, 4), bool))),
            "its mask is 4×5 .* the image 5×4",
        ),
        (
            with_record(load=lambda: Raw(np.zeros((4, 4), np.uint8), np.ones((4, 4), bool), ((0, 0, 1, 1),))),
            "both a mask and boxes",
        ),
        (
            with_record(load=lambda: Raw(np.zeros((4, 4), np.uint8), None, ((0, 0, 5, 1),))),
            "f.png: box .* leaves its image",
        ),
    ],
)
def test_bad_sources_leave_nothing(tmp_path, bad, message):
    with pytest.raises(ShardError, match=message) as caught:
        quiet_pack(bad, tmp_path / "set")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 7}, "size 7"),
        ({"size": 5000}, "size 5000"),
        ({"channels": 2}, "channels 2"),
        ({"resize": "crop"}, "resize 'crop' is none of letterbox, squash"),
        ({"image_format": "gif"}, "image_format 'gif' is none of npy, png, jpg"),
        ({"shard_mb": 0}, "shard_mb 0"),
    ],
)
def test_bad_settings_are_named(tmp_path, settings, message):
    with pytest.raises(ShardError, match=message):
        quiet_pack(source(), tmp_path / "set", **settings)


def test_out_dir_must_be_new_or_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    assert quiet_pack(source(), tmp_path / "empty").counts.samples == 12
    (tmp_path / "file").write_text("x")
    for name, message in [("empty", "exists already"), ("file", "exists already"), ("file/below", "file: File exists")]:
        with pytest.raises(ShardError, match=message):
            quiet_pack(source(load=None), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ShardError, match="No space left on device; check the disk"):
        quiet_pack(source(), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_pack_leaves_nothing(tmp_path, child_environment):
    """Ctrl-C while samples are being decoded, in a process of its own."""
    code = """
        import sys, time
        from pathlib import Path
        from egal_shards import pack
        from shards.shard_sets import raw, source

        def load(i):
            if i == 40:
                print("deep in", *(p.name for p in Path(sys.argv[1]).iterdir()), flush=True)
            time.sleep(0.02)
            return raw(i)

        pack(source(2000, load=load), Path(sys.argv[1]) / "set", size=16, shard_mb=0.01, progress=False)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment,
        text=True,
    ) as process:
        line = process.stdout.readline()
        assert line.startswith("deep in .set."), line + process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert list(tmp_path.iterdir()) == []


def test_packing_verifying_and_reading_need_no_torch(tmp_path, child_environment):
    code = """
        import sys
        import egal_shards
        assert not {"numpy", "pyarrow", "pydantic", "PIL"} & sys.modules.keys(), "import egal_shards is light"
        from egal_shards import ShardSet, pack, verify
        from shards.shard_sets import source
        out = sys.argv[1] + "/set"
        pack(source(), out, size=16)
        verify(out)
        ShardSet(out)[0], ShardSet(out).index()
        assert "torch" not in sys.modules
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, env=child_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pack tiny" not in done.stderr  # no progress bar, since stderr is no terminal
    assert done.stdout == ""


def test_index_reads_with_stock_pandas(tmp_path):
    quiet_pack(source(), tmp_path / "set")
    frame = pd.read_parquet(tmp_path / "set" / "index.parquet")
    assert frame.columns.tolist() == ["key", "shard", "offsets", "label", "group", "split", "roi_area", "sha256"]
    assert len(frame.offsets[0]) == 6


def test_only_folders_of_killed_packs_are_removed(tmp_path):
    killed, running, foreign = (tmp_path / f".set.{name}.partial" for name in ("0" * 8, "1" * 8, "mine"))
    for folder in (killed, running, foreign):
        folder.mkdir()
        (folder / "shard-000000.tar").write_bytes(b"x")
    handle = os.open(running, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        quiet_pack(source(), tmp_path / "set")
    finally:
        os.close(handle)
    assert sorted(tmp_path.iterdir()) == sorted([running, foreign, tmp_path / "set"])
    quiet_pack(source(), tmp_path / "other")
    assert running.exists()
