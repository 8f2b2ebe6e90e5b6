"""The `wds` source: image shards in the WebDataset layout that others have made."""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from egal_shards.errors import ShardError
from egal_shards.images import MAX_PIXELS, read_image, read_mask
from egal_shards.intensity import Window, check_window, windowed
from egal_shards.progress import progress_bar
from egal_shards.records import Raw, Record, Source
from egal_shards.sources.flags import WINDOW
from egal_shards.sources.tables import file_key, nearest
from egal_shards.sources.tar_members import Member, members

IMAGES = ("png", "jpg", "jpeg", "npy")
MASKS = ("png", "npy")
LABELS = ("cls", "txt")

# what numpy writes, in version 1.0 or 2.0; nothing else is parsed
_NPY = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|\x02\x00....)\{'descr': '([|<][a-zA-Z]\d*)', 'fortran_order': (True|False), "
    rb"'shape': \((\d[\d, ]{0,80}|)\), \} *\n",
    re.DOTALL,
)
_MAX_TARS = 1_000_000
_MAX_LABEL = 1 << 12  # bytes
_MAX_JSON = 1 << 20
_MAX_NPY = 6 * MAX_PIXELS + 4096
_BY_IMAGE = (
    "every image is a group of its own: a patient with several images may span pool and test; "
    "give group to split by patient"
)


@dataclass(frozen=True, slots=True)
class _File:
    image: Member
    mask: Member | None
    window: Window | None

    def __call__(self) -> Raw:
        return Raw(self._image(), None if self.mask is None else _mask(self.mask))

    def _image(self) -> np.ndarray:
        if self.image.suffix.lower() != ".npy":
            return read_image(self.image, self.window)
        pixels = _planes_last(_npy(self.image, ("|u1", "<u2")), self.image)
        return windowed(pixels, self.window) if self.window else pixels


@dataclass
class _Sample:
    """The members of one sample, by extension in lower case."""

    name: str  # the path before the first dot of its last part
    tar: Path
    members: dict[str, Member] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.tar}: sample {self.name}"

    def need(self, extension: str, what: str) -> Member:
        if extension not in self.members:
            raise ShardError(
                f"{self}: has no .{extension} for {what}; the members that follow each other under its name: "
                f"{', '.join(sorted(self.members))}"
            )
        return self.members[extension]


def wds(
    path: str | Path | Sequence[str | Path],
    *,
    label: Annotated[str, "what holds the label: cls, txt (a class name or number) or json:FIELD"] = "cls",
    image: Annotated[str | None, "extension of the images; none: the one png, jpg, jpeg or npy that is no mask"] = None,
    mask: Annotated[str | None, "extension of the masks, such as mask.png; none: no ROI"] = None,
    names: Annotated[str | Path | None, "text file that names label 0 in its first line, 1 in its second, …"] = None,
    group: Annotated[str | None, "json:FIELD that holds the group (patient), which no split cuts"] = None,
    classes: Annotated[Sequence[str] | None, "the classes in order, comma-separated; none: the labels, sorted"] = None,
    window: Annotated[Window | None, WINDOW] = None,
) -> Source:
    """The samples of the tars in a folder, of one tar, of a brace pattern such as data/{000..009}.tar, or of several.

    Only members that the settings name are read, and only png, jpg, npy, json, cls and txt: nothing is unpickled,
    extracted or run. npy: uint8 or uint16 [H,W], [H,W,3], [1,H,W] or [3,H,W]. A sample without the mask has no ROI. All
    labels are read before anything is decoded. ShardError names tar and sample.
    """
    check_window(window)
    _check_extensions(image, mask)
    paths = [path] if isinstance(path, str | Path) else list(path)
    tars = _tars(paths)
    label_of, group_of = _reader(label, "label"), _reader(group, "group") if group else None
    listed = tuple(classes) if classes else _lines(Path(names)) if names else None
    keys: dict[str, str] = {}
    records, masks = [], 0
    with progress_bar("list tars", len(tars), True) as advance:
        for tar in tars:
            for sample in _samples(tar):
                where = f"{tar.stem}/{sample.name}"
                key = file_key(where)
                if other := keys.get(key):
                    raise ShardError(f"{sample}: has the same key {key!r} as {other}; rename one of them")
                keys[key] = where
                masks += mask in sample.members
                records.append(
                    Record(
                        key=key,
                        label=_class(label_of(sample), sample, listed, bool(names)),
                        group=group_of(sample) if group_of else where,
                        file=where,
                        load=_File(_image(sample, image, mask), sample.members.get(mask or ""), window),
                    )
                )
            advance(1)
    if not records:
        raise ShardError(f"{', '.join(map(str, paths))}: holds no samples; give tars of the WebDataset layout")
    if mask and not masks:
        raise ShardError(f"no sample has a .{mask} for the mask; leave mask out, or give the extension that masks have")
    made: dict[str, Any] = {
        "source": "wds", "input": [Path(each).name for each in paths], "tars": len(tars),
        "bytes": sum(tar.stat().st_size for tar in tars), "label": label, "image": image, "mask": mask,
        "names": Path(names).name if names else None, "group": group,
        "classes": list(classes) if classes else None, "window": list(window) if window else None,
    }  # fmt: skip
    if not group:
        made["note"] = _BY_IMAGE
    found = {record.label for record in records}
    return Source(_name(paths, tars), listed or _sorted(found), records, made)


