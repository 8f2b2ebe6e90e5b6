"""Foreign WebDataset shards become sets of ours, and stock WebDataset readers read sets of ours."""

import io
import json
import os
import pickle
import tarfile
import tracemalloc
import zlib
from contextlib import suppress
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from PIL import Image

from egal_shards import ShardError, ShardSet, Split, pack, verify
from egal_shards.sources import wds
from egal_shards.sources.tar_members import members
from shards import hostile_files
from shards.hostile_files import NESTED
from shards.shard_sets import source

HALF = Split(test=0.5, seed=0)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def pixels(i, *shape):
    return np.random.default_rng([3, i]).integers(0, 256, shape or (16, 16), np.uint8)


def blob(i):
    mask = np.zeros((16, 16), np.uint8)
    mask[i % 8 : i % 8 + 5, 3:9] = 255
    return mask


def write(path, samples):
    """Write a tar by webdataset's own writer, which adds PAX headers with fractional times."""
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for key, sample in samples:
            writer.write({"__key__": key, **sample})
    return path


def plain(i, label="cls"):
    return f"{i:04d}", {"png": png(pixels(i)), "mask.png": png(blob(i)), label: b"ab"[i % 2 : i % 2 + 1]}


def packed(tmp_path, made, **settings):
    pack(made, tmp_path / "out", size=16, split=HALF, progress=False, **settings)
    verify(tmp_path / "out", progress=False)
    return ShardSet(tmp_path / "out")


def test_images_labels_and_masks_arrive_as_they_are(tmp_path):
    write(tmp_path / "x-000.tar", [plain(i) for i in range(5)])
    write(tmp_path / "x-001.tar", [plain(i) for i in range(5, 8)])
    shards = packed(tmp_path, wds(tmp_path, mask="mask.png"))
    assert shards.classes == ("a", "b")
    assert list(shards.index().key) == [f"x-{i // 5:03d}_{i:04d}" for i in range(8)]
    for i, sample in enumerate(shards):
        np.testing.assert_array_equal(sample.image[0], pixels(i))
        np.testing.assert_array_equal(sample.roi, blob(i) > 0)
        assert sample.label == i % 2


@pytest.mark.parametrize("given", ["x-{000..001}.tar", "x-000.tar", "."])
def test_a_folder_a_tar_and_a_brace_pattern(tmp_path, given):
    for n in (0, 1):
        write(tmp_path / f"x-{n:03d}.tar", [plain(i) for i in range(4)])
    made = wds(tmp_path / given)
    assert (len(made.records), made.name) == ((4, "x-000") if given == "x-000.tar" else (8, tmp_path.name))


def test_several_tars_in_the_order_given(tmp_path):
    tars = [write(tmp_path / name, [plain(i) for i in range(2)]) for name in ("b.tar", "a.tar", "c-0.tar")]
    made = wds([tars[0], str(tars[1]), tmp_path / "c-{0..0}.tar"])
    assert [record.key for record in made.records] == [f"{tar}_000{i}" for tar in ("b", "a", "c-0") for i in (0, 1)]
    assert (made.name, made.made["input"]) == (tmp_path.name, ["b.tar", "a.tar", "c-{0..0}.tar"])
    with pytest.raises(ShardError, match=r"a.tar: has the name of .*a.tar, and keys are made of it"):
        wds([tmp_path, tars[1]])
    with pytest.raises(ShardError, match=r"absent.tar: no such file"):
        wds([tars[0], tmp_path / "absent.tar"])


@pytest.mark.parametrize(
    ("member", "content", "label", "expected"),
    [
        ("cls", "b\n", "cls", "b"),
        ("txt", " b ", "txt", "b"),
        ("cls", "7", "cls", "7"),
        ("json", '{"diagnosis": "b", "other": [1]}', "json:diagnosis", "b"),
        ("json", '{"diagnosis": 3}', "json:diagnosis", "3"),
    ],
)
def test_labels(tmp_path, member, content, label, expected):
    write(tmp_path / "x.tar", [("k", {"png": png(pixels(0)), member: content.encode()})])
    assert [record.label for record in wds(tmp_path / "x.tar", label=label).records] == [expected]


