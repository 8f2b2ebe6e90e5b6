"""The `brats` source: axial slices of BraTS glioma volumes, in the file names of 2020 and of 2023."""

import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np

from egal_shards.errors import ShardError
from egal_shards.intensity import Window, windowed
from egal_shards.nifti import Volume
from egal_shards.progress import progress_bar
from egal_shards.records import Raw, Record, Source
from egal_shards.threads import cores, ordered_map

REGIONS = {"necrotic": 1, "edema": 2, "enhancing": 4}  # glioma before treatment, as of 2020
REGIONS_2023 = {**REGIONS, "enhancing": 3}
OTHER_REGIONS = {  # label sets of challenges that are no glioma before treatment
    "PED": "enhancing=1,non-enhancing=2,cyst=3,edema=4",
    "MEN": "non-enhancing=1,edema=2,enhancing=3",
    "MET": "non-enhancing=1,edema=2,enhancing=3,cavity=4",
}
GLIOMA = ("GLI", "SSA")  # challenges of glioma before treatment, by the name of their files from 2023 on
PRESENCE = ("no tumor", "tumor")
MODALITIES = {  # the names in files of 2020, then of 2023
    **{"t1": "t1", "t1ce": "t1ce", "t2": "t2", "flair": "flair"},
    **{"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"},
}
BRAIN = 0.1  # share of a slice without tumor that must not be 0, so that it shows some brain
MAX_REGION = 255  # largest value of a region in a segmentation

_ROUNDING = 0.01  # how far a label may lie from an integer: scale factors store 4 as 4.00006
_FILE = re.compile(
    r"(?P<case>BraTS\w+?|(?P<patient>BraTS-(?P<challenge>[A-Za-z]+(-[A-Z]+)?)-\d+)-\d+)[_-](?P<kind>seg|"
    + "|".join(MODALITIES)
    + r")\.nii(\.gz)?",
    re.ASCII,
)

Label = Literal["region", "tumor"]
Roi = Literal["region", "tumor"]


@dataclass(frozen=True)
class Case:
    """The volumes of one scan of one patient."""

    name: str
    patient: str
    challenge: str  # "GLI", "PED", …; "" in the file names before 2023
    seg: Path
    images: tuple[Path, ...]  # one file per modality that is packed


@dataclass(frozen=True)
class PackedSlice:
    """One slice worth packing."""

    number: int
    label: str
    voxels: tuple[int, ...]  # number of voxels of each region