def _check_extensions(image: str | None, mask: str | None) -> None:
    for flag, extension, known in (("image", image, IMAGES), ("mask", mask, MASKS)):
        if extension is not None and extension.rpartition(".")[2] not in known:
            raise ShardError(f"{flag} {extension!r} ends in none of {', '.join(known)}; only these are decoded")


def _tars(paths: Sequence[str | Path]) -> list[Path]:
    found = [tar for path in paths for tar in _expanded(str(path))]
    stems: dict[str, Path] = {}
    for tar in found:
        if (other := stems.setdefault(tar.stem, tar)) is not tar:
            raise ShardError(f"{tar}: has the name of {other}, and keys are made of it; rename one, or give it once")
    return found


def _name(paths: Sequence[str | Path], tars: Sequence[Path]) -> str:
    """That of the folder or tar; of a pattern or several paths, that of the first tar's folder."""
    given = Path(paths[0]).resolve()
    return given.name.removesuffix(".tar") if len(paths) == 1 and given.exists() else tars[0].resolve().parent.name


def _expanded(path: str) -> list[Path]:
    """The tars of a folder, of a brace pattern, or the tar itself; all are there."""
    if "://" in path or path.startswith("pipe:"):
        raise ShardError("wds reads local files, no URLs and no pipes; download the tars first")
    if Path(path).is_dir():
        found = sorted(entry for entry in Path(path).iterdir() if entry.suffix == ".tar")
    else:
        from braceexpand import braceexpand  # what webdataset expands its patterns with

        try:
            found = [Path(name) for name in islice(braceexpand(path), _MAX_TARS)]
        except ValueError:
            raise ShardError(f"{path}: its braces are not balanced; write for example data/{{000..009}}.tar") from None
    absent = next((tar for tar in found if not tar.is_file()), None)
    if absent or not found:
        raise ShardError(f"{absent or path}: {'no such file' if absent else 'holds no .tar'}; check the path")
    return found


def _samples(tar: Path) -> Iterator[_Sample]:
    """Consecutive members with one name before the first dot; hidden files and those without a suffix are left out."""
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
            raise ShardError(f"{member}: is in the tar twice; remove one")
        sample.members[extension.lower()] = member
    if sample:
        yield sample


def _image(sample: _Sample, image: str | None, mask: str | None) -> Member:
    if image:
        return sample.need(image, "the image")
    found = [extension for extension in sample.members if extension in IMAGES and extension != mask]
    if len(found) != 1:
        raise ShardError(
            f"{sample}: has {len(found)} members of png, jpg, jpeg and npy, and one must be the image; say which by "
            f"image; its members: {', '.join(sorted(sample.members))}"
        )
    return sample.members[found[0]]


