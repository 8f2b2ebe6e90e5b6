"""The built-in phantom: drawn images whose lesion decides the class, with a marker that can mislead a network."""

from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np

from egal_shards.errors import ShardError, did_you_mean
from egal_shards.records import Raw, Record, Source
from egal_shards.sources.phantom_anatomy import ANATOMIES, Rng, field
from egal_shards.sources.phantom_lesion import expert, marker, paint, place

CLASSES = {"brain": ("smooth", "ring", "lobulated"), "chest": ("nodule", "cavity", "infiltrate")}
SHARES = (0.5, 0.3, 0.2)  # share of the samples of each class
LARGEST_ROI = {
    "brain": 0.25,
    "chest": 0.08,
}  # upper limit of roi_area: even the largest single lesion fits into the brain or the lung
AREA_SPREAD = (0.6, 1.6)  # areas of the smallest and the largest lesion, divided by roi_area
FEWEST_SAMPLES, FEWEST_PIXELS, SIZES = 60, 8, (32, 1024)  # samples, pixels of an ROI, pixels per side
_PLAN, _PATIENT, _SCAN, _EXPERT = range(4)  # random streams of one seed


def phantom(
    kind: str = "brain",
    *,
    samples: Annotated[int, "number of images"] = 2000,
    size: int = 64,
    shortcut: Annotated[float, "how strongly a marker outside the ROI predicts the class, 0 to 1"] = 0.0,
    roi_area: Annotated[float, "mean share of the image in the ROI"] = 0.03,
    roi_noise: Annotated[float, "error of the expert's ROI, 0 to 1"] = 0.0,
    test: float = 0.3,
    seed: int = 0,
) -> Source:
    """Return a source of grey images uint8 [size,size], each with one lesion and an ROI bool [size,size].

    Outline and texture of the lesion decide the class; 50, 30 and 20 % of the samples have class 0, 1 and 2. Two to
    four neighbouring samples are slices of one patient, who has one diagnosis and is the group. All slices of a patient
    are on one side of the split. A sample depends only on the arguments and its index, and is drawn when its record is
    loaded. With one seed, images do not depend on roi_noise, and depend on shortcut only in the letter.

    Raises ShardError for an argument that is out of range.

    Args:
        kind: "brain" (an axial slice) or "chest" (a frontal radiograph).
        samples: Number of images, 60 to 10⁶.
        size: Pixels per side, 32 to 1024.
        shortcut: Probability, 0 to 1, that the letter in a corner of a pool sample is the letter of its class.
            Otherwise, and always in the test set, the letter is drawn uniformly.
        roi_area: Mean area of a lesion as a fraction of the image. Lesions have 0.6 to 1.6 times this area.
        roi_noise: Error of the expert, 0 to 1. At 0 the ROI is the lesion; at 1 it is displaced, resized and redrawn,
            with a mean Dice of 0.32.
        test: Share of the samples in the test set, 0.05 to 0.95.
        seed: Seed of all random draws.
    """
    dials = Dials(kind, samples, size, shortcut, roi_area, roi_noise, test, seed)
    records = [
        Record(
            key=f"{kind}-{case.index:06d}",
            label=CLASSES[kind][case.label],
            group=f"{kind}-patient-{case.patient:06d}",
            file=f"phantom/{kind}/{case.index:06d}",
            load=case.load,
            split=case.split,
        )
        for case in plan(dials)
    ]
    return Source(f"phantom-{kind}", CLASSES[kind], records, {"source": "phantom", **asdict(dials)})


