"""DICOM files, pixel for pixel against numpy, pydicom's own processing and the formulas of the standard."""

import subprocess
import sys
import textwrap
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from egal_shards import ShardError
from egal_shards.dicom import parsing, read_dicom

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from pydicom import dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_voi_lut

from shards.dicom_files import dataset, spread, write

RNG = np.random.default_rng(0)
TWELVE = RNG.integers(0, 4096, (37, 53)).astype(np.uint16)
SIGNED = RNG.integers(-1024, 3000, (33, 41)).astype(np.int16)
EIGHT = RNG.integers(0, 256, (35, 33)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (32, 34, 3)).astype(np.uint8)
BITS = {"BitsStored": 12, "HighBit": 11}
LOSSLESS = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEG2000Lossless,
]


def close(shown, expected):
    assert shown.dtype == np.float32
    assert shown.shape == expected.shape
    np.testing.assert_allclose(shown, expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
def test_every_lossless_syntax_gives_the_stored_values(tmp_path, syntax):
    close(read_dicom(write(tmp_path / "a.dcm", TWELVE, syntax, **BITS)), spread(TWELVE))
    close(read_dicom(write(tmp_path / "b.dcm", SIGNED, syntax)), spread(SIGNED))
    close(read_dicom(write(tmp_path / "c.dcm", EIGHT, syntax)), spread(EIGHT))
    assert np.array_equal(read_dicom(write(tmp_path / "d.dcm", COLOUR, syntax)), COLOUR)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("JPEGLSNearLossless_16.dcm", None),
        ("JPEG2000.dcm", None),
        ("JPGExtended.dcm", None),
        ("693_J2KI.dcm", None),
        ("J2K_pixelrep_mismatch.dcm", None),
        ("image_dfl.dcm", None),
    ],
)
def test_files_of_other_makers(name, reference):
    path = get_testdata_file(name, download=False)
    source = dcmread(get_testdata_file(reference, download=False) if reference else path)
    source.pixel_array_options(decoding_plugin="" if reference or "dfl" in name else "pylibjpeg")
    values = source.pixel_array.astype(np.float64)
    values = values * float(source.get("RescaleSlope", 1)) + float(source.get("RescaleIntercept", 0))
    if "WindowCenter" not in source:
        expected = spread(values)
    else:  # pydicom's output range, undone by the two values that a window surely clips
        ends = apply_voi_lut(np.array([-1e9, 1e9]), source)
        expected = (apply_voi_lut(values, source) - ends[0]) / (ends[1] - ends[0])
    if source.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    np.testing.assert_allclose(read_dicom(Path(path)), expected, rtol=0, atol=1e-6)


