"""BraTS volumes, written by nibabel in the official names, against slices cut out with numpy."""

import gzip
import json
import subprocess
import sys
import tarfile
import textwrap
import tracemalloc
import weakref

import numpy as np
import pytest

from egal_shards import ShardError, ShardSet, pack, verify
from egal_shards.nifti import Volume
from egal_shards.sources import brats, brats_mri

nibabel = pytest.importorskip("nibabel", reason="the extra nifti is not installed")

OFFICIAL = np.diag([-1.0, -1.0, 1.0, 1.0]) + np.array([[0, 0, 0, 0], [0, 0, 0, 239], [0, 0, 0, 0], [0, 0, 0, 0]])
SHAPE = (13, 11, 9)  # x, y, z


def volume(path, values, affine=OFFICIAL, slope=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    if slope:
        image.header.set_slope_inter(*slope)
    nibabel.save(image, path)
    return path


def scan(seed, enhancing=4):
    """seg [X,Y,Z] u8: slices 2 to 6 with tumour, each with another largest region; and t1, t1ce, t2, flair i16."""
    rng = np.random.default_rng(seed)
    seg = np.zeros(SHAPE, np.uint8)
    seg[2:5, 3:6, 2:7] = 2  # 9 voxels
    seg[5:11, 3:6, 3] = 1  # 18
    seg[5:11, 3:7, 4] = enhancing  # 24
    seg[5:8, 3:6, 5] = enhancing  # 9: as many as edema, which comes first
    seg[2:5, 3:6, 6] = 0
    seg[2:4, 3:5, 6] = 1  # 4: too few
    brain = rng.random(SHAPE) < 0.8
    brain[:, :, 8] = False
    images = {kind: (rng.integers(1, 3000, SHAPE) * brain).astype(np.int16) for kind in ("t1", "t1ce", "t2", "flair")}
    return seg, images


NAMES_2023 = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"}


def tree_2020(root, cases=4, suffix=".nii"):
    for i in range(1, cases + 1):
        seg, images = scan(i)
        for kind, values in {**images, "seg": seg}.items():
            volume(root / f"BraTS20_Training_{i:03}" / f"BraTS20_Training_{i:03}_{kind}{suffix}", values)
    return root


def tree_2023(root):
    for i, visit in ((0, 0), (0, 1), (1, 0), (2, 0)):
        seg, images = scan(10 * i + visit, enhancing=3)
        name = f"BraTS-GLI-{i:05}-{visit:03}"
        for kind, values in {**images, "seg": seg}.items():
            volume(root / "train" / name / f"{name}-{NAMES_2023[kind]}.nii.gz", values)
    return root


def quiet(root, **settings):
    return brats(root, **{"min_voxels": 5, "progress": False, **settings})


def shown(values, percentiles=(0.5, 99.5)):
    """0…1 [X,Y,Z] by the documented window, in float64."""
    low, high = np.percentile(values[values != 0].astype(np.float64), percentiles)
    return np.where(values == 0, 0, np.clip((values - low) / (high - low), 0, 1))


def windows(images, kinds, percentiles):
    return [np.percentile(images[kind][images[kind] != 0].astype(np.float64), percentiles) for kind in kinds]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slices_regions_and_pixels_of_2020(tmp_path, suffix):
    source = quiet(tree_2020(tmp_path, suffix=suffix), modality=["flair"])
    assert source.classes == ("necrotic", "edema", "enhancing")
    first = [record for record in source.records if "001" in record.group]
    assert [record.key for record in first] == [f"BraTS20_Training_001-z00{k}" for k in (2, 3, 4, 5)]
    assert [record.label for record in first] == ["edema", "necrotic", "enhancing", "edema"]
    assert first[0].file == f"BraTS20_Training_001/BraTS20_Training_001_flair{suffix} slice 2"
    assert first[1].about == {"slice": 3, "voxels": {"necrotic": 18, "edema": 9, "enhancing": 0}}
    assert {record.group for record in source.records} == {f"BraTS20_Training_00{i}" for i in (1, 2, 3, 4)}
    seg, images = scan(1)
    for record, k, region in zip(first, (2, 3, 4, 5), (2, 1, 4, 2), strict=True):
        raw = record.load()
        # official affine: x runs to the patient's left, y to the back, so that a transposed slice is upright
        np.testing.assert_allclose(raw.image, shown(images["flair"])[:, :, k].T, rtol=0, atol=1e-6)
        assert np.array_equal(raw.mask, (seg[:, :, k] == region).T)


def test_channels_visits_and_values_of_2023(tmp_path):
    source = quiet(tree_2023(tmp_path), modality=["t1c", "t2", "t2f"], roi="tumor", percentiles=(1, 90))
    assert source.channels == 3
    assert source.made["modality"] == ["t1ce", "t2", "flair"]
    assert {record.group for record in source.records} == {f"BraTS-GLI-0000{i}" for i in (0, 1, 2)}
    [record] = [record for record in source.records if record.key == "BraTS-GLI-00000-001-z004"]
    key, expected_windows = record.key, windows(scan(1, enhancing=3)[1], ("t1ce", "t2", "flair"), (1, 90))
    pack(source, tmp_path / "set", size=8, channels=3, progress=False)
    with tarfile.open(tmp_path / "set" / "shard-000000.tar") as tar:
        about = json.load(tar.extractfile(f"{key}.json"))["about"]
    assert (about["slice"], set(about["voxels"])) == (4, {"necrotic", "edema", "enhancing"})
    np.testing.assert_allclose(about["windows"], expected_windows, rtol=1e-6)
    assert record.label == "enhancing"
    seg, images = scan(1, enhancing=3)
    expected = np.stack([shown(images[kind], (1, 90))[:, :, 4].T for kind in ("t1ce", "t2", "flair")], axis=-1)
    np.testing.assert_allclose(record.load().image, expected, rtol=0, atol=1e-6)
    assert np.array_equal(record.load().mask, (seg[:, :, 4] > 0).T)


def test_only_regions_that_label_a_slice_are_classes(tmp_path):
    assert quiet(tree_2020(tmp_path), min_voxels=27).classes == ("necrotic", "enhancing")  # of 9, 27, 33, 18 and 4


def test_what_is_0_is_black_also_among_negative_values(tmp_path):
    root = tree_2020(tmp_path)
    values = scan(1)[1]["t1ce"].astype(np.float32)
    tampered(root, "BraTS20_Training_001_t1ce.nii", np.where(values == 0, 0, values - 1500))
    image = quiet(root).records[0].load().image
    assert not image[values[:, :, 2].T == 0].any()
    assert np.count_nonzero(image) > 0.9 * np.count_nonzero(values[:, :, 2])


def test_tumor_or_none(tmp_path):
    source = quiet(tree_2020(tmp_path), label="tumor")
    assert source.classes == ("no tumor", "tumor")
    labels = {record.about["slice"]: record.label for record in source.records if record.group.endswith("1")}
    # slice 6 has too few tumour voxels for either, slice 8 no brain
    assert labels == {0: "no tumor", 1: "no tumor", 2: "tumor", 3: "tumor", 4: "tumor", 5: "tumor", 7: "no tumor"}
    seg, _ = scan(1)
    by_slice = {record.about["slice"]: record.load() for record in source.records if record.group.endswith("1")}
    assert by_slice[0].mask is None
    assert np.array_equal(by_slice[4].mask, (seg[:, :, 4] > 0).T)


def test_the_affine_turns_slices_upright(tmp_path):
    """The same head, stored in other directions, with axes swapped, scaled, and as float: equal images."""
    values = scan(1)[1]["t1"]
    official = list(Volume.open(volume(tmp_path / "a.nii", values)).slices())
    turned = {
        "right.nii": (values[::-1], np.diag([1, -1, 1, 1])),
        "front.nii.gz": (values[:, ::-1], np.diag([-1, 1, 1, 1])),
        "swapped.nii": (
            values.transpose(1, 0, 2),
            np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        ),
        "float.nii": (values.astype(np.float32), OFFICIAL),
        "big-endian.nii": (values.astype(">i2"), OFFICIAL),
    }
    for name, (stored, affine) in turned.items():
        slices = list(Volume.open(volume(tmp_path / name, stored, affine.astype(float))).slices())
        assert len(slices) == SHAPE[2]
        assert all(np.array_equal(a, b) for a, b in zip(slices, official, strict=True)), name
    scaled = volume(tmp_path / "scaled.nii", values.astype(np.float64), slope=(0.25, 7))
    stored = nibabel.load(scaled).get_fdata()
    assert np.allclose(np.stack(list(Volume.open(scaled).slices())), stored.transpose(2, 1, 0), rtol=1e-6)
    with pytest.raises(ShardError, match="its slices are not axial"):
        Volume.open(
            volume(
                tmp_path / "coronal.nii", values, np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
            )
        )


def test_packs_into_16_bits_and_back(tmp_path):
    source = quiet(tree_2020(tmp_path / "in"), modality=("t1ce", "t2", "flair"))
    with pytest.raises(ShardError, match="makes images of 3 channels, and channels is 1"):
        pack(source, tmp_path / "set", progress=False)
    pack(source, tmp_path / "set", size=13, channels=3, dtype="uint16", progress=False)
    assert verify(tmp_path / "set", progress=False).samples == 16
    shards = ShardSet(tmp_path / "set")
    for i, record in enumerate(source.records):  # 13 wide, 11 high: letterboxed without scaling
        raw, sample = record.load(), shards[i]
        assert sample.image.dtype == np.uint16
        assert np.array_equal(sample.image[:, 1:12], np.rint(raw.image * np.float32(65535)).transpose(2, 0, 1))
        assert not sample.image[:, [0, 12]].any()
        assert np.array_equal(sample.roi[1:12], raw.mask)


def test_a_case_is_loaded_once_and_let_go_before_the_next(tmp_path, monkeypatch):
    loads, alive = [], []
    load = brats_mri._load

    def counted(case, *rest):
        loads.append(case.name)
        assert not any(loaded() for loaded in alive)
        loaded = load(case, *rest)
        alive.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(brats_mri, "_load", counted)
    pack(quiet(tree_2020(tmp_path / "tree")), tmp_path / "set", size=16, progress=False)
    assert loads == [f"BraTS20_Training_00{i}" for i in (1, 2, 3, 4)]


def as_int64(path, values):
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int64), OFFICIAL, dtype=np.int64), path)


