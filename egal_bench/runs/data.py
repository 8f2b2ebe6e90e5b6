"""The data sets of a comparison: shard sets by folder or URL, and phantoms by specification or by the flags."""

from __future__ import annotations

import shutil
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from egal_bench.config import Config, Count, RoiArea, Share
from egal_bench.errors import BenchError
from egal_bench.specifications import Specification, validated, written
from egal_bench.tables.folder import ResultsFolder
from egal_bench.tables.locks import locked
from egal_shards import Manifest, pack
from egal_shards.sources import phantom
from egal_shards.urls import set_name

PHANTOM = "phantom"
SIZE = 48  # pixels per side of a phantom, unless --size or the specification says otherwise


class PhantomDials(BaseModel):
    """The dials of a phantom, with the defaults of the flags of the same names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["brain", "chest"] = "brain"
    samples: Count = Config.model_fields["phantom_samples"].default
    size: Annotated[int, Field(ge=1)] = SIZE
    shortcut: Share = Config.model_fields["shortcut"].default
    roi_area: RoiArea = Config.model_fields["roi_area"].default
    roi_noise: Share = Config.model_fields["roi_noise"].default


def dataset_paths(config: Config, folder: ResultsFolder, *, replace: bool = False) -> dict[str, str]:
    """Return the shard set, a folder or URL, of each data set by its name; phantoms are packed where they are absent.

    Args:
        config: names the shard sets, and gives the dials of phantoms.
        folder: phantoms are packed into its folder `shards`.
        replace: whether a phantom with other dials is packed again, instead of refused.

    Raises:
        BenchError: two data sets have the same name, or a phantom of that name with other dials is in the results.
    """
    paths: dict[str, str] = {}
    for text in config.shards or (PHANTOM,):
        if text == PHANTOM or text.startswith(f"{PHANTOM}("):
            name, path = _phantom(text, config, folder, replace)
        else:
            name, path = set_name(text), text
        if name in paths:
            fix = "leave one out" if text.startswith(PHANTOM) else "rename a folder"
            raise BenchError(f"two shard sets are named {name!r}: results are filed by name; {fix}")
        paths[name] = path
    return paths


def phantom_dials(text: str, config: Config) -> PhantomDials:
    """Return the dials of `phantom`, or of a specification such as `phantom(brain,shortcut=0.9)`.

    A dial that the specification leaves out has the value of its flag.
    """
    if text != PHANTOM and not text.endswith(")"):
        raise BenchError(f"{text!r}: expected phantom(kind,dial=value,…)")
    inner = text.removeprefix(PHANTOM).removeprefix("(").removesuffix(")")
    parts = [part.strip() for part in inner.split(",") if part.strip()]
    arguments = [f"kind={part}" if "=" not in part else part for part in parts]
    specification = Specification.parse(f"{PHANTOM}({','.join(arguments)})" if arguments else PHANTOM)
    flags = {
        "kind": config.phantom, "samples": config.phantom_samples, "shortcut": config.shortcut,
        "roi_area": config.roi_area, "roi_noise": config.roi_noise, "size": config.size or SIZE,
    }  # fmt: skip
    dials = validated(specification, PhantomDials, flags)
    assert isinstance(dials, PhantomDials)
    return dials


def _phantom(text: str, config: Config, folder: ResultsFolder, replace: bool) -> tuple[str, str]:
    """Return name and path of a phantom: `phantom-brain` by flags alone, its canonical specification otherwise."""
    dials = phantom_dials(text, config)
    name = f"{PHANTOM}-{dials.kind}" if text == PHANTOM else written(PHANTOM, dials).replace("kind=", "")
    path = folder.path / "shards" / quote(name, safe="(),=")
    source = phantom(**dials.model_dump())
    with locked(folder.path, f"shards of {name}"):
        if path.is_dir() and replace and Manifest.read(path).made["source"] != source.made:
            shutil.rmtree(path)
        if not path.is_dir():
            pack(source, path, size=dials.size)
        elif (stored := Manifest.read(path).made["source"]) != source.made:
            assert isinstance(stored, dict)
            differing = [dial for dial in source.made if source.made[dial] != stored.get(dial)]
            changes = ", ".join(f"{dial} {stored.get(dial)} (now {source.made[dial]})" for dial in differing)
            raise BenchError(
                f"{folder.path} holds results of {name} with {changes}: compare into another --out, or name the "
                f"phantom by its dials, such as 'phantom({dials.kind},{differing[0]}={source.made[differing[0]]})'"
            )
    return name, str(path)