def test_jpeg_baseline_is_what_libjpeg_decodes(tmp_path):
    smooth = np.add.outer(np.arange(40), np.arange(48)).astype(np.uint8)
    np.testing.assert_allclose(
        read_dicom(write(tmp_path / "grey.dcm", smooth, uid.JPEGBaseline8Bit)), spread(smooth), rtol=0, atol=3 / 87
    )
    colour = np.stack([smooth, 255 - smooth, smooth // 2], axis=-1)
    shown = read_dicom(
        write(tmp_path / "c.dcm", colour, uid.JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422")
    )
    assert (shown.dtype, shown.shape) == (np.uint8, colour.shape)
    assert np.abs(shown.astype(int) - colour).max() <= 6


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("SC_rgb_jpeg_gdcm.dcm", 0),  # JPEG lossless
        ("SC_rgb_gdcm_KY.dcm", 0),  # JPEG 2000
        ("SC_rgb_rle_16bit.dcm", 0),
        ("SC_rgb_rle_32bit.dcm", 0),
        ("SC_rgb_jls_lossy_sample.dcm", 2),
        ("SC_rgb_dcmtk_+eb+cr.dcm", 1),  # JPEG baseline of RGB
        ("SC_rgb_jpeg_dcmtk.dcm", 6),  # and of YBR_FULL
        ("SC_rgb_dcmtk_+eb+cy+s2.dcm", 6),  # and of YBR_FULL_422
        ("SC_ybr_full_422_uncompressed.dcm", 6),
    ],
)
def test_one_picture_in_colour_however_it_is_stored(name, most):
    shown, expected = (read_dicom(Path(get_testdata_file(file, download=False))) for file in (name, "SC_rgb_rle.dcm"))
    levels = shown if shown.dtype == np.uint8 else shown * 255.0
    assert (expected.dtype, shown.shape) == (np.uint8, expected.shape)
    assert np.abs(levels - expected.astype(float)).max() <= most + 1e-4


def test_jpeg_2000_in_every_interpretation_that_can_be_written(tmp_path):
    """YBR_RCT is reversible, YBR_ICT and what is cut to a rate are not."""

    def saved(values, syntax, **elements):
        header = dataset(values, **elements)
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        header.compress(syntax, **({"j2k_cr": [1.2]} if syntax == uid.JPEG2000 else {}))
        header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        assert dcmread(tmp_path / "a.dcm").PhotometricInterpretation == elements["PhotometricInterpretation"]
        return read_dicom(tmp_path / "a.dcm")

    assert np.array_equal(saved(COLOUR, uid.JPEG2000Lossless, PhotometricInterpretation="YBR_RCT"), COLOUR)
    for interpretation in ("YBR_ICT", "RGB"):
        shown = saved(COLOUR, uid.JPEG2000, PhotometricInterpretation=interpretation)
        assert np.abs(shown.astype(int) - COLOUR).max() <= 12
    shown = saved(TWELVE, uid.JPEG2000, PhotometricInterpretation="MONOCHROME1", **BITS)
    np.testing.assert_allclose(shown, 1 - spread(TWELVE), rtol=0, atol=0.01)


def test_monochrome1_is_inverted(tmp_path):
    path = write(tmp_path / "a.dcm", TWELVE, PhotometricInterpretation="MONOCHROME1")
    close(read_dicom(path), 1 - spread(TWELVE))


def test_what_lies_above_the_bits_stored_is_not_looked_at(tmp_path):
    overlay = RNG.integers(0, 16, TWELVE.shape).astype(np.uint16) << 12
    close(read_dicom(write(tmp_path / "a.dcm", TWELVE | overlay, **BITS)), spread(TWELVE))
    signed = (TWELVE.astype(np.int16) << 4) >> 4  # 12 bits, the highest of them the sign
    values = (signed.astype(np.uint16) & 0x0FFF) | overlay
    close(read_dicom(write(tmp_path / "b.dcm", values, PixelRepresentation=1, **BITS)), spread(signed))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless], ids=["native", "compressed"])
def test_windows_are_those_of_the_standard(tmp_path, function, syntax):
    """Against PS3.3 C.11.2.1.2 and C.11.2.1.3, on rescaled values; the first of several windows counts."""
    elements = {"RescaleSlope": 0.5, "RescaleIntercept": -300, "WindowCenter": [200, 1], "WindowWidth": [700, 2]}
    elements |= {"VOILUTFunction": function} if function else {}
    shown = read_dicom(write(tmp_path / "a.dcm", SIGNED, syntax, **elements))
    x, c, w = SIGNED * 0.5 - 300, 200, 700
    if function == "SIGMOID":
        expected = 1 / (1 + np.exp(-4 * (x - c) / w))
    elif function == "LINEAR_EXACT":
        expected = np.clip((x - c) / w + 0.5, 0, 1)
    else:
        expected = np.clip((x - (c - 0.5)) / (w - 1) + 0.5, 0, 1)
    close(shown, expected)


def test_a_window_of_width_one_is_a_threshold(tmp_path):
    shown = read_dicom(write(tmp_path / "a.dcm", TWELVE, WindowCenter=2000, WindowWidth=1))
    close(shown, (TWELVE > 1999.5).astype(float))


def test_the_callers_window_comes_first(tmp_path):
    path = write(tmp_path / "a.dcm", SIGNED, RescaleSlope=2, RescaleIntercept=5, WindowCenter=0, WindowWidth=10)
    close(read_dicom(path, (-1000, 3000)), np.clip((SIGNED * 2.0 + 5 + 1000) / 4000, 0, 1))