def as_uint64(path, values):
    nibabel.save(nibabel.Nifti1Image(values.astype(np.uint64), OFFICIAL, dtype=np.uint64), path)


def with_scale(bits):
    """Labels spread over the range of an integer type, as some tools store every volume: 1 becomes 1.000015."""

    def save(path, values):
        top = 2**bits - 1
        image = nibabel.Nifti1Image(np.rint(values / 4 * top).astype(f"u{bits // 8}"), OFFICIAL)
        image.header.set_slope_inter(4 / top, 0)
        image.to_filename(path)

    return save


def with_dimensions_of_one(path, values):
    volume(path, values[..., None, None])


def compressed_without_saying_so(path, values):
    volume(path.with_suffix(".nii.gz"), values).rename(path)


STORAGE = {
    "gzip in a .nii": compressed_without_saying_so,
    "int64": as_int64,
    "uint64": as_uint64,
    "16 bits with scale": with_scale(16),
    "8 bits with scale": with_scale(8),
    "float": lambda path, values: volume(path, values.astype(np.float32)),
    "dimensions of one": with_dimensions_of_one,
}


@pytest.mark.parametrize("storage", STORAGE)
def test_segmentations_however_they_are_stored(tmp_path, storage):
    expected = quiet(tree_2020(tmp_path, 2))
    for path in tmp_path.rglob("*_seg.nii"):
        STORAGE[storage](path, np.asarray(nibabel.load(path).dataobj).copy())
    source = quiet(tmp_path)
    assert [(r.key, r.label, r.about) for r in source.records] == [(r.key, r.label, r.about) for r in expected.records]
    for mine, reference in zip(source.records, expected.records, strict=True):
        assert np.array_equal(mine.load().mask, reference.load().mask)