def brats(
    path: str | Path,
    *,
    modality: Annotated[Sequence[str], "t1 | t1ce | t2 | flair: one, or three as channels, comma-separated"] = (
        "t1ce",
    ),
    label: Annotated[Label, "region: the largest region in the slice; tumor: tumor or no tumor"] = "region",
    roi: Annotated[Roi | None, "pixels of the largest region, or of the whole tumor; none: as label says"] = None,
    min_voxels: Annotated[
        int, "fewest tumor voxels of a slice; slices with fewer tumor voxels, but some, are left out"
    ] = 100,
    percentiles: Annotated[
        tuple[float, float], "LOW,HIGH: shown as black and white, percentiles of the volume's voxels that are not 0"
    ] = (0.5, 99.5),
    regions: Annotated[
        Sequence[str] | None,
        "NAME=VALUE,…: the regions and their values in the segmentations; none: those of glioma before treatment, "
        "necrotic=1, edema=2, enhancing=4 (2020) or 3 (2023)",
    ] = None,
    progress: bool = True,
) -> Source:
    """Return the axial slices of the cases below `path`, with the expert's segmentation as ROI; groups are patients.

    Files are named BraTS20_Training_001_{t1,t1ce,t2,flair,seg}.nii or BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii,
    perhaps with .gz, in any folders. In names of the second form the last number is a visit of the same patient. The
    class of a slice is its largest region; of equally large regions, the first. Other challenges label other regions:
    their cases are refused unless `regions` names them.

    A slice labelled "no tumor" has no tumor voxel, and its first modality is not 0 in a tenth of its area. Three
    modalities become channels in the order given. Slices are turned by the affine to anterior up, with the patient's
    right on the left.

    Every segmentation is read once to choose the slices. Volumes are streamed, and each worker keeps the case of its
    current slice in memory. ShardError names the file.
    """
    kinds = _modalities(modality)
    for name, value, options in (("label", label, get_args(Label)), ("roi", roi, (None, *get_args(Roi)))):
        if value not in options:
            raise ShardError(f"brats: {name} {value!r} is none of {', '.join(map(str, options))}")
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ShardError(
            f"brats: percentiles {percentiles} are not LOW,HIGH with 0 ≤ LOW < HIGH ≤ 100; 0.5,99.5 is usual"
        )
    if min_voxels < 1:
        raise ShardError(f"brats: min_voxels {min_voxels} is below 1")
    values = _region_values(regions) if regions else None
    names = tuple(values or REGIONS)
    root = Path(path)
    cases = _cases(root, kinds)
    if not values:
        _check_glioma(cases)
    records: list[Record] = []
    with progress_bar("find slices", len(cases), progress) as advance:
        loader = _CaseLoader(percentiles, values)
        per_case = ordered_map(lambda case: _slices_of(case, values, label, min_voxels), cases, cores(), 2 * cores())
        for case, slices in zip(cases, per_case, strict=True):
            numbers = tuple(packed.number for packed in slices)
            for position, packed in enumerate(slices):
                load = _LoadSlice(loader, case, numbers, position, len(names), roi or label)
                records.append(_record(case, packed, names, load, root))
            advance(1)
    if not records:
        raise ShardError(f"{root}: no slice has {min_voxels} tumor voxels or more; lower min_voxels")
    settings = {
        "source": "brats",
        "modality": list(kinds),
        "label": label,
        "roi": roi or label,
        "min_voxels": min_voxels,
        "percentiles": list(percentiles),
    }
    if values:
        settings["regions"] = values
    labels = {record.label for record in records}
    classes = tuple(name for name in (names if label == "region" else PRESENCE) if name in labels)
    return Source("brats", classes, records, settings, channels=len(kinds))


def _modalities(names: Sequence[str]) -> tuple[str, ...]:
    """Return modalities by their names of 2020. ShardError unless they are one, or three different ones."""
    for name in names:
        if name not in MODALITIES:
            raise ShardError(f"brats: modality {name!r} is none of {', '.join(MODALITIES)}")
    kinds = tuple(MODALITIES[name] for name in names)
    if len(kinds) not in (1, 3) or len(set(kinds)) != len(kinds):
        raise ShardError(f"brats: modality is {', '.join(names)}; give one, or three different ones as channels")
    return kinds


def _region_values(pairs: Sequence[str]) -> dict[str, int]:
    """Return the values of the regions in "NAME=VALUE" pairs. ShardError unless names and values are distinct."""
    values: dict[str, int] = {}
    for pair in pairs:
        name, _, value = (part.strip() for part in pair.partition("="))
        if not name or not re.fullmatch("[0-9]{1,3}", value) or not 1 <= int(value) <= MAX_REGION or name in values:
            raise ShardError(
                f"brats: regions has {pair!r}; write each region once as NAME=VALUE with a value from 1 to {MAX_REGION}"
            )
        values[name] = int(value)
    if len(set(values.values())) != len(values):
        raise ShardError(f"brats: two regions have one value in {', '.join(pairs)}; give each its own")
    return values


def _check_glioma(cases: Sequence[Case]) -> None:
    """Raise ShardError for a case of a challenge whose labels are not those of glioma before treatment."""
    for case in cases:
        if case.challenge and case.challenge not in GLIOMA:
            known = OTHER_REGIONS.get(case.challenge)
            raise ShardError(
                f"{case.seg}: segmentations of BraTS-{case.challenge} label other regions than those of glioma; "
                + (f"give regions {known}" if known else "give regions NAME=VALUE,… as its description has them")
            )


