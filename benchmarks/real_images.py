"""The real images on which whole pipelines are measured, where they lie beside the project."""

from __future__ import annotations

from pathlib import Path

from benchmarks.registry import Absent
from egal_bench.dataset import Dataset, open_dataset
from egal_shards import pack
from egal_shards.sources import folder

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_folder(name: str) -> Path:
    """Return the folder of the real dataset `name`. Raises Absent where it is not beside the project."""
    if not (DATA / name / "labels.csv").is_file():
        raise Absent(f"the real dataset {name} is not beside this checkout (looked in ../shared/data)")
    return DATA / name


def chest_xrays(home: Path, size: int = 224) -> Dataset:
    """Return SIIM-COVID-19 in one channel, packed below `home` once."""
    return _packed("siim_covid19_256", home / f"siim-{size}", size, group="patient_id", dup="dup_group")


def brain_mri(home: Path, size: int = 224) -> Dataset:
    """Return the brain MRI slices of Cheng et al., packed below `home` once."""
    return _packed("cheng_brain_mri_320", home / f"cheng-{size}", size, group="block:figshare_id:40")


def _packed(name: str, path: Path, size: int, **columns: str) -> Dataset:
    if not path.is_dir():
        pack(folder(real_folder(name), **columns), path, size=size)
    return open_dataset(path)