PED = {"enhancing": 1, "non-enhancing": 2, "cyst": 3, "edema": 4}


def tree_of(root, challenge, values=PED):
    """Two cases whose regions are the first, second and third of `values` where `scan` has 1, 2 and 4."""
    first, second, third, *_ = values.values()
    for i in range(2):
        seg, images = scan(i)
        name = f"BraTS-{challenge}-{i:05}-000"
        volume(root / name / f"{name}-t1c.nii.gz", images["t1ce"])
        volume(root / name / f"{name}-seg.nii.gz", np.choose(seg, [0, first, second, 0, third]).astype(np.uint8))
    return root


@pytest.mark.parametrize(
    ("challenge", "hint"),
    [
        ("PED", "give regions enhancing=1,non-enhancing=2,cyst=3,edema=4"),
        ("MEN", "give regions non-enhancing=1,edema=2,enhancing=3"),
        ("MET", "give regions non-enhancing=1,edema=2,enhancing=3,cavity=4"),
        ("MEN-RT", "give regions NAME=VALUE,… as its description has them"),
        ("GoAT", "give regions NAME=VALUE,… as its description has them"),
    ],
)
def test_other_challenges_are_no_glioma(tmp_path, challenge, hint):
    with pytest.raises(ShardError, match=f"segmentations of BraTS-{challenge} label other regions .*; {hint}"):
        quiet(tree_of(tmp_path, challenge))


