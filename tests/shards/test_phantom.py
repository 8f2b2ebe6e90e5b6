"""The phantom: every sample is reproducible, and every setting has its effect, measured on the drawn pixels."""

import pickle
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from egal_shards.errors import ShardError
from egal_shards.sources.phantom import CLASSES, SHARES, Dials, plan
from egal_shards.sources.phantom import phantom as make_phantom
from egal_shards.sources.phantom_anatomy import ANATOMIES
from egal_shards.sources.phantom_lesion import GLYPHS, paint, place

KINDS = sorted(CLASSES)


def dials(kind="brain", **changes):
    defaults = {"samples": 300, "size": 64, "shortcut": 0.0, "roi_area": 0.03, "roi_noise": 0.0, "test": 0.3, "seed": 0}
    return Dials(kind, **(defaults | changes))


def draw(**changes):
    return [case.draw() for case in plan(dials(**changes))]


def dice(a, b):
    return 2 * np.sum(a & b) / (a.sum() + b.sum())


def same(a, b):
    return np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask)


def read_glyph(marker):
    """Return the class whose letter is in the picture, read from its strokes."""
    rows, columns = np.nonzero(marker)
    letter = marker[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    middle = letter.shape[0] // 2
    if not letter[middle, middle]:
        return 1  # O: hollow
    return 0 if letter[0].all() else 2  # I has a serif, X has not


def information(labels, glyphs):
    """Return the mutual information in nats, and its 99.9 % bound under independence (G-test, 4 degrees of freedom)."""
    counts = np.zeros((3, 3))
    np.add.at(counts, (labels, glyphs), 1)
    p = counts / counts.sum()
    expected = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / expected[seen]))), 18.47 / (2 * counts.sum())


# ---- records


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [32, 47, 64, 512])
def test_every_sample_is_grey_with_one_lesion_and_its_roi(kind, size):
    source = make_phantom(kind, samples=60, size=size)
    for record in source.records[:: 1 if size < 100 else 12]:
        raw = record.load()
        assert raw.image.dtype == np.uint8
        assert raw.image.shape == (size, size)
        assert raw.mask.dtype == bool
        assert raw.mask.shape == (size, size)
        assert raw.boxes == ()
        assert ndimage.label(raw.mask, np.ones((3, 3)))[1] == 1
        assert raw.image.std() > 20  # a picture, not a flat field
        assert record.label in source.classes


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_manifest_name_samples_and_settings(kind):
    chosen = {"samples": 61, "size": 33, "shortcut": 0.25, "roi_area": 0.04, "roi_noise": 0.5, "test": 0.4, "seed": 7}
    source = make_phantom(kind, **chosen)
    assert source.name == f"phantom-{kind}"
    assert source.classes == CLASSES[kind]
    assert source.made == {"source": "phantom", "kind": kind, **chosen}
    assert [record.key for record in source.records] == [f"{kind}-{i:06d}" for i in range(61)]
    assert [record.file for record in source.records] == [f"phantom/{kind}/{i:06d}" for i in range(61)]


def test_defaults_are_the_brain_at_64_pixels():
    source = make_phantom()
    assert len(source.records) == 2000
    assert source.made["kind"] == "brain"
    assert source.records[1999].load().image.shape == (64, 64)


# ---- determinism


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_order_or_thread(kind):
    first = make_phantom(kind, samples=80, roi_noise=0.5, shortcut=0.5, seed=3)
    again = make_phantom(kind, samples=80, roi_noise=0.5, shortcut=0.5, seed=3)
    forward = [record.load() for record in first.records]
    backward = [record.load() for record in reversed(again.records)][::-1]
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda record: record.load(), again.records))
    travelled = pickle.loads(pickle.dumps(first.records[17].load))()  # noqa: S301 - our own bytes
    assert all(map(same, forward, backward))
    assert all(map(same, forward, threaded))
    assert same(forward[17], travelled)


def test_samples_and_seeds_differ():
    images = {picture.image.tobytes() for seed in (0, 1) for picture in draw(samples=100, seed=seed)}
    assert len(images) == 200


def test_slices_of_a_patient_share_their_anatomy():
    cases = plan(dials(samples=200))
    images = [case.draw().image[16:48, 16:48].ravel().astype(float) for case in cases]
    correlation = np.corrcoef(images)
    patient = np.array([case.patient for case in cases])
    related = patient[:, None] == patient[None, :]
    np.fill_diagonal(related, False)
    own, other = correlation[related].mean(), correlation[patient[:, None] != patient[None, :]].mean()
    assert own > other + 0.2


