"""`egal-bench pack`: every source by its own flags, which come from its signature."""

import inspect
import json
import subprocess
import sys
from typing import Annotated, get_origin, get_type_hints

import numpy as np
import pytest
import typer
import webdataset
from PIL import Image

from egal_bench.cli.main import _app
from egal_bench.errors import BenchError
from egal_shards import ShardError, ShardSet
from egal_shards.sources import SOURCES


def call(*words):
    """Run the command in this process, and let its exceptions pass."""
    words = [str(word) for word in words]
    return _app(words)(words, standalone_mode=False)


def help_of(*words, capsys):
    call(*words, "--help")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", SOURCES)
def test_help_lists_the_flags_of_the_source_and_no_others(name, capsys):
    text = help_of("pack", name, capsys=capsys)
    make = SOURCES[name].load()
    for other in SOURCES.values():
        for parameter, hint in get_type_hints(other.load(), include_extras=True).items():
            if get_origin(hint) is Annotated:
                flag = f"--{parameter.replace('_', '-')} "
                belongs = parameter in inspect.signature(make).parameters
                assert (flag in text) == belongs, flag
    general = help_of("pack", capsys=capsys)
    assert "--dtype" in general
    assert "--group" not in general


@pytest.mark.parametrize("name", ["folder", "brats", "vindr", "siim", "phantom"])
def test_every_flag_has_help_with_its_default(name):
    make = SOURCES[name].load()
    without_flag = {"size", "test", "seed", "progress", "path", "kind", "return"}  # flags of pack, or no flags at all
    for parameter, hint in get_type_hints(make, include_extras=True).items():
        assert (get_origin(hint) is Annotated) == (parameter not in without_flag), parameter


def test_brats_takes_its_own_flags(tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="the extra nifti is not installed")
    rng = np.random.default_rng(0)
    for i in range(4):
        home = tmp_path / "in" / f"BraTS20_Training_{i:03}"
        home.mkdir(parents=True)
        seg = np.zeros((16, 16, 4), np.uint8)
        seg[4:9, 4:9, 1], seg[4:9, 4:9, 2] = 1, 4
        for kind in ("t1", "t1ce", "t2", "flair", "seg"):
            values = seg if kind == "seg" else rng.integers(1, 999, seg.shape).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1, 1, 1])), home / f"{home.name}_{kind}.nii.gz")
    with pytest.raises(ShardError, match="channels 0 is neither 1"):
        call("pack", "brats", tmp_path / "in", tmp_path / "set", "--channels=0", "--min-voxels=20")
    call(
        "pack", "brats", tmp_path / "in", tmp_path / "set", "--modality=t1ce,t2,flair", "--label=tumor",
        "--min-voxels=20", "--percentiles=1,99", "--size=16", "--dtype=uint16", "--roi", "tumor",
    )  # fmt: skip
    shards = ShardSet(tmp_path / "set")
    assert (shards.manifest.image.channels, shards.manifest.image.dtype) == (3, "uint16")  # three modalities say so
    assert shards.manifest.made["source"]["percentiles"] == [1.0, 99.0]
    assert shards.classes == ("no tumor", "tumor")
    assert set(shards.index().roi_area) == {0, 25}