@pytest.mark.parametrize("challenge", ["PED", "GLI", "GoAT"])
def test_regions_name_the_values_of_any_challenge(tmp_path, challenge):
    regions = [f"{name}={value}" for name, value in PED.items()]
    source = quiet(tree_of(tmp_path, challenge), regions=regions)
    assert source.classes == ("enhancing", "non-enhancing", "cyst")  # where glioma has necrotic, edema, enhancing
    assert source.made["regions"] == PED
    seg, _ = scan(0)
    record = source.records[1]
    assert record.about == {"slice": 3, "voxels": {"enhancing": 18, "non-enhancing": 9, "cyst": 0, "edema": 0}}
    assert np.array_equal(record.load().mask, (seg[:, :, 3] == 1).T)


def test_values_that_regions_do_not_name_are_refused(tmp_path):
    with pytest.raises(ShardError, match=r"-seg.nii.gz: holds 3, and regions are a=1, b=2; add the others to regions"):
        quiet(tree_of(tmp_path, "PED"), regions=["a=1", "b=2"])


@pytest.mark.parametrize("regions", [["a"], ["a=0"], ["a=256"], ["=1"], ["a=1", "a=2"], ["a=1.0"], ["a=-1"]])
def test_regions_that_are_no_pairs(tmp_path, regions):
    with pytest.raises(ShardError, match=r"brats: regions has .*; write each region once as NAME=VALUE"):
        quiet(tmp_path, regions=regions)


def test_two_regions_of_one_value(tmp_path):
    with pytest.raises(ShardError, match="two regions have one value in a=1, b=1; give each its own"):
        quiet(tmp_path, regions=["a=1", "b=1"])


def test_the_cavity_of_an_operation_is_not_enhancing(tmp_path):
    """From 2023 on, 4 is a resection cavity, also in a volume without 3."""
    root = tree_2023(tmp_path)
    tampered(root, "BraTS-GLI-00001-000-seg.nii.gz", scan(10, enhancing=4)[0])
    with pytest.raises(ShardError, match=r"BraTS-GLI-00001-000-seg.nii.gz: holds values other than 0, 1, 2 and 3"):
        quiet(root)


def tampered(root, name, values):
    [path] = root.rglob(name)
    return volume(path, values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modality": ["t3"]}, "modality 't3' is none of t1, t1ce"),
        ({"modality": ["t1", "t2"]}, "give one, or three different ones"),
        ({"modality": ["t1", "t1n", "t2"]}, "give one, or three different ones"),
        ({"label": "grade"}, "label 'grade' is none of region, tumor"),
        ({"roi": "box"}, "roi 'box' is none of None, region, tumor"),
        ({"min_voxels": 0}, "min_voxels 0 is below 1"),
        ({"percentiles": (99, 1)}, "percentiles .* are not LOW,HIGH"),
    ],
)
def test_bad_settings(tmp_path, settings, message):
    with pytest.raises(ShardError, match=message):
        quiet(tmp_path, **settings)


def test_nothing_to_pack(tmp_path):
    with pytest.raises(ShardError, match="no slice has 34 tumor voxels or more; lower min_voxels"):
        quiet(tree_2020(tmp_path), min_voxels=34)