@dataclass(frozen=True)
class Dials:
    """The checked arguments of `phantom`."""

    kind: str
    samples: int
    size: int
    shortcut: float
    roi_area: float
    roi_noise: float
    test: float
    seed: int

    def __post_init__(self) -> None:
        if self.kind not in CLASSES:
            suggestion = did_you_mean(str(self.kind), CLASSES)
            raise ShardError(f"phantom: unknown kind {self.kind!r}; {suggestion}choose {' or '.join(CLASSES)}")
        for name, fewest, most in (("samples", FEWEST_SAMPLES, 10**6), ("size", *SIZES), ("seed", 0, 2**63 - 1)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or not fewest <= number <= most:
                raise ShardError(f"phantom: {name}={number!r} must be a whole number from {fewest} to {most}")
        ranges: dict[str, tuple[float, float]] = {
            "shortcut": (0, 1),
            "roi_noise": (0, 1),
            "test": (0.05, 0.95),
            "roi_area": (round(FEWEST_PIXELS / self.size**2, 5), LARGEST_ROI[self.kind]),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ShardError(f"phantom: {name}={value!r} must be a number from {low:g} to {high:g}")


@dataclass(frozen=True)
class Picture:
    """A drawn image with the masks of its lesion, marker and ROI."""

    image: np.ndarray  # u8 [S,S]
    lesion: np.ndarray  # bool [S,S]
    marker: np.ndarray  # bool [S,S], the letter in a corner
    roi: np.ndarray  # bool [S,S], drawn by the simulated expert


@dataclass(frozen=True)
class Case:
    """A planned sample: everything needed to draw it."""

    dials: Dials
    index: int
    patient: int
    label: int
    glyph: int  # index of the class whose letter is drawn
    split: str  # "pool" or "test"

    def load(self) -> Raw:
        """Return the image and its ROI."""
        picture = self.draw()
        return Raw(picture.image, picture.roi)

    def draw(self) -> Picture:
        """Return the drawn image with its masks."""
        size = self.dials.size
        patient, scan = self._rng(_PATIENT, self.patient), self._rng(_SCAN, self.index)
        anatomy = ANATOMIES[self.dials.kind](patient, scan, size)
        low, high = np.log(AREA_SPREAD)
        mean = (AREA_SPREAD[1] - AREA_SPREAD[0]) / (high - low)  # mean of exp(uniform(low, high))
        area = self.dials.roi_area * np.exp(scan.uniform(low, high)) / mean
        lesion = place(patient, scan, self.label, area, anatomy)
        image = paint(scan, self.label, lesion, anatomy)
        image = image * (1 + 0.10 * field(scan, size, 2))  # bias field of MRI, or uneven exposure
        image += scan.uniform(0.02, 0.05) * scan.standard_normal((size, size), dtype=np.float32)
        letter = marker(scan, self.glyph, size)
        image[letter] = scan.uniform(0.85, 1.0)
        roi = expert(self._rng(_EXPERT, self.index), self.dials.roi_noise, lesion, anatomy)
        return Picture(np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8), lesion.mask, letter, roi)

    def _rng(self, stream: int, number: int) -> Rng:
        return np.random.default_rng(np.random.SeedSequence(self.dials.seed, spawn_key=(stream, number)))


def plan(dials: Dials) -> list[Case]:
    """Return the cases in order, each with its patient, class, letter and side of the split."""
    rng = np.random.default_rng(np.random.SeedSequence(dials.seed, spawn_key=(_PLAN,)))
    slices = _slices(rng, dials.samples)
    label, test = _assign(rng, slices, dials.test)
    patient = np.repeat(np.arange(len(slices)), slices)
    follows = rng.random(dials.samples) < np.where(test[patient], 0.0, dials.shortcut)
    glyph = np.where(follows, label[patient], rng.integers(len(SHARES), size=dials.samples))
    rows = zip(patient.tolist(), label[patient].tolist(), glyph.tolist(), test[patient].tolist(), strict=True)
    return [
        Case(dials, index, owner, kind, letter, "test" if held_out else "pool")
        for index, (owner, kind, letter, held_out) in enumerate(rows)
    ]


def _slices(rng: Rng, samples: int) -> np.ndarray:
    """Return the number of slices of each patient, int64 [patients]: 2 to 4, with the sum `samples`."""
    counts: list[int] = []
    remaining = samples
    while remaining:
        count = min(int(rng.integers(2, 5)), remaining)
        if remaining - count == 1:  # the last patient would have a single slice
            count += 1 if count < 4 else -1
        counts.append(count)
        remaining -= count
    return np.array(counts)


def _assign(rng: Rng, slices: np.ndarray, test: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (class, whether in the test set) of each patient.

    In every class the shares are met to within one patient.
    """
    order = rng.permutation(len(slices))
    middle = np.cumsum(slices[order]) - slices[order] / 2  # middle of each patient, in samples, in shuffled order
    label, held_out = np.empty(len(slices), dtype=np.int64), np.zeros(len(slices), dtype=bool)
    label[order] = np.searchsorted(np.cumsum(SHARES)[:-1] * slices.sum(), middle)
    for kind in range(len(SHARES)):
        members = order[label[order] == kind]
        done = np.cumsum(slices[members]) - slices[members] / 2
        held_out[members] = done < test * slices[members].sum()
        held_out[members[[0, -1]]] = True, False  # every class is on both sides
    return label, held_out
