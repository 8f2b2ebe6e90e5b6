"""The `wds` source: image shards in the WebDataset layout that others have made."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from egal_shards.errors import ShardError
from egal_shards.images import read_image, read_mask
from egal_shards.intensity import Window, check_window, windowed
from egal_shards.polarity import MaskRoi, check_mask_roi
from egal_shards.progress import progress_bar
from egal_shards.records import Raw, Record, Source
from egal_shards.sources.files import read_bytes
from egal_shards.sources.flags import MASK_ROI, WINDOW
from egal_shards.sources.names import distinct_keys, joined, nearest, normalised, sorted_classes, valid_text
from egal_shards.sources.npy_members import read_array_image, read_array_mask
from egal_shards.sources.remarks import BY_IMAGE, with_notes
from egal_shards.sources.tar_members import Member, members

IMAGES = ("png", "jpg", "jpeg", "npy")
MASKS = ("png", "npy")
LABELS = ("cls", "txt")

_MAX_TARS = 1_000_000
_MAX_LABEL = 1 << 12  # bytes
_MAX_JSON = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class _File:
    """The members of one sample that hold its image and its mask."""

    image: Member
    mask: Member | None
    window: Window | None
    mask_roi: MaskRoi | None

    def __call__(self) -> Raw:
        return Raw(self._image(), None if self.mask is None else _mask(self.mask, self.mask_roi))

    def _image(self) -> np.ndarray:
        if self.image.suffix.lower() != ".npy":
            return read_image(self.image, self.window)
        pixels = read_array_image(self.image)
        return windowed(pixels, self.window) if self.window else pixels


@dataclass
class _Sample:
    """The members of one sample, by extension in lower case."""

    name: str  # the path up to the first dot of its last part
    tar: Path
    members: dict[str, Member] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.tar}: sample {self.name}"

    def need(self, extension: str, flag: str) -> Member:
        """Return the member with this extension, which holds what the flag says. Raise ShardError without it."""
        member = self.members.get(extension.lower())
        if member is None:
            raise ShardError(
                f"{self}: has no .{extension} for the {flag}; the members that follow each other under its name: "
                f"{joined(sorted(self.members))}{self.dotted((extension,), flag)}"
            )
        return member

    def dotted(self, endings: Sequence[str], flag: str) -> str:
        """Return an explanation, for an error, where dots in file names hide the members with one of these endings."""
        hidden = [extension for extension in sorted(self.members) if extension.rpartition(".")[2] in endings]
        if not hidden:
            return ""
        file = self.members[hidden[0]].name.rpartition("/")[2]
        how = f"set {flag} to {hidden[0]}, or " if len(hidden) == 1 else ""
        return (
            f"; in this format the first dot of a file name ends the sample's name, so {file} is .{hidden[0]} of "
            f"sample {self.name.rpartition('/')[2]}: {how}name the files without other dots than that of the extension"
        )


def wds(
    path: str | Path | Sequence[str | Path],
    *,
    label: Annotated[str, "extension of the label (class name or number), ending in cls or txt; or json:FIELD"] = "cls",
    image: Annotated[str | None, "extension of the images; none: the one png, jpg, jpeg or npy that is no mask"] = None,
    mask: Annotated[str | None, "extension of the masks, such as mask.png; none: no ROI"] = None,
    names: Annotated[str | Path | None, "text file that names label 0 in its first line, 1 in its second, …"] = None,
    group: Annotated[str | None, "json:FIELD that holds the group (patient), which no split cuts"] = None,
    classes: Annotated[Sequence[str] | None, "the classes in order, comma-separated; none: the labels, sorted"] = None,
    window: Annotated[Window | None, WINDOW] = None,
    mask_roi: Annotated[MaskRoi | None, MASK_ROI] = None,
) -> Source:
    """Return the samples of a folder of tars, a tar, a brace pattern such as data/{000..009}.tar, or several of these.

    Only members that the settings name are read, and only png, jpg, npy, json, cls and txt: nothing is unpickled,
    extracted or run. npy: uint8 or uint16 [H,W], [H,W,3], [1,H,W] or [3,H,W]. A sample without the mask has no ROI. All
    labels are read before any image is decoded. ShardError names tar and sample.

    Args:
        path: A folder, tar or brace pattern, or a list of them.
        label: Extension of the labels, such as cls or lesion.txt, or json:FIELD for a field of KEY.json.
        image: Extension of the images, in any letter case.
        mask: Extension of the masks, in any letter case.
        names: Text file with the class names in the order of the label numbers.
        group: json:FIELD that holds the group of a sample.
        classes: The classes in order.
        window: The values shown as black and white.
        mask_roi: The side of a mask that is the ROI. Without it: light, and a set of inverted masks is refused.
    """
    check_window(window)
    check_mask_roi(mask_roi)
    _check_extensions(image, mask)
    paths = [path] if isinstance(path, str | Path) else list(path)
    tars = _tars(paths)
    label_of, group_of = _reader(label, "label"), _reader(group, "group") if group else None
    listed = tuple(classes) if classes else _class_names(Path(names)) if names else None
    samples: dict[str, dict[str, Any]] = {}  # fields of the record, by place: the names of tar and sample
    with progress_bar("list tars", len(tars), True) as advance:
        for tar in tars:
            for sample in _samples(tar):
                place = f"{tar.stem}/{sample.name}"
                if place in samples:
                    raise ShardError(
                        f"{sample}: is in the tar twice, with other samples between; pack the tar with sorted names"
                    )
                samples[place] = {
                    "label": _class(label_of(sample), sample, listed, bool(names)),
                    "group": normalised(group_of(sample)) if group_of else place,
                    "load": _File(
                        _image(sample, image, mask), sample.members.get((mask or "").lower()), window, mask_roi
                    ),
                }
            advance(1)
    keys = distinct_keys([*samples], [*samples])
    records = [Record(key=key, file=place, **samples[place]) for key, place in zip(keys, samples, strict=True)]
    if not records:
        raise ShardError(f"{joined(map(str, paths))}: holds no samples; give tars of the WebDataset layout")
    if mask and all(fields["load"].mask is None for fields in samples.values()):
        raise ShardError(f"no sample has a .{mask} for the mask; leave mask out, or give the extension that masks have")
    made: dict[str, Any] = {
        "source": "wds", "input": [Path(each).name for each in paths], "tars": len(tars),
        "bytes": sum(tar.stat().st_size for tar in tars), "label": label, "image": image, "mask": mask,
        "names": Path(names).name if names else None, "group": group,
        "classes": list(classes) if classes else None, "window": list(window) if window else None,
    }  # fmt: skip
    if mask_roi:
        made["mask_roi"] = mask_roi
    labels = [record.label for record in records]
    made = with_notes(made, labels, [] if group else [BY_IMAGE])
    return Source(_name(paths, tars), listed or sorted_classes(labels), records, made)


def _check_extensions(image: str | None, mask: str | None) -> None:
    for flag, extension, known in (("image", image, IMAGES), ("mask", mask, MASKS)):
        if extension is not None and extension.lower().rpartition(".")[2] not in known:
            raise ShardError(f"{flag} {extension!r} ends in none of {', '.join(known)}; only these are decoded")


def _tars(paths: Sequence[str | Path]) -> list[Path]:
    """Return the tars of all paths. Raise ShardError where two have one name, from which keys are made."""
    tars = [tar for path in paths for tar in _expanded(str(path))]
    stems: dict[str, Path] = {}
    for tar in tars:
        if (other := stems.setdefault(tar.stem, tar)) is not tar:
            raise ShardError(f"{tar}: has the name of {other}, and keys are made of it; rename one, or give it once")
    return tars


def _name(paths: Sequence[str | Path], tars: Sequence[Path]) -> str:
    """Return the name of the set: of one folder or tar its name, else the name of the first tar's folder."""
    first = Path(paths[0]).resolve()
    return first.name.removesuffix(".tar") if len(paths) == 1 and first.exists() else tars[0].resolve().parent.name


