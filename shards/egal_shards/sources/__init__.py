"""The sources that `pack` can read: each is a function that returns a `Source`."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from egal_shards.records import Source
from egal_shards.sources.phantom import phantom  # imported here, so that the name is the function, not its module

if TYPE_CHECKING:
    from egal_shards.sources.brats_mri import brats
    from egal_shards.sources.coco_json import coco
    from egal_shards.sources.hf_imagefolder import imagefolder
    from egal_shards.sources.labelme_json import labelme
    from egal_shards.sources.labels_csv import folder
    from egal_shards.sources.siim_covid19 import siim
    from egal_shards.sources.vindr_cxr import vindr
    from egal_shards.sources.wds_tars import wds

__all__ = ["SOURCES", "Entry", "brats", "coco", "folder", "imagefolder", "labelme", "phantom", "siim", "vindr", "wds"]


@dataclass(frozen=True)
class Entry:
    """A registered source: what it reads, and its function, which is imported on first use."""

    summary: str
    module: str
    function: str

    def load(self) -> Callable[..., Source]:
        """Import and return the function."""
        return getattr(import_module(self.module), self.function)


SOURCES = {
    "folder": Entry("images with a labels.csv, and masks or boxes", f"{__name__}.labels_csv", "folder"),
    "brats": Entry("BraTS glioma MRI, slices of NIfTI volumes", f"{__name__}.brats_mri", "brats"),
    "vindr": Entry("VinDr-CXR chest X-rays, Kaggle or PhysioNet tables", f"{__name__}.vindr_cxr", "vindr"),
    "siim": Entry("SIIM-FISABIO-RSNA COVID-19 chest X-rays", f"{__name__}.siim_covid19", "siim"),
    "coco": Entry("COCO: one JSON of polygons, masks or boxes, and images", f"{__name__}.coco_json", "coco"),
    "labelme": Entry("LabelMe: a JSON file beside each image", f"{__name__}.labelme_json", "labelme"),
    "imagefolder": Entry("Hugging Face folder with metadata", f"{__name__}.hf_imagefolder", "imagefolder"),
    "phantom": Entry("built-in procedural lesions, no download", f"{__name__}.phantom", "phantom"),
    "wds": Entry("WebDataset image shards made by others", f"{__name__}.wds_tars", "wds"),
}


def __getattr__(name: str) -> Any:
    if name not in SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return SOURCES[name].load()