def test_vindr_and_siim_take_their_own_flags(tmp_path, capsys):
    root = tmp_path / "in"
    root.mkdir()
    for i in range(8):
        Image.fromarray(np.full((20, 20), i, np.uint8)).save(root / f"i{i}.png")
    names = ["Aortic enlargement,0", "No finding,14"]
    lines = [f"i{i},{names[i % 2]},R{r},{'1,1,9,9' if i % 2 == 0 else ',,,'}" for i in range(8) for r in range(3)]
    (root / "train.csv").write_text("image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n" + "\n".join(lines))
    (root / "sizes.csv").write_text(
        "image_id,orig_width,orig_height,patient\n" + "\n".join(f"i{i},20,20,p{i // 2}" for i in range(8))
    )
    flags = ["--classes", "No finding,Aortic enlargement", "--label=first", "--roi=majority", "--meta=sizes.csv"]
    call("pack", "vindr", root, tmp_path / "vindr", *flags, "--group=patient", "--size=20", "--json")
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["samples"] == 8
    assert "0 images left out by label 'first'" in printed.err
    shards = ShardSet(tmp_path / "vindr")
    assert shards.classes == ("No finding", "Aortic enlargement")
    assert sorted(shards.index().roi_area) == [0] * 4 + [64] * 4
    assert set(shards.index().group) == {f"p{i}" for i in range(4)}

    classes = ["Negative for Pneumonia", "Typical Appearance", "Indeterminate Appearance", "Atypical Appearance"]
    marks = [",".join("1" if i % 4 == j else "0" for j in range(4)) for i in range(8)]
    (root / "train_study_level.csv").write_text(
        f"id,{','.join(classes)}\n" + "\n".join(f"s{i}_study,{mark}" for i, mark in enumerate(marks))
    )
    images = "\n".join(f"i{i}_image,,opacity 1 1 1 9 9,s{i}" for i in range(8))
    (root / "train_image_level.csv").write_text(f"id,boxes,label,StudyInstanceUID\n{images}\n")
    call("pack", "siim", root, tmp_path / "siim", "--meta=sizes.csv", "--size=20", "--window=0,7")
    assert "a patient with several studies may span pool and test" in capsys.readouterr().err
    sample = ShardSet(tmp_path / "siim")[7]
    assert (sample.image.min(), sample.image.max()) == (255, 255)


def test_wds_takes_several_tars(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16), np.uint8)
    for n, name in enumerate(("a.tar", "b.tar")):
        with webdataset.TarWriter(str(tmp_path / name)) as tar:
            for i in range(4 * n, 4 * n + 4):
                tar.write({"__key__": f"{i}", "png": pixels[i], "cls": i % 2})
    call("pack", "wds", tmp_path / "b.tar", tmp_path / "a.tar", tmp_path / "set", "--size=16")
    shards = ShardSet(tmp_path / "set")
    assert shards.index().key.tolist() == [f"b_{i}" for i in range(4, 8)] + [f"a_{i}" for i in range(4)]
    assert all(np.array_equal(shards[i].image[0], pixels[(i + 4) % 8]) for i in range(8))
    with pytest.raises(typer.TyperException, match="unexpected extra argument"):
        call("pack", "folder", tmp_path, tmp_path, tmp_path / "other")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["folder", "in", "out", "--modality=t1"], "--modality is not a flag of pack folder: leave it out"),
        (["brats", "in", "out", "--dup", "x"], "--dup is not a flag of pack brats: leave it out"),
        (["in", "out", "--dup", "x"], "unknown source 'in'"),
        (["--dup", "x", "in", "out"], "--dup is not a flag of pack SOURCE"),
        (["--dtype", "uint8", "other", "siim", "out"], "SOURCE comes first: egal-bench pack other"),
        (["siim", "in", "out", "--window=3"], "--window '3' is not LOW,HIGH, two numbers"),
        (["siim", "in", "out", "--window=a,b"], "--window 'a,b' is not LOW,HIGH, two numbers"),
    ],
)
def test_flag_or_argument_out_of_place_is_refused(words, message):
    with pytest.raises((BenchError, ShardError), match=message):
        call("pack", *words)


@pytest.mark.parametrize(
    "words", [["vindr", "in", "out", "--label=best"], ["brats", "in", "out", "--min-voxels=x"], ["phantom", "brain"]]
)
def test_values_of_the_wrong_kind_are_refused(words):
    with pytest.raises(typer.TyperException):
        call("pack", *words)


def test_help_loads_no_torch_and_no_reader_of_images():
    code = "import sys; from egal_bench.cli.main import _app; w = sys.argv[1:]; _app(w)(w, standalone_mode=False); " \
        "assert not {'torch', 'pydicom', 'nibabel', 'pyarrow', 'pandas'} & sys.modules.keys()"  # fmt: skip
    for source in SOURCES:
        command = [sys.executable, "-c", code, "pack", source, "--help"]
        process = subprocess.run(command, capture_output=True, check=False)
        assert process.returncode == 0, process.stderr