def test_numbers_are_named_by_a_file_and_sorted_as_numbers(tmp_path):
    labels = [b"10", b"2"]
    write(tmp_path / "x.tar", [(str(i), {"png": png(pixels(i)), "cls": label}) for i, label in enumerate(labels)])
    assert wds(tmp_path / "x.tar").classes == ("2", "10")
    (tmp_path / "names.txt").write_text("".join(f"class {i}\n" for i in range(11)))
    named = wds(tmp_path / "x.tar", names=tmp_path / "names.txt")
    assert [record.label for record in named.records] == ["class 10", "class 2"]
    assert named.classes == tuple(f"class {i}" for i in range(11))
    for lines in (1, 10):
        (tmp_path / "names.txt").write_text("".join(f"class {i}\n" for i in range(lines)))
        with pytest.raises(ShardError, match=r"x.tar: sample 0: label '10' is none of the classes.*class 0"):
            wds(tmp_path / "x.tar", names=tmp_path / "names.txt")


def test_groups_come_from_json_and_a_note_tells_of_none(tmp_path):
    about = [json.dumps({"p": i // 2}).encode() for i in range(4)]
    samples = [(f"{i}", {"png": png(pixels(i)), "cls": b"a", "json": about[i]}) for i in range(4)]
    write(tmp_path / "x.tar", samples)
    assert [record.group for record in wds(tmp_path / "x.tar", group="json:p").records] == ["0", "0", "1", "1"]
    assert "may span pool and test" in wds(tmp_path / "x.tar").made["note"]
    assert "note" not in wds(tmp_path / "x.tar", group="json:p").made


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pixels(1, 16, 12), lambda array: array),
        (pixels(1, 1, 16, 12), lambda array: array[0]),
        (pixels(1, 16, 12, 3), lambda array: array),
        (pixels(1, 3, 16, 12), lambda array: array.transpose(1, 2, 0)),
        (np.asfortranarray(pixels(1, 16, 12)), lambda array: array),
        (pixels(1, 16, 12).astype(np.uint16) * 257, lambda array: array),
    ],
)
def test_npy_images_and_masks(tmp_path, array, expected):
    mask = np.zeros((16, 12), bool)
    mask[3:5, 1:7] = True
    write(tmp_path / "x.tar", [("k", {"image.npy": npy(array), "seg.npy": npy(mask), "cls": b"a"})])
    [record] = wds(tmp_path / "x.tar", image="image.npy", mask="seg.npy").records
    raw = record.load()
    np.testing.assert_array_equal(raw.image, expected(array))
    assert raw.image.dtype == array.dtype
    np.testing.assert_array_equal(raw.mask, mask)


@pytest.mark.parametrize("extension", ["npy", "png"])
def test_a_window_holds_for_every_kind_of_image(tmp_path, extension):
    values = pixels(0).astype(np.uint16) * 10
    write(tmp_path / "x.tar", [("k", {extension: npy(values) if extension == "npy" else png(values), "cls": b"a"})])
    [record] = wds(tmp_path / "x.tar", window=(500, 1500)).records
    np.testing.assert_allclose(record.load().image, np.clip((values - 500.0) / 1000, 0, 1), rtol=0, atol=1e-7)


def test_an_npy_mask_has_two_axes(tmp_path):
    write(tmp_path / "x.tar", [("k", {"png": png(pixels(0)), "seg.npy": npy(pixels(0)[None]), "cls": b"a"})])
    [record] = wds(tmp_path / "x.tar", mask="seg.npy").records
    with pytest.raises(ShardError, match=r"k.seg.npy: is an array of \[1, 16, 16\]; a mask is \[H,W\]"):
        record.load()


def test_the_mask_is_not_taken_for_the_image(tmp_path):
    jpeg = io.BytesIO()
    Image.fromarray(pixels(0)).save(jpeg, "JPEG")
    write(tmp_path / "x.tar", [("k", {"jpg": jpeg.getvalue(), "png": png(blob(0)), "cls": b"a"})])
    [record] = wds(tmp_path / "x.tar", mask="png").records
    np.testing.assert_array_equal(record.load().image, np.asarray(Image.open(jpeg)))
    np.testing.assert_array_equal(record.load().mask, blob(0) > 0)


def encoded(pixels, format):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