def _cases(root: Path, kinds: tuple[str, ...]) -> list[Case]:
    """Return every case below root, by name. ShardError where a volume is missing or there twice."""
    files: dict[str, dict[str, Path]] = {}
    matches: dict[str, re.Match[str]] = {}
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            if not (match := _FILE.fullmatch(name)):
                continue
            case, kind, file = match["case"], MODALITIES.get(match["kind"], match["kind"]), Path(folder) / name
            matches[case] = match
            other = files.setdefault(case, {}).setdefault(kind, file)
            if other != file:
                raise ShardError(f"{file}: there is {other} for the same volume; keep one")
    if not files:
        raise ShardError(f"{root}: holds no BraTS volumes, such as BraTS20_Training_001_seg.nii; give their folder")
    for case, volumes in files.items():
        for kind in ("seg", *kinds):
            if kind not in volumes:
                home = next(iter(volumes.values())).parent
                raise ShardError(
                    f"{home}: case {case} has no file …{kind}.nii or .nii.gz; add or rename it, or move the case"
                )
    return [
        Case(
            name,
            matches[name]["patient"] or name,
            matches[name]["challenge"] or "",
            volumes["seg"],
            tuple(volumes[kind] for kind in kinds),
        )
        for name, volumes in sorted(files.items())
    ]


def _record(case: Case, packed: PackedSlice, names: Sequence[str], load: "_LoadSlice", root: Path) -> Record:
    return Record(
        key=f"{case.name}-z{packed.number:03d}",
        label=packed.label,
        group=case.patient,
        file=f"{case.images[0].relative_to(root).as_posix()} slice {packed.number}",
        load=load,
        about={"slice": packed.number, "voxels": dict(zip(names, packed.voxels, strict=True))},
    )


def _slices_of(case: Case, values: dict[str, int] | None, label: Label, min_voxels: int) -> list[PackedSlice]:
    """Return the slices of a case that are worth packing.

    Args:
        case: the case.
        values: the value of each region in the segmentation; None for glioma before treatment.
        label: as in `brats`.
        min_voxels: as in `brats`.
    """
    volumes = [Volume.open(file) for file in (case.seg, *case.images)]
    for volume in volumes[1:]:
        if volume.shape != volumes[0].shape or volume.axes != volumes[0].axes:
            raise ShardError(f"{volume.path}: differs from {case.seg.name} in size or orientation; they must be of one")
    names = list(values or REGIONS)
    per_slice = [
        np.bincount(regions.ravel(), minlength=len(names) + 1)[1:] for regions in _regions(case, volumes[0], values)
    ]
    slices = []
    for number, voxels in enumerate(per_slice):
        if voxels.sum() >= min_voxels:
            largest = names[int(np.argmax(voxels))]
            slices.append(PackedSlice(number, largest if label == "region" else "tumor", tuple(voxels.tolist())))
    if label == "tumor":
        for number, plane in enumerate(volumes[1].slices()):
            if not per_slice[number].any() and np.count_nonzero(plane) >= BRAIN * plane.size:
                slices.append(PackedSlice(number, "no tumor", (0,) * len(names)))
    return sorted(slices, key=lambda packed: packed.number)


def _regions(case: Case, volume: Volume, values: dict[str, int] | None) -> Iterator[np.ndarray]:
    """Yield u8 [H,W] of each slice of a segmentation: 0 outside, i + 1 in region i.

    Glioma before treatment is checked more closely: in files as of 2020 enhancing is 4, or 3 in a volume without 4; in
    files as of 2023 it is 3, and 4 is another region, the cavity of an operation.
    """
    position = np.zeros(MAX_REGION + 1, np.uint8)
    for i, value in enumerate((values or (REGIONS_2023 if case.challenge else REGIONS)).values()):
        position[value] = i + 1
    if not values and not case.challenge:
        position[REGIONS_2023["enhancing"]] = position[REGIONS["enhancing"]]
    seen: set[int] = set()
    for plane in volume.slices():
        with np.errstate(invalid="ignore"):  # NaN is refused below
            codes = np.rint(np.clip(plane, 0, MAX_REGION)).astype(np.uint8)
        seen |= set(np.unique(codes).tolist())
        is_whole = np.abs(codes - plane) <= _ROUNDING
        unknown = sorted(code for code in seen if code and not position[code])
        if not is_whole.all() or unknown or (not values and seen >= {3, 4}):
            raise ShardError(_unreadable(case, values, unknown))
        yield position[codes]