def table(first, entries, bits, as_bytes=""):
    """`as_bytes`: the dtype of words that are written as they are."""
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item.LUTData = np.asarray(entries, as_bytes).tobytes() if as_bytes else [int(entry) for entry in entries]
    item["LUTData"].VR = "OW" if as_bytes else "US"
    return item


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(("syntax", "order"), [(uid.ImplicitVRLittleEndian, "<u2"), (uid.ExplicitVRBigEndian, ">u2")])
def test_voi_lookup_tables(tmp_path, bits, as_bytes, syntax, order):
    entries = RNG.integers(0, 2**bits, 1000)
    lookup = table(500, entries, bits, order if as_bytes else "")
    elements = {"VOILUTSequence": [lookup], "WindowCenter": 1, "WindowWidth": 2}
    shown = read_dicom(write(tmp_path / "a.dcm", TWELVE, syntax, **elements))
    close(shown, entries[np.clip(TWELVE.astype(int) - 500, 0, 999)] / (2**bits - 1))


def test_modality_lookup_tables(tmp_path):
    entries = np.arange(4096)[::-1] * 3
    path = write(tmp_path / "a.dcm", TWELVE, ModalityLUTSequence=[table(0, entries, 16)], RescaleSlope=9)
    close(read_dicom(path, (0, 4095 * 3)), entries[TWELVE] / (4095 * 3))


def test_a_constant_image_is_black(tmp_path):
    assert not read_dicom(write(tmp_path / "a.dcm", np.full((8, 8), 77, np.uint16))).any()