def test_each_setting_changes_only_what_it_names():
    for plain, dialled in zip(draw(samples=60), draw(samples=60, roi_noise=0.8), strict=True):
        assert np.array_equal(plain.image, dialled.image)
        assert np.array_equal(plain.lesion, dialled.lesion)
    changed = 0
    for plain, dialled in zip(draw(samples=60), draw(samples=60, shortcut=1.0), strict=True):
        letters = plain.marker | dialled.marker
        assert np.array_equal(plain.image[~letters], dialled.image[~letters])
        assert np.array_equal(plain.roi, dialled.roi)
        changed += not np.array_equal(plain.marker, dialled.marker)
    assert changed > 10


# ---- patients and splits


@settings(deadline=None, max_examples=40)
@given(
    samples=st.integers(60, 3000), test=st.floats(0.05, 0.95), seed=st.integers(0, 2**40), kind=st.sampled_from(KINDS)
)
def test_splits_keep_patients_classes_and_shares(samples, test, seed, kind):
    cases = plan(dials(kind=kind, samples=samples, test=test, seed=seed))
    assert [case.index for case in cases] == list(range(samples))
    slices, sides, labels = defaultdict(list), defaultdict(set), defaultdict(set)
    for case in cases:
        slices[case.patient].append(case.index)
        sides[case.patient].add(case.split)
        labels[case.patient].add(case.label)
    assert all(2 <= len(s) <= 4 and s == list(range(s[0], s[0] + len(s))) for s in slices.values())
    assert all(len(s) == 1 for s in sides.values())
    assert all(len(s) == 1 for s in labels.values())
    for label, share in enumerate(SHARES):
        members = [case.split for case in cases if case.label == label]
        assert set(members) == {"pool", "test"}
        assert abs(len(members) - share * samples) <= 4
        assert abs(members.count("test") - test * len(members)) <= 4


def test_records_carry_the_planned_label_group_and_split():
    source = make_phantom("chest", samples=90, seed=5)
    cases = plan(dials(kind="chest", samples=90, seed=5))
    assert [record.label for record in source.records] == [CLASSES["chest"][case.label] for case in cases]
    assert [record.group for record in source.records] == [f"chest-patient-{case.patient:06d}" for case in cases]
    assert [record.split for record in source.records] == [case.split for case in cases]
    for record, case in zip(source.records, cases, strict=True):
        assert np.array_equal(record.load().mask, case.draw().roi)


# ---- shortcut


def test_marker_predicts_the_class_only_in_the_pool():
    told = []
    for shortcut in (0.0, 0.3, 0.7, 1.0):
        cases = plan(dials(samples=800, size=32, test=0.5, shortcut=shortcut))
        glyphs = np.array([read_glyph(case.draw().marker) for case in cases])
        labels = np.array([case.label for case in cases])
        pool = np.array([case.split == "pool" for case in cases])
        held_out, bound = information(labels[~pool], glyphs[~pool])
        assert held_out < bound
        agreement, n = np.mean(labels[pool] == glyphs[pool]), pool.sum()
        expected = shortcut + (1 - shortcut) / 3
        assert abs(agreement - expected) <= 3.3 * np.sqrt(expected * (1 - expected) / n)
        told.append(information(labels[pool], glyphs[pool]))
    values = [value for value, _ in told]
    assert values[0] < told[0][1]  # no information at 0
    assert values[1] > 2 * told[1][1]
    assert values == sorted(values)
    shares = np.array(SHARES)
    assert values[-1] == pytest.approx(-np.sum(shares * np.log(shares)), abs=0.03)  # the full entropy at 1


@pytest.mark.parametrize("shortcut", [0.0, 1.0])
def test_test_set_markers_are_uniform(shortcut):
    cases = [case for case in plan(dials(samples=3000, test=0.5, shortcut=shortcut)) if case.split == "test"]
    counts = np.bincount([case.glyph for case in cases], minlength=3)
    expected = len(cases) / 3
    assert np.sum((counts - expected) ** 2 / expected) < 13.82  # chi-squared, 2 degrees of freedom, 99.9 %


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [32, 64, 129])
def test_marker_is_bright_in_a_corner_outside_every_roi(kind, size):
    widest = {"brain": 0.25, "chest": 0.08}[kind]
    for case in plan(dials(kind=kind, size=size, samples=120, roi_area=widest, roi_noise=1.0)):
        picture = case.draw()
        assert read_glyph(picture.marker) == case.glyph
        assert picture.image[picture.marker].min() >= 210
        assert not np.any(picture.marker & (picture.roi | picture.lesion))
        rows, columns = np.nonzero(picture.marker)
        assert rows.max() < 0.2 * size
        assert columns.max() < 0.2 * size or columns.min() >= 0.8 * size


def test_letters_survive_flips():
    assert all(np.array_equal(letter, letter[::-1]) and np.array_equal(letter, letter[:, ::-1]) for letter in GLYPHS)


# ---- ROI area and noise