def _unreadable(case: Case, values: dict[str, int] | None, unknown: list[int]) -> str:
    """Return the message about a segmentation of other values."""
    if values:
        known = ", ".join(f"{name}={value}" for name, value in values.items())
        what = f"holds {', '.join(map(str, unknown))}" if unknown else "holds values that are no whole numbers"
        return f"{case.seg}: {what}, and regions are {known}; add the others to regions"
    expected = "1, 2 and 3" if case.challenge else "1, 2 and one of 3 and 4"
    return (
        f"{case.seg}: holds values other than 0, {expected}, and is no segmentation of a glioma before treatment; "
        "replace it, or name its regions: regions NAME=VALUE,…"
    )


@dataclass
class _Loaded:
    """The slices of one case that are packed."""

    images: np.ndarray  # f32 [N,H,W,C], 0…1
    regions: np.ndarray  # u8 [N,H,W]: 0 outside, i + 1 in region i
    windows: list[Window]  # one window per channel


class _CaseLoader(threading.local):
    """Loads cases and keeps the last one of each worker, since the slices of a case come one after another."""

    def __init__(self, percentiles: tuple[float, float], values: dict[str, int] | None) -> None:
        self._percentiles, self._values, self._name = percentiles, values, ""

    def get(self, case: Case, numbers: tuple[int, ...]) -> _Loaded:
        if case.name != self._name:
            self._name, self._loaded = "", None  # frees the memory of one case before the next is loaded
            self._name, self._loaded = case.name, _load(case, numbers, self._percentiles, self._values)
        assert self._loaded
        return self._loaded


@dataclass(frozen=True, slots=True)
class _LoadSlice:
    """Loads one slice of a case."""

    loader: _CaseLoader
    case: Case
    numbers: tuple[int, ...]  # numbers of all slices of the case that are packed
    position: int  # place of this slice in `numbers`
    region_count: int
    roi: Roi

    def __call__(self) -> Raw:
        loaded = self.loader.get(self.case, self.numbers)
        image, regions = loaded.images[self.position], loaded.regions[self.position]
        areas = np.bincount(regions.ravel(), minlength=self.region_count + 1)[1:]
        mask = regions > 0 if self.roi == "tumor" else regions == int(np.argmax(areas)) + 1
        about = {"windows": [list(window) for window in loaded.windows]}
        return Raw(image if image.shape[2] == 3 else image[..., 0], mask if areas.any() else None, about=about)


def _load(
    case: Case, numbers: tuple[int, ...], percentiles: tuple[float, float], values: dict[str, int] | None
) -> _Loaded:
    packed = set(numbers)
    planes = _regions(case, Volume.open(case.seg), values)
    regions = np.stack([plane for number, plane in enumerate(planes) if number in packed])
    images = np.empty((*regions.shape, len(case.images)), np.float32)
    windows = []
    for channel, file in enumerate(case.images):
        windows.append(_show_modality(Volume.open(file), packed, percentiles, images[..., channel]))
    return _Loaded(images, regions, windows)


def _show_modality(volume: Volume, packed: set[int], percentiles: tuple[float, float], out: np.ndarray) -> Window:
    """Write the packed slices to `out`, f32 [N,H,W], 0…1, and return their window.

    The window is that of the whole volume; voxels that are 0 stay black.
    """
    kept, values = [], []
    for number, plane in enumerate(volume.slices()):
        values.append(plane[plane != 0])
        if number in packed:
            kept.append(plane)
    inside = np.concatenate(values)
    del values
    if not inside.size or not np.isfinite(inside).all():
        raise ShardError(
            f"{volume.path}: holds {'values that are not finite' if inside.size else 'only 0'}; replace it"
        )
    low, high = (float(end) for end in np.percentile(inside, percentiles))
    window = (low, high) if low < high else (low - 1, low)  # all values are equal: white
    for i, plane in enumerate(kept):
        out[i] = np.where(plane == 0, np.float32(0), windowed(plane, window))
    return window