@pytest.mark.parametrize("extension", ["PNG", "JPG", "jpeg", "Jpeg"])
@pytest.mark.parametrize("mask", ["seg.png", "SEG.PNG", "Mask.Png"])
def test_extensions_are_read_in_any_letter_case(tmp_path, extension, mask):
    image = encoded(pixels(0), "PNG" if extension == "PNG" else "JPEG")
    write(tmp_path / "X.TAR", [("k", {extension: image, mask: png(blob(0)), "CLS": b"a"})])
    for flags in ({"mask": mask}, {"mask": mask.lower()}, {"mask": mask.upper(), "image": extension.swapcase()}):
        for path in (tmp_path, tmp_path / "X.TAR"):
            [record] = wds(path, label="cls", **flags).records
            np.testing.assert_array_equal(record.load().image, np.asarray(Image.open(io.BytesIO(image))))
            np.testing.assert_array_equal(record.load().mask, blob(0) > 0)


def dotted(stem, i, label="cls"):
    folder, _, file = stem.rpartition("/")
    name, _, rest = file.partition(".")
    text = b'{"x": "b"}' if label == "json" else b"b"
    return f"{folder}/{name}" if folder else name, {f"{rest}.png": png(pixels(i)), f"{rest}.{label}": text}


@pytest.mark.parametrize(("label", "flag"), [("cls", "5mm.cls"), ("txt", "5mm.TXT"), ("json", "5mm.json:x")])
def test_suffixes_with_dots_name_image_and_label(tmp_path, label, flag):
    write(tmp_path / "x.tar", [dotted(f"scan{i}_0.5mm", i, label) for i in range(3)])
    source = wds(tmp_path / "x.tar", image="5mm.png", label=flag)
    assert [(record.key, record.label) for record in source.records] == [(f"x_scan{i}_0", "b") for i in range(3)]
    np.testing.assert_array_equal(source.records[2].load().image, pixels(2))


def test_folders_with_dots_are_ordinary(tmp_path):
    write(tmp_path / "x.tar", [(f"study.v1/{i}", {"png": png(pixels(i)), "cls": b"a"}) for i in range(2)])
    assert [record.key for record in wds(tmp_path / "x.tar").records] == ["x_study_v1_0", "x_study_v1_1"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, r"scan_0.5mm.cls is .5mm.cls of sample scan_0: set label to 5mm.cls, or name the files without"),
        ({"label": "5mm.cls"}, r"has 0 members .* scan_0.5mm.png is .5mm.png of sample scan_0: set image to 5mm.png"),
    ],
)
def test_dots_in_names_are_explained(tmp_path, settings, says):
    write(tmp_path / "x.tar", [dotted("d/scan_0.5mm", 0)])
    with pytest.raises(ShardError, match=says):
        wds(tmp_path / "x.tar", **settings)


def test_names_that_are_numbers_with_dots_are_explained_briefly(tmp_path):
    files = [(f"1.2.826.0.{i + 10}", extension) for i in range(24) for extension in ("png", "cls")]
    (tmp_path / "x.tar").write_bytes(tar_of(*((f"{name}.{extension}", {}, b"a") for name, extension in files)))
    with pytest.raises(ShardError, match=r"1.2.826.0.10.cls is .2.826.0.10.cls of sample 1: name the files") as caught:
        wds(tmp_path / "x.tar")
    assert "2.826.0.14.png and 38 more;" in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


def test_names_that_give_one_key_get_distinct_ones(tmp_path):
    sample = {"png": png(pixels(0)), "cls": b"a"}
    write(tmp_path / "x.tar", [(name, sample) for name in ("j ", "j+", "k", "患", "电")])
    keys = [record.key for record in wds(tmp_path / "x.tar").records]
    assert keys[2] == "x_k"
    assert len(set(keys)) == 5
    assert all(key.startswith("x_j__") for key in keys[:2])


def test_a_note_tells_of_nearly_equal_classes(tmp_path):
    write(tmp_path / "x.tar", [(str(i), {"png": png(pixels(0)), "cls": b"aA"[i : i + 1]}) for i in range(2)])
    assert wds(tmp_path / "x.tar").made["note"].startswith("classes 'A' (1 sample), 'a' (1 sample) have nearly equal")


