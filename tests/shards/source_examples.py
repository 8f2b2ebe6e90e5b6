"""One small input per registered source, for test_source_contract.py. A new source adds its example to EXAMPLES."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from egal_shards.sources import SOURCES
from shards.hostile_files import png

SIDE = 24  # pixels


@dataclass(frozen=True)
class Example:
    """A small input of a source, and how one image in it is replaced.

    build(folder) writes the input: at least four samples, two classes, two groups per class.
    replace(folder, payload) replaces the bytes of the first image.
    """

    build: Callable[[Path], None]
    replace: Callable[[Path, bytes], None]
    file: str  # the file on disk that holds the first image, relative to the folder
    named: str  # what every error about the first image must contain
    huge: bytes  # an image that declares absurdly large dimensions
    settings: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the source
    path: Callable[[Path], Any] = lambda folder: folder  # what the source takes as its path

    def load(self, name: str, folder: Path):
        """Return the source with this name over the folder."""
        return SOURCES[name].load()(self.path(folder), **self.settings)


def pixels(i):
    return np.random.default_rng([5, i]).integers(0, 256, (SIDE, SIDE), np.uint8)


def png_bytes(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def write_images(folder, names):
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        (folder / f"{name}.png").write_bytes(png_bytes(pixels(i)))


def replace_file(file):
    """Return the function that replaces the bytes of a file."""
    return lambda folder, payload: (folder / file).write_bytes(payload)


def build_folder(folder):
    names = [f"k{i}" for i in range(6)]
    write_images(folder / "images", names)
    rows = [f'images/{name}.png,{"ab"[i % 2]},"[[1,2,9,{10 + i}]]",p{i}' for i, name in enumerate(names)]
    (folder / "labels.csv").write_text("file,label,boxes,patient\n" + "\n".join(rows) + "\n")


def build_coco(folder):
    names = [f"k{i}" for i in range(6)]
    write_images(folder / "images", names)
    images = [{"id": i, "file_name": f"{name}.png", "width": SIDE, "height": SIDE} for i, name in enumerate(names)]
    boxes = [{"id": i, "image_id": i, "category_id": i % 2, "bbox": [1, 2, 8, 9]} for i in range(len(names))]
    categories = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def build_labelme(folder):
    names = [f"k{i}" for i in range(6)]
    write_images(folder, names)
    for i, name in enumerate(names):
        shape = {"label": "ab"[i % 2], "shape_type": "rectangle", "points": [[1, 2], [9, 11]]}
        size = {"imageWidth": SIDE, "imageHeight": SIDE}
        (folder / f"{name}.json").write_text(json.dumps({"shapes": [shape], "imagePath": f"{name}.png", **size}))


def build_imagefolder(folder):
    names = [f"k{i}" for i in range(6)]
    write_images(folder, names)
    rows = [
        {"file_name": f"{name}.png", "label": "ab"[i % 2], "objects": {"bbox": [[1, 2, 8, 9]]}}
        for i, name in enumerate(names)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def build_vindr(folder):
    names = [f"{i:032x}" for i in range(6)]
    write_images(folder / "train", names)
    finding = ["Cardiomegaly,3,{},1,2,9,10", "No finding,14,{},,,,"]
    rows = [f"{name},{finding[i % 2].format(reader)}" for i, name in enumerate(names) for reader in ("R1", "R2", "R3")]
    header = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
    (folder / "train.csv").write_text(header + "\n".join(rows) + "\n")
    write_meta(folder, names)


def write_meta(folder, names):
    rows = [f"{name},{SIDE},{SIDE},p{i}" for i, name in enumerate(names)]
    (folder / "meta.csv").write_text("image_id,orig_width,orig_height,patient\n" + "\n".join(rows) + "\n")


def build_siim(folder):
    names = [f"{i:012x}" for i in range(8)]
    write_images(folder / "train", names)
    labels = ["opacity 1 2 3 10 12", "none 1 0 0 1 1"]
    images = [f"{name}_image,,{labels[i % 2]},study{i}" for i, name in enumerate(names)]
    (folder / "train_image_level.csv").write_text("id,boxes,label,StudyInstanceUID\n" + "\n".join(images) + "\n")
    classes = ["Negative for Pneumonia", "Typical Appearance", "Indeterminate Appearance", "Atypical Appearance"]
    studies = [f"study{i}_study,{','.join('01'[i % 4 == label] for label in range(4))}" for i in range(len(names))]
    (folder / "train_study_level.csv").write_text(f"id,{','.join(classes)}\n" + "\n".join(studies) + "\n")
    write_meta(folder, names)


def build_wds(folder, first=None):
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(folder / "000.tar"), encoder=False) as writer:
        for i in range(6):
            image = first if i == 0 and first is not None else png_bytes(pixels(i))
            writer.write({"__key__": f"k{i}", "png": image, "cls": b"ab"[i % 2 : i % 2 + 1]})


def build_brats(folder):
    nibabel = pytest.importorskip("nibabel", reason="the extra nifti is not installed")
    for case in range(1, 5):
        name = f"BraTS20_Training_{case:03}"
        (folder / name).mkdir(parents=True)
        rng = np.random.default_rng(case)
        seg = np.zeros((12, 12, 4), np.uint8)
        seg[2:6, 2:6, 0], seg[2:6, 2:6, 1] = 1, 2
        for kind, values in {"seg": seg, "t1ce": rng.integers(1, 999, seg.shape).astype(np.int16)}.items():
            nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, -1, 1, 1])), folder / name / f"{name}_{kind}.nii")


def nifti_header(*shape):
    """Return the header of a NIfTI-1 file of int16 values that declares this shape, without its values."""
    header = np.zeros(352, np.uint8)
    header[:4].view("<i4")[0] = 348
    header[40:56].view("<i2")[:] = [len(shape), *shape, *[1] * (7 - len(shape))]
    header[70:74].view("<i2")[:] = 4, 16
    header[76:108].view("<f4")[:4] = 1
    header[108:112].view("<f4")[0] = 352
    header[344:348] = np.frombuffer(b"n+1\0", np.uint8)
    return header.tobytes()


HUGE_PNG = png(1_000_000, 1_000_000)
META = {"meta": "meta.csv", "group": "patient"}
VINDR, SIIM = f"{0:032x}", f"{0:012x}"  # names of the first images
BRATS = "BraTS20_Training_001/BraTS20_Training_001_t1ce.nii"

EXAMPLES = {
    "folder": Example(build_folder, replace_file("images/k0.png"), "images/k0.png", "k0", HUGE_PNG),
    "brats": Example(
        build_brats,
        replace_file(BRATS),
        BRATS,
        "BraTS20_Training_001",
        nifti_header(32767, 32767, 32767),
        {"min_voxels": 5, "progress": False},
    ),
    "vindr": Example(build_vindr, replace_file(f"train/{VINDR}.png"), f"train/{VINDR}.png", VINDR, HUGE_PNG, META),
    "siim": Example(build_siim, replace_file(f"train/{SIIM}.png"), f"train/{SIIM}.png", SIIM, HUGE_PNG, META),
    "coco": Example(
        build_coco,
        replace_file("images/k0.png"),
        "images/k0.png",
        "k0",
        HUGE_PNG,
        path=lambda folder: [folder / "annotations.json", folder / "images"],
    ),
    "labelme": Example(build_labelme, replace_file("k0.png"), "k0.png", "k0", HUGE_PNG),
    "imagefolder": Example(build_imagefolder, replace_file("k0.png"), "k0.png", "k0", HUGE_PNG),
    "wds": Example(build_wds, build_wds, "000.tar", "000.tar", HUGE_PNG),
}
WITHOUT_INPUT = {"phantom": {"samples": 60, "size": 32}}  # sources that make their images, and their arguments