@pytest.mark.parametrize(
    ("kind", "area"), [("brain", 0.004), ("brain", 0.03), ("brain", 0.25), ("chest", 0.01), ("chest", 0.08)]
)
def test_mean_lesion_area_equals_roi_area(kind, area):
    areas = np.array([picture.lesion.mean() for picture in draw(kind=kind, roi_area=area)])
    assert areas.mean() == pytest.approx(area, rel=0.05)
    assert areas.std() > 0.2 * area
    assert areas.min() > 0.5 * area
    assert areas.max() < 1.7 * area


@pytest.mark.parametrize("kind", KINDS)
def test_roi_departs_from_the_lesion_as_noise_rises(kind):
    overlap = []
    for noise in (0.0, 0.25, 0.5, 0.75, 1.0):
        pictures = draw(kind=kind, samples=200, roi_noise=noise)
        assert all(picture.roi.any() for picture in pictures)
        overlap.append(np.array([dice(picture.roi, picture.lesion) for picture in pictures]))
    means = [values.mean() for values in overlap]
    assert (overlap[0] == 1).all()
    assert (np.diff(means) < -0.08).all()
    assert means[-1] < 0.45


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("area", [0.008, 0.03, 0.08])
def test_lesion_has_its_area_and_stays_in_the_organ(kind, area):
    for seed in range(90):
        patient, scan = np.random.default_rng((seed, 0)), np.random.default_rng((seed, 1))
        anatomy = ANATOMIES[kind](patient, scan, 48)
        lesion = place(patient, scan, seed % 3, area, anatomy)
        assert lesion.mask.sum() == round(area * 48 * 48)
        assert not np.any(lesion.mask & ~anatomy.organ)
        assert not np.any(anatomy.organ & ~anatomy.body)
        healthy = anatomy.image
        assert np.array_equal(paint(scan, seed % 3, lesion, anatomy)[~anatomy.organ], healthy[~anatomy.organ])


@pytest.mark.parametrize("kind", KINDS)
def test_classes_differ_inside_the_lesion(kind):
    """Rim minus core brightness finds the ring; granularity finds the third class; mean brightness finds neither."""
    rim_over_core, grain = defaultdict(list), defaultdict(list)
    for case in plan(dials(kind=kind, samples=150, size=96)):
        picture = case.draw()
        depth = ndimage.distance_transform_edt(picture.lesion)
        image = picture.image.astype(float)
        outer, core = depth / depth.max() < 0.5, depth / depth.max() > 0.75
        rim_over_core[case.label].append(image[outer & picture.lesion].mean() - image[core].mean())
        inner = depth > 2
        grain[case.label].append((image - ndimage.gaussian_filter(image, 4))[inner].std())
    assert np.median(rim_over_core[1]) > max(np.median(rim_over_core[0]), np.median(rim_over_core[2])) + 15
    assert np.median(grain[2]) > 1.3 * np.median(grain[0])


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kind": "brian"}, "did you mean 'brain'"),
        ({"kind": "Chest"}, "did you mean 'chest'"),
        ({"kind": ""}, "unknown kind ''; choose brain or chest"),
        ({"samples": 59}, "samples=59 must be a whole number from 60"),
        ({"samples": 100.0}, "samples=100.0 must be a whole number"),
        ({"samples": True}, "samples=True"),
        ({"size": 31}, "size=31 must be a whole number from 32"),
        ({"size": 5000}, "size=5000"),
        ({"seed": -1}, "seed=-1"),
        ({"shortcut": 1.01}, "shortcut=1.01 must be a number from 0 to 1"),
        ({"shortcut": -0.1}, "shortcut=-0.1"),
        ({"shortcut": float("nan")}, "shortcut=nan"),
        ({"shortcut": "high"}, "shortcut='high'"),
        ({"roi_noise": 2}, "roi_noise=2"),
        ({"test": 0.0}, "test=0.0 must be a number from 0.05 to 0.95"),
        ({"test": 1.0}, "test=1.0"),
        ({"roi_area": 0.0}, "roi_area=0.0"),
        ({"roi_area": 0.3}, "roi_area=0.3 must be a number from"),
        ({"kind": "chest", "roi_area": 0.1}, "to 0.08"),
        ({"roi_area": 0.004, "size": 32}, "from 0.00781 to 0.25"),
    ],
)
def test_a_bad_setting_is_named_on_one_line(arguments, says):
    with pytest.raises(ShardError) as caught:
        make_phantom(**arguments)
    assert says in str(caught.value)
    assert str(caught.value).startswith("phantom: ")
    assert "\n" not in str(caught.value)


def test_drawing_imports_no_torch():
    program = (
        "import sys; from egal_shards.sources.phantom import phantom; "
        "phantom(samples=60).records[0].load(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