def _reader(what: str, purpose: str) -> Callable[[_Sample], str]:
    """A sample's text under cls or txt, or a field of its json."""
    kind, _, name = what.partition(":")
    if kind == "json" and name:
        return lambda sample: _field(sample.need("json", f"the {purpose}"), name)
    if what in LABELS and purpose == "label":
        return lambda sample: _text(sample.need(what, f"the {purpose}"), _MAX_LABEL).strip()
    known = "json:FIELD" if purpose == "group" else f"{', '.join(LABELS)} or json:FIELD"
    raise ShardError(f"{purpose} {what!r} is not {known}")


def _field(member: Member, name: str) -> str:
    try:
        value = json.loads(_text(member, _MAX_JSON))
    except (ValueError, RecursionError):
        raise ShardError(f"{member}: is not JSON; mend it") from None
    if not isinstance(value, dict) or name not in value:
        has = ", ".join(sorted(value)[:20]) if isinstance(value, dict) else "no fields"
        raise ShardError(f"{member}: has no field {name!r}; it has {has}")
    if type(value[name]) not in (int, str) or not str(value[name]).strip():
        raise ShardError(f"{member}: {name} is {str(value[name])[:60]!r}, neither a text nor a whole number; mend it")
    return str(value[name]).strip()


def _text(member: Member, limit: int) -> str:
    try:
        return member.read(limit).decode()
    except UnicodeDecodeError:
        raise ShardError(f"{member}: is not UTF-8 text; mend it") from None


def _class(label: str, sample: _Sample, listed: tuple[str, ...] | None, by_number: bool) -> str:
    if listed is None and label:
        return label
    if listed and by_number and label.isascii() and label.isdigit():
        if int(label) < len(listed):
            return listed[int(label)]
    elif listed and label in listed:
        return label
    close = nearest(label, listed or ())
    raise ShardError(
        f"{sample}: label {label[:60]!r} is none of the classes{close}; classes: {', '.join((listed or ())[:20])}"
    )


def _sorted(labels: set[str]) -> tuple[str, ...]:
    """By number where all are numbers."""
    numbers = all(label.isascii() and label.isdigit() for label in labels)
    return tuple(sorted(labels, key=(lambda label: (int(label), label)) if numbers else None))


def _lines(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            lines = [line.strip() for line in file.read(_MAX_JSON).decode().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{path}: {getattr(error, 'strerror', None) or 'is not UTF-8 text'}; check --names") from None
    if not lines or "" in lines or len(set(lines)) < len(lines):
        raise ShardError(f"{path}: must hold one class name a line, none empty, none twice")
    return tuple(lines)


def _mask(member: Member) -> np.ndarray:
    """bool [H,W]"""
    if member.suffix.lower() != ".npy":
        return read_mask(member)
    mask = _npy(member, ("|u1", "|b1", "<u2"))
    if mask.ndim != 2:
        raise ShardError(f"{member}: is an array of {list(mask.shape)}; a mask is [H,W]")
    return mask > 0


def _planes_last(pixels: np.ndarray, member: Member) -> np.ndarray:
    """[H,W] or [H,W,3] of these or of [1,H,W] or [3,H,W]."""
    shape = pixels.shape
    if pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] == 3 and shape[0] != 3):
        return pixels
    if pixels.ndim == 3 and shape[0] in (1, 3) and shape[2] != 3:
        return np.ascontiguousarray(pixels.transpose(1, 2, 0)) if shape[0] == 3 else pixels[0]
    raise ShardError(f"{member}: is an array of {list(shape)}; images are [H,W], [H,W,3], [1,H,W] or [3,H,W]")


def _npy(member: Member, dtypes: tuple[str, ...]) -> np.ndarray:
    """The array in an npy file."""
    payload = member.read(_MAX_NPY)
    header = _NPY.match(payload)
    if not header:
        raise ShardError(f"{member}: is no npy file, or none of plain numbers; save it by numpy.save")
    dtype, shape = (
        header[1].decode(),
        tuple(int(extent) for extent in header[3].replace(b" ", b"").split(b",") if extent),
    )
    if dtype not in dtypes:
        raise ShardError(f"{member}: holds {dtype}; of npy only {', '.join(dtypes)} is read, convert it")
    if 0 in shape or len(payload) - header.end() != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ShardError(f"{member}: claims an array of {list(shape)}, which its bytes are not; replace it")
    return np.frombuffer(payload, dtype, offset=header.end()).reshape(shape, order="F" if header[2] == b"True" else "C")