def test_a_list_of_names_may_begin_with_a_byte_order_mark(tmp_path):
    write(tmp_path / "x.tar", [("k", {"png": png(pixels(0)), "cls": b"0"})])
    (tmp_path / "names.txt").write_text("ill\nwell\n", encoding="utf-8-sig")
    assert wds(tmp_path / "x.tar", names=tmp_path / "names.txt").classes == ("ill", "well")
    (tmp_path / "names.txt").unlink()
    os.mkfifo(tmp_path / "names.txt")
    with pytest.raises(ShardError, match=r"names.txt: is not a regular file"):
        wds(tmp_path / "x.tar", names=tmp_path / "names.txt")


def test_samples_without_mask_folders_and_hidden_files(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        files = {"d": None, "./d/k.png": png(pixels(0)), "./d/k.cls": b"a", "./._k.png": b"x", "README": b""}
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if data is None:
                info.type = tarfile.DIRTYPE
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))
    write(tmp_path / "y.tar", [plain(0)])
    record, other = wds(tmp_path, mask="mask.png").records
    assert (record.key, record.load().mask) == ("x_d_k", None)
    assert other.load().mask.any()


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("length", [20, 99, 100, 101, 140, 200])
def test_long_names_of_every_tar_format(tmp_path, format, length):
    name = ("d" * (length // 2) + "/" + "k" * (length - length // 2 - 5)) + ".cls"
    with tarfile.open(tmp_path / "x.tar", "w", format=format) as tar:
        for each in (name, name + "x", "short.cls"):
            info = tarfile.TarInfo(each)
            info.size, info.mtime = 1, 1.5 if format == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(b"a"))
    files = list(members(tmp_path / "x.tar"))
    assert [member.name for member in files] == [name, name + "x", "short.cls"]
    assert [member.read(1) for member in files] == [b"a", b"a", b"a"]


def one(**sample):
    return [("k", {"png": png(pixels(0)), "cls": b"a", **sample})]


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


REFUSED = {
    "no label": ([("k", {"png": png(pixels(0))})], {}, r"sample k: has no .cls for the label; the members .*: png"),
    "not sorted": ([("j", {"png": png(pixels(0))}), *one(), ("j", {"cls": b"a"})], {}, "follow each other .*: png"),
    "no mask at all": (one(), {"mask": "seg.png"}, "no sample has a .seg.png for the mask; leave mask out"),
    "two images": (one(jpg=b""), {}, "has 2 members of png, jpg, jpeg and npy.*image"),
    "no image": ([("k", {"cls": b"a", "pyd": b""})], {}, "has 0 members of png"),
    "label not text": (one(cls=b"\xff"), {}, "k.cls: is not UTF-8"),
    "label too long": (one(cls=b"a" * 5000), {}, "k.cls: has 5000 bytes, more than the 4096"),
    "label empty": (one(cls=b" "), {}, "label '' is none of the classes"),
    "class unknown": (one(), {"classes": ("aa", "b")}, "label 'a' is none of the classes.*did you mean 'aa'"),
    "json deep": (one(json=b"[" * 100_000), {"label": "json:x"}, "k.json: is not JSON"),
    "json without the field": (one(json=b'{"y": 1}'), {"label": "json:x"}, "k.json: has no field 'x'; it has y"),
    "json no object": (one(json=b"[1]"), {"label": "json:x"}, "k.json: has no field 'x'; it has no fields"),
    "json field no text": (one(json=b'{"x": true}'), {"label": "json:x"}, "k.json: x is 'True', neither"),
    "label of a pickle": (one(), {"label": "pyd"}, "label 'pyd' is not cls, txt or json:FIELD"),
    "image of a pickle": (one(), {"image": "pyd"}, "image 'pyd' ends in none of png"),
    "mask of a jpeg": (one(), {"mask": "jpg"}, "mask 'jpg' ends in none of png, npy"),
    "sample twice": ([*one(), ("l", one()[0][1]), *one()], {}, "sample k: is in the tar twice"),
    "nothing": ([], {}, "holds no samples"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named(tmp_path, case):
    samples, settings, says = REFUSED[case]
    write(tmp_path / "x.tar", samples)
    with pytest.raises(ShardError, match=says) as caught:
        wds(tmp_path / "x.tar", **settings)
    assert "\n" not in str(caught.value)


def test_inputs_that_hold_no_tars(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, says in [
        (tmp_path / "absent.tar", "absent.tar: no such file"),
        (tmp_path / "empty", r"empty: holds no .tar"),
        ("pipe:touch trace", "no pipes"),
        ("http://localhost/x.tar", "no URLs"),
        (str(tmp_path / "x-{0..1.tar"), "braces are not balanced|no such file"),
    ]:
        with pytest.raises(ShardError, match=says):
            wds(path)
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b" + bytes(range(256)) * 4)
    with pytest.raises(ShardError, match=r"x.tar: byte 0 is no tar header.*compressed"):
        wds(tmp_path / "x.tar")


def npy_of(text, payload=b"", version=b"\1\0"):
    return b"\x93NUMPY" + version + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n" + payload


def header(shape, descr="'|u1'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


NOT_NPY = "is no npy file, or none of plain numbers"
HOSTILE_ARRAYS = {
    "object": (lambda trace: npy(np.array([Trap(trace)], dtype=object)), r"holds \|O"),
    "shape of terabytes": (lambda _: npy_of(header("(999999, 9999999)"), bytes(64)), "claims an array of"),
    "shape beyond integers": (lambda _: npy_of(header("(" + "9" * 70 + ",)"), bytes(64)), "claims an array of"),
    "shape of many digits": (lambda _: npy_of(header("(" + "9" * 60_000 + ",)")), NOT_NPY),
    "no pixels": (lambda _: npy_of(header("(0, 16)")), "claims an array of"),
    "a pixel less": (lambda _: npy(pixels(0))[:-1], "claims an array of"),
    "a pixel more": (lambda _: npy(pixels(0)) + b"x", "claims an array of"),
    "nested": (lambda _: npy_of(header("(" * 2000 + ")" * 2000)), NOT_NPY),
    "code": (lambda trace: npy_of(header(f"open({str(trace)!r}, 'w')")), NOT_NPY),
    "record": (lambda _: npy_of(header("(1,)", "[('a', '|O')]"), bytes(8)), NOT_NPY),
    "floats": (lambda _: npy(np.zeros((4, 4))), "holds <f8"),
    "version 3": (lambda _: npy_of(header("(1,)"), version=b"\3\0"), NOT_NPY),
    "five axes": (lambda _: npy(pixels(0, 2, 2, 2, 2, 2)), "images are"),
    "either way": (lambda _: npy(pixels(0, 3, 4, 3)), "images are"),
    "empty": (lambda _: b"", NOT_NPY),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_ARRAYS)
def test_hostile_arrays_are_refused_and_run_nothing(tmp_path, case):
    make, says = HOSTILE_ARRAYS[case]
    write(tmp_path / "x.tar", [("k", {"npy": make(tmp_path / "trace"), "cls": b"a"})])
    [record] = wds(tmp_path / "x.tar").records
    with pytest.raises(ShardError, match=f"k.npy: .*{says}"):
        record.load()
    assert not (tmp_path / "trace").exists()


HOSTILE_IMAGES = {
    **NESTED,
    "giant PNG": hostile_files.png(60_000, 60_000, rows=zlib.compress(bytes(1 << 20))),
    "giant JPEG": hostile_files.jpeg(65_000, 65_000),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(trace) (w) file\n",
}


@pytest.mark.parametrize("extension", ["png", "jpg", "mask.png"])
@pytest.mark.parametrize("case", HOSTILE_IMAGES)
def test_hostile_images_are_refused_and_write_nothing(tmp_path, monkeypatch, case, extension):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    sample = {"png": png(pixels(0)), "cls": b"a", extension: HOSTILE_IMAGES[case]}
    write("x.tar", [("k", sample)])
    flags = {"mask": "mask.png"} if extension == "mask.png" else {"image": extension}
    [record] = wds("x.tar", **flags).records
    tracemalloc.start()
    with pytest.raises(ShardError, match=rf"x.tar: k.{extension}: (is not a PNG|has more than 100 million pixels)"):
        record.load()
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    assert list(tmp_path.rglob("*")) == [tmp_path / "in", tmp_path / "in" / "x.tar"]


def test_pickles_beside_the_images_are_never_touched(tmp_path):
    trace = tmp_path / "trace"
    trap = {extension: pickle.dumps(Trap(trace)) for extension in ("pyd", "pkl", "pickle", "pth", "ten")}
    write(tmp_path / "x.tar", [(str(i), {**plain(i)[1], **trap}) for i in range(8)])
    packed(tmp_path, wds(tmp_path / "x.tar", mask="mask.png"))
    assert not trace.exists()


def tar_of(*entries):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, settings, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for attribute, value in settings.items():
                setattr(info, attribute, value)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def raw_header(name, size, type=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, type
    return info.tobuf(tarfile.GNU_FORMAT)


HOSTILE_TARS = {
    "absolute name": (tar_of(("/etc/k.png", {}, b"")), "leads out of the archive"),
    "dots": (tar_of(("a/../../k.png", {}, b"")), "leads out of the archive"),
    "dots in a PAX path": (tar_of(("k.png", {"pax_headers": {"path": "../k.png"}}, b"")), "leads out"),
    "symbolic link": (tar_of(("k.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, b"")), "is a link"),
    "hard link": (tar_of(("k.png", {"type": tarfile.LNKTYPE, "linkname": "x"}, b"")), "is a link"),
    "device": (tar_of(("k.png", {"type": tarfile.CHRTYPE}, b"")), "is a link, device"),
    "pipe": (tar_of(("k.png", {"type": tarfile.FIFOTYPE}, b"")), "is a link, device"),
    "sparse": (raw_header("k.png", 0, tarfile.GNUTYPE_SPARSE) + bytes(1024), "sparse"),
    "global PAX header": (raw_header("g", 0, tarfile.XGLTYPE) + bytes(1024), "type b'g'"),
    "PAX size": (tar_of(("k.png", {"pax_headers": {"size": "1"}}, b"12")), "changes 'size'"),
    "PAX link": (tar_of(("k.png", {"pax_headers": {"linkpath": "/etc/passwd"}}, b"")), "changes 'linkpath'"),
    "NUL in a PAX path": (tar_of(("k.png", {"pax_headers": {"path": "k.png\0.pyd"}}, b"")), "leads out"),
    "member twice": (tar_of(("k.png", {}, b""), ("k.cls", {}, b"a"), ("k.PNG", {}, b"")), "is in the tar twice"),
    "PAX sparse": (tar_of(("k.png", {"pax_headers": {"GNU.sparse.major": "1"}}, b"")), "changes 'GNU.sparse.major'"),
    "PAX damaged": (raw_header("x", 9, tarfile.XHDTYPE) + b"99 path=x".ljust(512, b"\0") + bytes(1024), "PAX header"),
    "giant PAX header": (raw_header("x", 1 << 17, tarfile.XHDTYPE) + bytes(1 << 18), "no honest one is"),
    "giant size": (raw_header("k.png", 1 << 60) + bytes(1024), r"claims \d+ bytes"),
    "negative size": (raw_header("k.png", -512) + bytes(1024), r"claims -512 bytes"),
    "no end": (tar_of(("k.png", {}, b"x"))[:1024], "byte 1024 is no tar header"),
    "cut within a payload": (tar_of(("k.png", {}, bytes(600)))[:1024], "claims 600 bytes"),
    "nothing": (b"", "byte 0 is no tar header"),
    "zip": (b"PK\x03\x04" * 200, "no tar header"),
}  # fmt: skip


def test_a_pipe_named_like_a_tar_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    for path in (tmp_path, tmp_path / "x.tar"):
        with pytest.raises(ShardError, match=r"x.tar: is a pipe, device or folder, not a tar"):
            wds(path)


@given(st.integers(0, 40), st.integers(0, 1 << 15), st.binary(max_size=3))
@settings(deadline=None, max_examples=50)
def test_only_zeros_may_follow_the_end_marker(tmp_path_factory, blocks, zeros, tail):
    path = tmp_path_factory.getbasetemp() / "padded.tar"
    path.write_bytes(tar_of(("k.png", {}, b"x")) + bytes(512 * blocks + zeros) + tail)
    if tail.strip(b"\0"):
        with pytest.raises(ShardError, match=r"padded.tar: has data after its end marker, at byte \d+"):
            list(members(path))
    else:
        assert [member.name for member in members(path)] == ["k.png"]


def test_tars_joined_by_cat_are_refused(tmp_path):
    first, second = (tar_of((f"{name}.png", {}, b"x"), (f"{name}.cls", {}, b"a")) for name in "ab")
    (tmp_path / "x.tar").write_bytes(first + second)
    says = rf"at byte {len(first)}, as when tars are joined by cat.*unpack the file by tar --ignore-zeros -xf"
    with pytest.raises(ShardError, match=says):
        wds(tmp_path / "x.tar")


def test_endless_zeros_after_the_end_marker_are_not_read(tmp_path):
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(tar_of(("k.png", {}, b"x")))
        file.truncate(1 << 40)  # a hole
    with pytest.raises(ShardError, match=r"x.tar: has more than \d+ bytes after its end marker"):
        wds(tmp_path / "x.tar")


@pytest.mark.parametrize("case", HOSTILE_TARS)
def test_hostile_tars_are_refused(tmp_path, case):
    data, says = HOSTILE_TARS[case]
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ShardError, match=f"x.tar: .*{says}"):
        wds(tmp_path / "x.tar")


def test_an_image_of_half_a_gigabyte_is_not_read(tmp_path):
    size = (1 << 29) + 1
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(raw_header("k.cls", 1) + b"a".ljust(512, b"\0") + raw_header("k.png", size))
        file.truncate(1536 + size + 511 + 1024)  # a hole
    [record] = wds(tmp_path / "x.tar").records
    with pytest.raises(ShardError, match=rf"k.png: has {size} bytes, more than"):
        record.load()


@given(st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=12)), max_size=4), st.integers(0, 4096))
@settings(deadline=None, max_examples=200)
def test_any_damage_to_headers_ends_in_members_or_a_named_error(tmp_path_factory, edits, length):
    data = bytearray(tar_of(("a.png", {"mtime": 1.5}, b"x" * 600), ("d/b.cls", {}, b"a"), ("n" * 120, {}, b"")))
    for at, patch in edits:
        data[at : at + len(patch)] = patch
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    path.write_bytes(data[: len(data) - length] if length < 512 else data)
    files = []
    with suppress(ShardError):
        for member in members(path):
            files.append(member)
    for member in files:
        assert member.offset + member.size <= path.stat().st_size
        assert not member.name.startswith("/")
        assert ".." not in member.name.split("/")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours") / "set"
    pack(source(24), folder, size=40, channels=3, shard_mb=0.05, progress=False)
    return folder


def assert_stock(samples, shards):
    """Assert that the samples of a stock reader, bytes or decoded arrays by extension, are those of the set."""
    assert len(samples) == len(shards)
    for sample, expected in zip(samples, shards, strict=True):
        about = sample["json"] if isinstance(sample["json"], dict) else json.loads(sample["json"])
        assert (sample["__key__"].rpartition("/")[2], about["label"]) == (expected.key, expected.label)
        np.testing.assert_array_equal(sample["image.npy"], expected.image)
        assert ("roi.npy" in sample) == expected.has_roi
        if expected.has_roi:
            words = np.asarray(sample["roi.npy"])
            x, y = np.meshgrid(np.arange(40), np.arange(40))
            np.testing.assert_array_equal(words[x, y // 32] >> (y % 32).astype(np.uint32) & 1, expected.roi)


def test_stock_webdataset_reads_our_shards(ours):
    urls = sorted(map(str, ours.glob("*.tar")))
    assert len(urls) > 1
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    assert_stock(samples, ShardSet(ours))


def test_ray_data_reads_our_shards(ours):
    ray = pytest.importorskip("ray.data", reason="Ray is not installed: pip install ray")
    if not hasattr(pd.errors, "SettingWithCopyWarning") and Version(version("ray")) < Version("2.41"):
        pytest.skip(f"the data module of Ray {version('ray')} needs pandas 2")
    rows = ray.read_webdataset(sorted(map(str, ours.glob("*.tar"))), decoder=None).take_all()
    for row in rows:  # Ray fills in a NaN where a sample has no ROI, and cannot decode such a column itself
        decoded = {
            name: np.load(io.BytesIO(row.pop(name)))
            for name in list(row)
            if isinstance(row[name], bytes) and name != "json"
        }
        row.pop("roi.npy", None)
        row.update(decoded)
    assert_stock(sorted(rows, key=lambda row: row["__key__"]), ShardSet(ours))


def test_our_own_shards_come_back_as_a_source(ours, tmp_path):
    back = wds(ours, image="image.npy", label="json:class", group="json:group", classes=("a", "b", "c"))
    assert [record.group for record in back.records] == list(ShardSet(ours).index().group)
    for record, expected in zip(back.records, ShardSet(ours), strict=True):
        np.testing.assert_array_equal(record.load().image, expected.image.transpose(1, 2, 0))
        assert back.classes.index(record.label) == expected.label
