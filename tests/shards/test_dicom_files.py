"""DICOM files as the world has them: without preamble, meta information, transfer syntax or suffix."""

import subprocess
import sys

import numpy as np
import pytest

from egal_shards import ShardError
from egal_shards.dicom import header, parsing, read_dicom
from egal_shards.images import is_dicom, read_image, without_suffix

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from pydicom import dcmread, uid

from shards.dicom_files import spread, write

TWELVE = np.random.default_rng(4).integers(0, 4096, (37, 53)).astype(np.uint16)
BITS = {"BitsStored": 12, "HighBit": 11}
META = 132  # bytes before the meta information


def parts(path):
    """(meta information, data set) of a file, as bytes."""
    raw = path.read_bytes()
    end = META + 12 + dcmread(path).file_meta.FileMetaInformationGroupLength
    return raw[META:end], raw[end:]


def without_syntax(meta):
    """Meta information without its element (0002,0010)."""
    at = meta.index(b"\2\0\x10\0UI")
    return meta[:at] + meta[at + 8 + int.from_bytes(meta[at + 6 : at + 8], "little") :]


LAYOUTS = {
    "no preamble": lambda meta, data: b"DICM" + meta + data,
    "neither preamble nor DICM": lambda meta, data: meta + data,
    "no meta information": lambda meta, data: bytes(128) + b"DICM" + data,
    "the data set alone": lambda meta, data: data,
    "no transfer syntax": lambda meta, data: bytes(128) + b"DICM" + without_syntax(meta) + data,
}


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian], ids=["implicit", "explicit"]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_a_file_may_be_missing(tmp_path, layout, syntax, recwarn):
    path = write(tmp_path / "a", TWELVE, syntax, **BITS)
    path.write_bytes(LAYOUTS[layout](*parts(path)))
    np.testing.assert_allclose(read_image(path), spread(TWELVE), rtol=0, atol=2e-7)
    assert not recwarn.list


@pytest.mark.parametrize("layout", ["no meta information", "no transfer syntax"])
@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (uid.ExplicitVRBigEndian, r"has no Transfer Syntax UID \(0002,0010\) and does not read as little endian"),
        (uid.RLELossless, r"has compressed pixels and no Transfer Syntax UID \(0002,0010\)"),
        (uid.JPEG2000Lossless, r"has compressed pixels and no Transfer Syntax UID \(0002,0010\)"),
    ],
    ids=["big endian", "RLE", "JPEG 2000"],
)
def test_a_syntax_that_cannot_be_assumed_is_named(tmp_path, layout, syntax, message):
    path = write(tmp_path / "a.dcm", TWELVE, syntax, **BITS)
    path.write_bytes(LAYOUTS[layout](*parts(path)))
    with pytest.raises(ShardError, match=rf"a.dcm: {message}"):
        read_dicom(path)


@pytest.mark.parametrize("name", ["IM_0001", "MR0001.IMA", "1.2.826.0.1.101", "scan.dcm", "scan.DICOM", "odd.png"])
def test_dicom_is_recognised_whatever_its_name(tmp_path, name):
    path = write(tmp_path / name, TWELVE, **BITS)
    assert is_dicom(path)
    np.testing.assert_allclose(read_image(path), spread(TWELVE), rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.png", "a"),
        ("a/b.JPEG", "a/b"),
        ("MR0001.IMA", "MR0001"),
        ("IM_0001", "IM_0001"),
        ("1.2.826.0.1.101", "1.2.826.0.1.101"),
        ("1.2.826.0.1.101.dcm", "1.2.826.0.1.101"),
        ("v1.2/scan", "v1.2/scan"),
        (".png", ".png"),
    ],
)
def test_only_suffixes_of_images_are_left_out(name, stem):
    assert without_suffix(name) == stem


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "an empty file .0 bytes.; copy or download it again"),
        (b"<!DOCTYPE html><html>404</html>", "a web page .HTML.; download"),
        (b"PK\x03\x04" + bytes(200), "a ZIP archive; unpack it first"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "a PNG file"),
    ],
)
def test_what_is_no_dicom_is_called_what_it_is(tmp_path, data, kind):
    (tmp_path / "a.dcm").write_bytes(data)
    with pytest.raises(ShardError, match=f"a.dcm: is not a DICOM file but {kind}"):
        read_image(tmp_path / "a.dcm")


def test_sequences_of_endless_items_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parsing, "MAX_READS", 5000)
    path = write(tmp_path / "a.dcm", TWELVE)
    meta, data = parts(path)
    items = b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\0\0\0\0" * 10_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    path.write_bytes(bytes(128) + b"DICM" + meta + data[: data.index(b"\x28\0")] + items)
    with pytest.raises(ShardError, match="has more than 5000 elements"):
        read_dicom(path)


def test_values_that_no_image_needs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(header, "MAX_VALUE", 1000)
    path = write(tmp_path / "a.dcm", TWELVE, PhotometricInterpretation="A\\" * 1000)
    with pytest.raises(ShardError, match=r"its element \(0028,0004\) has 2000 bytes; no image needs so many"):
        read_dicom(path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DA")  # of the writer
def test_libraries_print_nothing(tmp_path):
    """Files that pydicom warns of, read in a process that shows every warning."""
    path = write(tmp_path / "a.dcm", TWELVE, uid.ImplicitVRLittleEndian, PatientBirthDate="19", **BITS)
    meta, data = parts(path)
    path.write_bytes(bytes(128) + b"DICM" + without_syntax(meta) + data + b"\0")
    code = (
        "import sys; from pathlib import Path; from egal_shards.images import read_image; read_image(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-W", "always", "-c", code, str(path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""