def _expanded(path: str) -> list[Path]:
    """Return the tars of a folder or a brace pattern, or the tar itself. All of them are regular files."""
    if "://" in path or path.startswith("pipe:"):
        raise ShardError("wds reads local files, no URLs and no pipes; download the tars first")
    if Path(path).is_dir():
        tars = sorted(entry for entry in Path(path).iterdir() if entry.suffix.lower() == ".tar")
    else:
        from braceexpand import braceexpand  # the library that webdataset expands its patterns with

        try:
            tars = [Path(name) for name in islice(braceexpand(path), _MAX_TARS)]
        except ValueError:
            raise ShardError(f"{path}: its braces are not balanced; write for example data/{{000..009}}.tar") from None
    if not tars:
        raise ShardError(f"{path}: holds no .tar; check the path")
    for tar in tars:
        if not tar.is_file():
            what = "is a pipe, device or folder, not a tar" if tar.exists() else "no such file"
            raise ShardError(f"{tar}: {what}; check the path")
    return tars


def _samples(tar: Path) -> Iterator[_Sample]:
    """Yield the samples of a tar: consecutive members with one name up to the first dot.

    Hidden files, and files without an extension, are left out.
    """
    sample = None
    for member in members(tar):
        folder, slash, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        if not stem or not extension:
            continue
        name = f"{folder}{slash}{stem}"
        if sample is None or sample.name != name:
            if sample:
                yield sample
            sample = _Sample(name, tar)
        if extension.lower() in sample.members:
            raise ShardError(f"{member}: is in the tar twice; pack the tar with one member of this name")
        sample.members[extension.lower()] = member
    if sample:
        yield sample


