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

REGIONS = {"necrotic": 1, "edema": 2, "enhancing": 4}  # values in a segmentation; from 2023 on enhancing is 3
PRESENCE = ("no tumor", "tumor")
MODALITIES = {  # as of 2020 and as of 2023
    **{"t1": "t1", "t1ce": "t1ce", "t2": "t2", "flair": "flair"},
    **{"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"},
}
BRAIN = 0.1  # share of a slice without tumour that must not be 0, so that it shows some brain

_FILE = re.compile(
    r"(?P<case>BraTS\w+?|(?P<patient>BraTS-[A-Z]+-\d+)-\d+)[_-](?P<kind>seg|" + "|".join(MODALITIES) + r")\.nii(\.gz)?",
    re.ASCII,
)

Label = Literal["region", "tumor"]
Roi = Literal["region", "tumor"]


@dataclass(frozen=True)
class Case:
    """The volumes of one scan of one patient."""

    name: str
    patient: str
    seg: Path
    images: tuple[Path, ...]  # of the modalities asked for


@dataclass(frozen=True)
class Found:
    """One slice worth packing."""

    number: int
    label: str
    voxels: tuple[int, ...]  # of each region


def brats(
    path: str | Path,
    *,
    modality: Annotated[Sequence[str], "t1 | t1ce | t2 | flair: one, or three as channels, comma-separated"] = (
        "t1ce",
    ),
    label: Annotated[Label, "region: necrotic, edema or enhancing, the largest in the slice; tumor: or not"] = "region",
    roi: Annotated[Roi | None, "pixels of the largest region, or of the whole tumor; none: as label says"] = None,
    min_voxels: Annotated[int, "fewest tumor voxels of a slice; slices with fewer, but some, are left out"] = 100,
    percentiles: Annotated[
        tuple[float, float], "LOW,HIGH: shown as black and white, percentiles of the volume's voxels that are not 0"
    ] = (0.5, 99.5),
    progress: bool = True,
) -> Source:
    """The axial slices of the cases below `path`, with the expert's segmentation as ROI; one group a patient.

    Files are named BraTS20_Training_001_{t1,t1ce,t2,flair,seg}.nii or BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii,
    perhaps .gz, in any folders; of the second form the last number is a visit, and patients are the groups. Regions
    are necrotic (value 1), edema (2) and enhancing (4, or 3 in a volume without 4); of equally large ones the first.
    Slices labelled "no tumor" have no tumour voxel at all, and brain in a tenth of their area. Three modalities are
    channels in the order given. Slices are turned by the affine to anterior up, the patient's right on the left.

    Every segmentation is read once to find the slices; volumes are streamed, and each worker keeps the case that it is
    at. ShardError names the file.
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
    root = Path(path)
    cases = _cases(root, kinds)
    shown = roi or label
    records: list[Record] = []
    with progress_bar("find slices", len(cases), progress) as advance:
        kept = _Kept(percentiles)
        for case, found in zip(
            cases, ordered_map(lambda case: _search(case, label, min_voxels), cases, cores(), 2 * cores()), strict=True
        ):
            numbers = tuple(one.number for one in found)
            records += [_record(case, one, _Slice(kept, case, numbers, i, shown), root) for i, one in enumerate(found)]
            advance(1)
    if not records:
        raise ShardError(f"{root}: no slice has {min_voxels} tumor voxels or more; lower min_voxels")
    made = {
        "source": "brats",
        "modality": list(kinds),
        "label": label,
        "roi": shown,
        "min_voxels": min_voxels,
        "percentiles": list(percentiles),
    }
    seen = {record.label for record in records}
    classes = tuple(name for name in (REGIONS if label == "region" else PRESENCE) if name in seen)
    return Source("brats", classes, records, made, channels=len(kinds))


def _modalities(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in MODALITIES:
            raise ShardError(f"brats: modality {name!r} is none of {', '.join(MODALITIES)}")
    kinds = tuple(MODALITIES[name] for name in names)
    if len(kinds) not in (1, 3) or len(set(kinds)) != len(kinds):
        raise ShardError(f"brats: modality is {', '.join(names)}; give one, or three different ones as channels")
    return kinds


def _cases(root: Path, kinds: tuple[str, ...]) -> list[Case]:
    """Every case below root, by name. ShardError where one lacks a volume that is needed, or has it twice."""
    files: dict[str, dict[str, Path]] = {}
    patients: dict[str, str] = {}
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            if not (match := _FILE.fullmatch(name)):
                continue
            case, kind, file = match["case"], MODALITIES.get(match["kind"], match["kind"]), Path(folder) / name
            patients[case] = match["patient"] or case
            other = files.setdefault(case, {}).setdefault(kind, file)
            if other != file:
                raise ShardError(f"{file}: there is {other} for the same volume; keep one")
    if not files:
        raise ShardError(f"{root}: holds no BraTS volumes, such as BraTS20_Training_001_seg.nii; give their folder")
    for case, has in files.items():
        for kind in ("seg", *kinds):
            if kind not in has:
                home = next(iter(has.values())).parent
                raise ShardError(
                    f"{home}: case {case} has no file …{kind}.nii or .nii.gz; add or rename it, or move the case"
                )
    return [Case(name, patients[name], has["seg"], tuple(has[k] for k in kinds)) for name, has in sorted(files.items())]


def _record(case: Case, found: Found, load: "_Slice", root: Path) -> Record:
    return Record(
        key=f"{case.name}-z{found.number:03d}",
        label=found.label,
        group=case.patient,
        file=f"{case.images[0].relative_to(root).as_posix()} slice {found.number}",
        load=load,
        about={"slice": found.number, "voxels": dict(zip(REGIONS, found.voxels, strict=True))},
    )


def _search(case: Case, label: Label, min_voxels: int) -> list[Found]:
    """The slices of a case that are worth packing."""
    volumes = [Volume.open(file) for file in (case.seg, *case.images)]
    for volume in volumes[1:]:
        if volume.shape != volumes[0].shape or volume.axes != volumes[0].axes:
            raise ShardError(f"{volume.path}: differs from {case.seg.name} in size or orientation; they must be of one")
    per_slice = [[int(np.count_nonzero(codes == value)) for value in REGIONS.values()] for codes in _codes(volumes[0])]
    found = []
    for number, voxels in enumerate(per_slice):
        if sum(voxels) >= min_voxels:
            largest = list(REGIONS)[int(np.argmax(voxels))]
            found.append(Found(number, largest if label == "region" else "tumor", tuple(voxels)))
    if label == "tumor":
        empty = {number for number, voxels in enumerate(per_slice) if not sum(voxels)}
        for number, plane in enumerate(volumes[1].slices()):
            if number in empty and np.count_nonzero(plane) >= BRAIN * plane.size:
                found.append(Found(number, "no tumor", (0,) * len(REGIONS)))
    return sorted(found, key=lambda one: one.number)


def _codes(volume: Volume) -> Iterator[np.ndarray]:
    """u8 [H,W] of each slice of a segmentation, with the values of REGIONS."""
    seen: set[int] = set()
    for plane in volume.slices():
        with np.errstate(invalid="ignore"):  # NaN is refused below
            codes = plane.astype(np.uint8)
        seen |= set(np.unique(codes).tolist())
        if not np.array_equal(codes, plane) or not seen <= {0, 1, 2, 3, 4} or seen >= {3, 4}:
            raise ShardError(
                f"{volume.path}: holds values other than 0, 1, 2 and one of 3 and 4, and is no segmentation of a "
                "glioma before treatment; replace it"
            )
        codes[codes == 3] = 4
        yield codes


@dataclass
class _Loaded:
    """The slices of one case that are packed."""

    images: np.ndarray  # f32 [N,H,W,C], 0…1
    codes: np.ndarray  # u8 [N,H,W]
    windows: list[Window]  # of each channel


class _Kept(threading.local):
    """The case that a worker used last: its slices come to one worker, one after another."""

    def __init__(self, percentiles: tuple[float, float]) -> None:
        self._percentiles, self._name = percentiles, ""

    def get(self, case: Case, numbers: tuple[int, ...]) -> _Loaded:
        if case.name != self._name:
            self._name, self._loaded = "", None  # before the next one is there too
            self._name, self._loaded = case.name, _load(case, numbers, self._percentiles)
        assert self._loaded
        return self._loaded


@dataclass(frozen=True, slots=True)
class _Slice:
    kept: _Kept
    case: Case
    numbers: tuple[int, ...]  # of all slices of the case that are packed
    position: int  # of this one among them
    roi: Roi

    def __call__(self) -> Raw:
        loaded = self.kept.get(self.case, self.numbers)
        image, codes = loaded.images[self.position], loaded.codes[self.position]
        areas = [np.count_nonzero(codes == value) for value in REGIONS.values()]
        mask = codes > 0 if self.roi == "tumor" else codes == list(REGIONS.values())[int(np.argmax(areas))]
        about = {"windows": [list(window) for window in loaded.windows]}
        return Raw(image if image.shape[2] == 3 else image[..., 0], mask if any(areas) else None, about=about)


def _load(case: Case, numbers: tuple[int, ...], percentiles: tuple[float, float]) -> _Loaded:
    wanted = set(numbers)
    codes = np.stack([plane for number, plane in enumerate(_codes(Volume.open(case.seg))) if number in wanted])
    images, windows = zip(*(_modality(Volume.open(file), wanted, percentiles) for file in case.images), strict=True)
    return _Loaded(np.stack(images, axis=-1), codes, list(windows))


def _modality(volume: Volume, wanted: set[int], percentiles: tuple[float, float]) -> tuple[np.ndarray, Window]:
    """The wanted slices, f32 [N,H,W], 0…1, through the window of the whole volume; what is 0 stays black."""
    kept, values = [], []
    for number, plane in enumerate(volume.slices()):
        values.append(plane[plane != 0])
        if number in wanted:
            kept.append(plane)
    inside = np.concatenate(values)
    if not inside.size or not np.isfinite(inside).all():
        raise ShardError(
            f"{volume.path}: holds {'values that are not finite' if inside.size else 'only 0'}; replace it"
        )
    low, high = np.percentile(inside, percentiles)
    planes = np.stack(kept)
    window = (float(low), float(high)) if low < high else (float(low) - 1, float(low))  # all alike: white
    return np.where(planes == 0, np.float32(0), windowed(planes, window)), window