def test_faults_of_the_tree(tmp_path):
    with pytest.raises(ShardError, match="holds no BraTS volumes, such as"):
        quiet(tmp_path)
    root = tree_2020(tmp_path, 2)
    odd = root / "BraTS20_Training_002"
    (odd / "BraTS20_Training_002_seg.nii").rename(odd / "W39_1998.09.19_Segm.nii")  # as in the official case 355
    with pytest.raises(
        ShardError, match=r"case BraTS20_Training_002 has no file …seg.nii or .nii.gz; add or rename it"
    ):
        quiet(root)
    (odd / "W39_1998.09.19_Segm.nii").rename(odd / "BraTS20_Training_002_seg.nii")
    (odd / "BraTS20_Training_002_seg.nii.gz").write_bytes(b"")
    with pytest.raises(ShardError, match=r"there is .* for the same volume; keep one"):
        quiet(root)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full(SHAPE, 5, np.uint8), "holds values other than 0, 1, 2 and one of 3 and 4"),
        (np.full(SHAPE, 0.5, np.float32), "holds values other than"),
        (np.full(SHAPE, np.nan, np.float32), "holds values other than"),
        (np.full(SHAPE, 1.02, np.float32), "holds values other than"),
        (np.full(SHAPE, -1, np.int16), "holds values other than"),
        (np.full(SHAPE, 2.0**40, np.float64), "holds values other than"),
        (np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint8) % 5, "one of 3 and 4"),
        (np.zeros((13, 11, 8), np.uint8), "differs from .*seg.nii in size or orientation"),
        (np.zeros((13, 11, 9, 2), np.uint8), "declares 13×11×9×2 voxels"),
        (np.zeros(SHAPE, np.complex64), "holds complex64 from byte 352, and only plain numbers"),
    ],
)
def test_segmentations_that_are_refused(tmp_path, values, message):
    root = tree_2020(tmp_path, 2)
    tampered(root, "BraTS20_Training_002_seg.nii", values)
    with pytest.raises(ShardError, match=message) as caught:
        quiet(root)
    assert "BraTS20_Training_002" in str(caught.value)


def test_images_that_are_refused(tmp_path):
    root = tree_2020(tmp_path, 2)
    for values, message in [
        (np.zeros(SHAPE, np.int16), "holds only 0"),
        (np.full(SHAPE, np.inf, np.float32), "not finite"),
    ]:
        tampered(root, "BraTS20_Training_002_t1ce.nii", values)
        with pytest.raises(ShardError, match=f"BraTS20_Training_002_t1ce.nii: holds .*{message.split()[-1]}"):
            quiet(root).records[-1].load()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_damaged_files_are_named(tmp_path, suffix):
    path = volume(tmp_path / f"a{suffix}", scan(1)[1]["t1"])
    original = path.read_bytes()
    damaged = [original[:size] for size in np.linspace(0, len(original) - 9, 25).astype(int)]
    if suffix == ".nii.gz":
        damaged += [bytes([*original[:i], original[i] ^ 4, *original[i + 1 :]]) for i in range(30, len(original), 97)]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(ShardError) as caught:
            list(Volume.open(path).slices())
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_what_a_header_declares_is_bounded_before_it_is_read(tmp_path):
    """A gzip of 2 GB of zeros behind a header that declares them, and behind one that puts the data after them."""
    header = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), OFFICIAL).header
    for change, message in [
        (lambda raw: raw["dim"].__setitem__(slice(0, 4), (3, 2048, 2048, 2048)), "declares 2048×2048×2048 voxels"),
        (lambda raw: raw["dim"].__setitem__(slice(0, 4), (3, 32767, 1, 1)), "three sides of at most 2048"),
        (lambda raw: raw.__setitem__("vox_offset", 1e9), "from byte 1000000000"),
        (lambda raw: raw.__setitem__("vox_offset", -1e9), "from byte|is not a NIfTI-1"),
        (lambda raw: raw.__setitem__("sizeof_hdr", 540), "goes on after its header's last voxel"),
        (lambda raw: raw.__setitem__("datatype", 999), "is not a NIfTI-1 file"),
        (lambda raw: raw.__setitem__("magic", b"ni1"), "only plain numbers are read"),
    ]:
        raw = header.structarr.copy()
        raw["magic"], raw["vox_offset"] = b"n+1", 352
        change(raw)
        path = tmp_path / "bomb_seg.nii.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(raw.tobytes())
            for _ in range(40):
                file.write(bytes(1 << 20))
        tracemalloc.start()
        with pytest.raises(ShardError, match=message):
            list(Volume.open(path).slices())
        assert tracemalloc.get_traced_memory()[1] < 5e6
        tracemalloc.stop()


def test_without_the_extra_the_error_says_what_to_install(tmp_path):
    tree_2020(tmp_path, 1)
    code = """
        import sys
        sys.modules["nibabel"] = None
        from egal_shards.sources import brats
        brats(sys.argv[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "NIfTI files need an extra: pip install 'egal-bench[nifti]'" in done.stderr.splitlines()[-1]