def _image(sample: _Sample, image: str | None, mask: str | None) -> Member:
    """Return the member that holds the image."""
    if image:
        return sample.need(image, "image")
    mask = mask and mask.lower()
    images = [extension for extension in sample.members if extension in IMAGES and extension != mask]
    if len(images) != 1:
        hint = "" if images else sample.dotted([each for each in IMAGES if each != mask], "image")
        raise ShardError(
            f"{sample}: has {len(images)} members of png, jpg, jpeg and npy, and one must be the image; say which by "
            f"image; its members: {joined(sorted(sample.members))}{hint}"
        )
    return sample.members[images[0]]


def _reader(source: str, flag: str) -> Callable[[_Sample], str]:
    """Return the function that reads a sample's label or group: a text member, or a field of a json member."""
    extension, colon, name = source.partition(":")
    ending = extension.lower().rpartition(".")[2]
    if ending == "json" and name:
        return lambda sample: _field(sample.need(extension, flag), name)
    if ending in LABELS and not colon and flag == "label":
        return lambda sample: _text(sample.need(extension, flag), _MAX_LABEL).strip()
    known = "json:FIELD" if flag == "group" else f"{', '.join(LABELS)} or json:FIELD"
    raise ShardError(f"{flag} {source!r} is not {known}")


def _field(member: Member, name: str) -> str:
    """Return a field of a json member as text."""
    text = _text(member, _MAX_JSON)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ShardError(f"{member}: is not JSON; correct it") from None
    if not isinstance(value, dict) or name not in value:
        fields = joined(sorted(value)) if isinstance(value, dict) else "no fields"
        raise ShardError(f"{member}: has no field {name!r}; it has {fields}")
    if type(value[name]) not in (int, str) or not str(value[name]).strip():
        raise ShardError(
            f"{member}: {name} is {str(value[name])[:60]!r}, neither a text nor a whole number; correct it"
        )
    return valid_text(str(value[name]).strip(), str(member))


def _text(member: Member, limit: int) -> str:
    try:
        return member.read(limit).decode()
    except UnicodeDecodeError:
        raise ShardError(f"{member}: is not UTF-8 text; correct it") from None


def _class(label: str, sample: _Sample, listed: tuple[str, ...] | None, by_number: bool) -> str:
    """Return the class of a label. Raise ShardError where it is none of the listed classes."""
    if listed is None and label:
        return label
    if listed and by_number and label.isascii() and label.isdigit():
        if int(label) < len(listed):
            return listed[int(label)]
    elif listed and label in listed:
        return label
    similar = nearest(label, listed or ())
    raise ShardError(f"{sample}: label {label[:60]!r} is none of the classes{similar}; classes: {joined(listed or ())}")


def _class_names(path: Path) -> tuple[str, ...]:
    """Return the class names in the lines of a file."""
    try:
        lines = [line.strip() for line in read_bytes(path, _MAX_JSON).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ShardError(f"{path}: is not UTF-8 text; check --names") from None
    if not lines or "" in lines or len(set(lines)) < len(lines):
        raise ShardError(f"{path}: must hold one class name per line, none empty, none twice")
    return tuple(lines)


def _mask(member: Member, mask_roi: MaskRoi | None) -> np.ndarray:
    """Return bool [H,W]."""
    read = read_array_mask if member.suffix.lower() == ".npy" else read_mask
    return read(member, mask_roi)