def test_colour_interpretations(tmp_path):
    planar = np.ascontiguousarray(COLOUR.transpose(2, 0, 1)).tobytes()
    path = write(tmp_path / "planar.dcm", COLOUR, PlanarConfiguration=1, PixelData=planar)
    assert np.array_equal(read_dicom(path), COLOUR)
    grey = np.repeat(EIGHT[..., None], 3, axis=2)
    ybr = np.dstack([EIGHT, np.full_like(EIGHT, 128), np.full_like(EIGHT, 128)])
    path = write(tmp_path / "ybr.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    assert np.array_equal(read_dicom(path), grey)
    deep = RNG.integers(0, 4096, (9, 7, 3)).astype(np.uint16)
    close(read_dicom(write(tmp_path / "deep.dcm", deep, **BITS)), deep / 4095)
    path = Path(get_testdata_file("examples_palette.dcm", download=False))
    source = dcmread(path)
    shown = read_dicom(path)
    red = np.frombuffer(source.RedPaletteColorLookupTableData, "<u2")[source.pixel_array]
    assert shown.shape == (*source.pixel_array.shape, 3)
    close(shown[..., 0] if shown.dtype == np.float32 else shown[..., 0] / np.float32(255), red / 65535)
    with pytest.raises(ShardError, match="is in colour, and a window is for grey values"):
        read_dicom(path, (0, 1))


def without(*names):
    def change(header):
        for name in names:
            delattr(header, name)

    return change


def setting(**elements):
    def change(header):
        for name, value in elements.items():
            setattr(header, name, value)

    return change


def compressed_otherwise(syntax, values):
    """A frame of other values than the header describes."""

    def change(header):
        other = dataset(values)
        other.file_meta = FileMetaDataset()
        other.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        other.compress(syntax)
        header.PixelData = other.PixelData

    return change


def with_bytes(edit):
    def change(header):
        [frame] = generate_frames(header.PixelData, number_of_frames=1)
        header.PixelData = encapsulate([edit(frame)])

    return change


J2K, RLE, JPEG = uid.JPEG2000Lossless, uid.RLELossless, uid.JPEGBaseline8Bit
FAULTS = {
    "no pixel data": (uid.ExplicitVRLittleEndian, without("PixelData"), "has no pixel data"),
    "empty pixel data": (uid.ExplicitVRLittleEndian, setting(PixelData=b""), "has no pixel data"),
    "two frames": (uid.ExplicitVRLittleEndian, setting(NumberOfFrames=2), "holds 2 frames; save the one you want"),
    "no rows": (uid.ExplicitVRLittleEndian, without("Rows"), "is cut short or damaged .*Rows"),
    "too little data": (uid.ExplicitVRLittleEndian, setting(Rows=36), "is cut short or damaged .*less than expected"),
    "giant sizes": (uid.ExplicitVRLittleEndian, setting(Rows=65535, Columns=65535), "declares 65535×65535 .* million"),
    "no sizes": (uid.ExplicitVRLittleEndian, setting(Rows=0), r"declares 33×0 \(w×h\) pixels"),
    "one bit": (uid.ExplicitVRLittleEndian, setting(BitsAllocated=1, BitsStored=1), "1 bits stored in 1 are not read"),
    "more stored than there are": (uid.ExplicitVRLittleEndian, setting(BitsStored=9), "9 bits stored in 8"),
    "unknown interpretation": (
        uid.ExplicitVRLittleEndian,
        setting(PhotometricInterpretation="CMYK"),
        "CMYK of 1 sample per pixel is not read",
    ),
    "colour of one sample": (
        uid.ExplicitVRLittleEndian,
        setting(PhotometricInterpretation="RGB"),
        "RGB of 1 sample per pixel",
    ),
    "slope not a number": (uid.ExplicitVRLittleEndian, setting(RescaleSlope=float("nan")), "RescaleSlope is nan"),
    "window of no width": (
        uid.ExplicitVRLittleEndian,
        setting(WindowCenter=1, WindowWidth=-4),
        "VOI function LINEAR of width -4 is not defined",
    ),
    "window of another kind": (
        uid.ExplicitVRLittleEndian,
        setting(WindowCenter=1, WindowWidth=4, VOILUTFunction="CUBIC"),
        "VOI function CUBIC",
    ),
    "half a lookup table": (
        uid.ExplicitVRLittleEndian,
        lambda header: (
            setattr(header, "VOILUTSequence", [table(0, range(9), 8)]),
            setattr(header.VOILUTSequence[0], "LUTDescriptor", [10, 0, 8]),
        ),
        "a lookup table of 9 entries",
    ),
    "larger JPEG 2000 inside": (
        J2K,
        compressed_otherwise(J2K, np.zeros((64, 64), np.uint8)),
        "its compressed image is 64×64×1 .* its header says 33×35×1",
    ),
    "giant JPEG 2000 inside": (
        J2K,
        with_bytes(lambda frame: frame[:8] + b"\0\1\0\0" * 2 + frame[16:]),
        "its compressed image is 65536×65536×1",
    ),
    "JPEG 2000 that begins elsewhere": (
        J2K,
        with_bytes(lambda frame: frame[:16] + b"\0\0\0\5" + frame[20:]),
        "its compressed image is 28×35×1",
    ),
    "JPEG 2000 of many components": (
        J2K,
        with_bytes(lambda frame: frame[:40] + b"\x40\0" + frame[42:]),
        "its compressed image is 33×35×16384",
    ),
    "no JPEG 2000": (J2K, with_bytes(lambda frame: b"GIF8" + frame[4:]), "no JPEG 2000 codestream"),
    "JPEG 2000 cut short": (J2K, with_bytes(lambda frame: frame[:30]), "is cut short or damaged"),
    "giant JPEG inside": (
        JPEG,
        with_bytes(lambda frame: frame.replace(b"\x08\0\x23\0\x21", b"\x08\xff\xff\xff\xff", 1)),
        "its compressed image is 65535×65535×1",
    ),
    "two JPEG frame headers": (
        JPEG,
        with_bytes(lambda frame: frame[:2] + b"\xff\xc0\0\x0b\x08\0\x23\0\x21\1\1\x11\0" + frame[2:]),
        "2 frame headers in one JPEG stream",
    ),
    "no JPEG": (JPEG, with_bytes(lambda frame: b"BM" + frame[2:]), "no JPEG stream"),
    "JPEG cut short": (JPEG, with_bytes(lambda frame: frame[:20]), "is cut short or damaged"),
    "RLE that expands": (RLE, with_bytes(lambda frame: frame + b"\x81\0" * 9999), "its RLE frame .* is longer than"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_files_that_are_refused(tmp_path, case):
    syntax, change, message = FAULTS[case]
    path = write(tmp_path / "bad.dcm", EIGHT, syntax, change)
    tracemalloc.start()
    with pytest.raises(ShardError, match=message) as caught:
        read_dicom(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert peak < 50e6


def test_other_transfer_syntaxes_are_refused(tmp_path):
    def mpeg(header):
        header.file_meta.TransferSyntaxUID = uid.MPEG2MPML

    path = write(tmp_path / "a.dcm", EIGHT, JPEG, mpeg)
    with pytest.raises(ShardError, match=r"its transfer syntax MPEG2 .* is not read"):
        read_dicom(path)


def test_files_that_are_no_dicom(tmp_path):
    for name, data in [("empty.dcm", b""), ("text.dcm", b"x" * 200), ("zip.dcm", b"PK" + bytes(200))]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ShardError, match=f"{name}: is not a DICOM file"):
            read_dicom(tmp_path / name)
    (tmp_path / "head.dcm").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(ShardError, match=r"head.dcm: has no Transfer Syntax UID \(0002,0010\) and does not read"):
        read_dicom(tmp_path / "head.dcm")
    with pytest.raises(ShardError, match=r"absent.dcm: No such file"):
        read_dicom(tmp_path / "absent.dcm")


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian, J2K, RLE, JPEG])
def test_a_file_cut_anywhere_is_refused(tmp_path, syntax):
    original = write(tmp_path / "a.dcm", EIGHT, syntax).read_bytes()
    cut = tmp_path / "cut.dcm"
    for size in np.linspace(0, len(original) - 20, 40).astype(int):
        cut.write_bytes(original[:size])
        with pytest.raises(ShardError, match=r"cut.dcm: "):
            read_dicom(cut)


def test_what_a_deflated_file_inflates_to_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(parsing, "MAX_BYTES", 1 << 20)
    path = write(tmp_path / "a.dcm", EIGHT, uid.DeflatedExplicitVRLittleEndian)
    raw = path.read_bytes()
    start = 144 + dcmread(path).file_meta.FileMetaInformationGroupLength
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeezer.compress(bytes(300 << 20)) + squeezer.flush()
    path.write_bytes(raw[:start] + bomb)
    tracemalloc.start()
    with pytest.raises(ShardError, match="its deflated data set inflates to more than 1 MiB"):
        read_dicom(path)
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()
    monkeypatch.setattr(parsing, "MAX_BYTES", 100)
    with pytest.raises(ShardError, match="is larger than 0 MiB"):
        read_dicom(path)


def test_lengths_and_depths_that_are_not_true(tmp_path):
    path = write(tmp_path / "a.dcm", EIGHT)
    raw, original = path.read_bytes(), read_dicom(path)
    at = raw.index(b"\xe0\x7f\x10\x00OB")
    path.write_bytes(raw[: at + 8] + (0xFFFFFFF0).to_bytes(4, "little") + raw[at + 12 :])  # 4 GiB of pixels
    tracemalloc.start()
    assert np.array_equal(read_dicom(path), original)  # what is there is enough
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    start = raw.index(b"\x08\x00\x16\x00")
    path.write_bytes(raw[:start] + bytes(80_000_000))  # ten million empty elements
    with pytest.raises(ShardError, match="more than 10000 elements"):
        read_dicom(path)
    nested = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" * 20_000
    path.write_bytes(raw[:start] + b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + nested + raw[start:])
    with pytest.raises(ShardError, match=r"a.dcm: "):
        read_dicom(path)


def test_without_the_extra_the_error_says_what_to_install(tmp_path):
    write(tmp_path / "a.dcm", EIGHT)
    code = """
        import sys
        sys.modules["pydicom"] = None
        from pathlib import Path
        from egal_shards.images import read_image
        read_image(Path(sys.argv[1]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.dcm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "a.dcm: DICOM files need an extra: pip install 'egal-bench[dicom]'" in done.stderr.splitlines()[-1]
