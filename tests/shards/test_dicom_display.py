"""How DICOM files are shown: lookup tables, padding, bit positions, inversion, against formulas in numpy."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from egal_shards import ShardError
from egal_shards.dicom import read_dicom
from egal_shards.notes import collected

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from shards.dicom_files import spread, write

RNG = np.random.default_rng(3)
TWELVE = RNG.integers(0, 4096, (37, 53)).astype(np.uint16)
HOUNSFIELD = RNG.integers(-1024, 3072, (33, 41)).astype(np.int16)
COLOUR = np.add.outer(np.arange(24), np.arange(32))[..., None] * np.array([3, 1, 2]) % 256
BITS = {"BitsStored": 12, "HighBit": 11}


def lookup_table(first, entries, bits, vr):
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item["LUTDescriptor"].VR = vr
    item.LUTData = [int(entry) for entry in entries]
    item["LUTData"].VR = "US"
    return item


ENTRIES = np.sort(RNG.integers(0, 256, 4096))
ENTRIES[-1] = 255
SHIFTED = (HOUNSFIELD.astype(int) + 1024).astype(np.uint16)
LUTS = {  # stored values, first input as the file writes it, its VR, other elements, the true first input
    "signed by rescale, VR SS": (SHIFTED, -1024, "SS", {"RescaleIntercept": -1024, "RescaleSlope": 1, **BITS}, -1024),
    "signed by rescale, VR US": (SHIFTED, 64512, "US", {"RescaleIntercept": -1024, "RescaleSlope": 1, **BITS}, -1024),
    "signed by rescale of 16 bits": (SHIFTED, 64512, "US", {"RescaleIntercept": -1024, "RescaleSlope": 1}, -1024),
    "signed data, VR SS": (HOUNSFIELD, -1024, "SS", {}, -1024),
    "signed data, VR US": (HOUNSFIELD, 64512, "US", {}, -1024),
    "above the stored range": (TWELVE, 5000, "US", {"RescaleIntercept": 4096, "RescaleSlope": 2, **BITS}, 5000),
    "unsigned and large": (TWELVE + np.uint16(40000), 41000, "US", {}, 41000),
}


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian], ids=["implicit", "explicit"]
)
@pytest.mark.parametrize("case", LUTS)
def test_voi_tables_begin_where_their_inputs_do(tmp_path, case, syntax):
    values, written, vr, elements, first = LUTS[case]
    path = write(tmp_path / "a.dcm", values, syntax, VOILUTSequence=[lookup_table(written, ENTRIES, 8, vr)], **elements)
    inputs = values * float(elements.get("RescaleSlope", 1)) + elements.get("RescaleIntercept", 0)
    expected = ENTRIES[np.clip(inputs - first, 0, 4095).astype(int)] / 255
    np.testing.assert_allclose(read_dicom(path), expected, rtol=0, atol=2e-7)


def test_a_modality_table_of_signed_data_begins_below_0(tmp_path):
    table = lookup_table(64512, np.arange(4096) * 4, 16, "US")
    path = write(tmp_path / "a.dcm", HOUNSFIELD, uid.ImplicitVRLittleEndian, ModalityLUTSequence=[table])
    np.testing.assert_allclose(read_dicom(path, (0, 16380)), (HOUNSFIELD + 1024) / 4095, rtol=0, atol=2e-7)


@pytest.mark.parametrize(("declared", "real"), [(16, 12), (16, 8), (12, 10), (8, 12), (10, 16)])
def test_voi_tables_are_as_bright_as_their_real_entries(tmp_path, declared, real):
    entries = np.arange(4096) * (2**real - 1) // 4095
    path = write(tmp_path / "a.dcm", TWELVE, VOILUTSequence=[lookup_table(0, entries, declared, "US")], **BITS)
    np.testing.assert_allclose(read_dicom(path), entries[TWELVE] / (2**real - 1), rtol=0, atol=2e-7)


@pytest.mark.parametrize("size", [256, 255])
def test_voi_tables_of_two_entries_in_a_word(tmp_path, size):
    entries = RNG.permutation(256)[:size].astype(np.uint8)
    table = lookup_table(0, entries, 8, "US")
    table.add_new("LUTData", "OW", entries.tobytes() + bytes(size % 2))
    eight = RNG.integers(0, 256, (20, 22)).astype(np.uint8)
    shown = read_dicom(write(tmp_path / "a.dcm", eight, VOILUTSequence=[table]))
    np.testing.assert_allclose(shown, entries[np.minimum(eight, size - 1)] / 255, rtol=0, atol=2e-7)


def padded(values, padding, limit=None, seed=0):
    """(values with padding in a third of the pixels, where it is)."""
    outside = np.random.default_rng(seed).random(values.shape) < 1 / 3
    ends = [padding] if limit is None else [padding, limit, (padding + limit) // 2]
    return np.where(outside, np.resize(ends, values.shape), values).astype(values.dtype), outside


PADDINGS = {  # values, padding, range limit, elements
    "high": (TWELVE, 65535, None, {}),
    "above the bits stored": (TWELVE, 65535, None, BITS),
    "low and signed": (HOUNSFIELD, -32768, None, {}),
    "a range": (HOUNSFIELD, -3000, -2000, {}),
    "a range upside down": (HOUNSFIELD, -2000, -3000, {}),
    "8 bits": ((TWELVE // 17).astype(np.uint8), 255, None, {}),
}


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless])
@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("case", PADDINGS)
def test_padding_is_black_and_no_measurement(tmp_path, case, interpretation, syntax):
    values, padding, limit, elements = PADDINGS[case]
    stored, outside = padded(values, padding, limit)
    elements = {**elements, "PhotometricInterpretation": interpretation, "PixelPaddingValue": padding}
    elements |= {"PixelPaddingRangeLimit": limit} if limit is not None else {}
    shown = read_dicom(write(tmp_path / "a.dcm", stored, syntax, **elements))
    inside = values[~outside].astype(float)
    expected = (values - inside.min()) / (inside.max() - inside.min())
    expected = np.where(outside, 0, 1 - expected if interpretation == "MONOCHROME1" else expected)
    np.testing.assert_allclose(shown, expected, rtol=0, atol=2e-7)


def test_saturated_pixels_are_no_padding(tmp_path):
    """Padding of 65535 among 12 bits: 4095 is a measurement, though their lower 12 bits are equal."""
    stored, outside = padded(TWELVE, 65535)
    stored[0, :5] = 4095
    outside[0, :5] = False
    shown = read_dicom(write(tmp_path / "a.dcm", stored, PixelPaddingValue=65535, **BITS))
    assert (shown[0, :5] == 1).all()
    assert not shown[outside].any()


def test_an_image_of_padding_alone_is_black(tmp_path):
    path = write(tmp_path / "a.dcm", np.full((9, 9), 7, np.uint16), PixelPaddingValue=7)
    assert not read_dicom(path).any()


@given(st.integers(1, 16), st.data())
@settings(deadline=None, max_examples=60)
def test_any_bits_that_end_at_any_high_bit(tmp_path_factory, stored, data):
    """Against Python's integers; bits outside the stored ones hold noise."""
    high = data.draw(st.integers(stored - 1, 15))
    signed = data.draw(st.booleans())
    words = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 1 << 16, (6, 7)).astype(np.uint16)
    words[0, :2] = 0, 0xFFFF
    elements = {"BitsStored": stored, "HighBit": high, "PixelRepresentation": int(signed)}
    shown = read_dicom(write(tmp_path_factory.mktemp("bits") / "a.dcm", words, **elements))
    bits = [(int(word) >> high + 1 - stored) & (1 << stored) - 1 for word in words.flat]
    values = np.array([bit - (1 << stored) * (signed and bit >> stored - 1) for bit in bits]).reshape(words.shape)
    np.testing.assert_allclose(shown, spread(values), rtol=0, atol=2e-7)


def test_a_high_bit_that_the_pixels_contradict_is_not_used(tmp_path):
    path = write(tmp_path / "a.dcm", TWELVE, BitsStored=12, HighBit=15)
    np.testing.assert_allclose(read_dicom(path), spread(TWELVE), rtol=0, atol=2e-7)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless])
def test_twelve_bits_at_the_top_of_sixteen(tmp_path, syntax):
    def move_up(header):
        header.BitsStored, header.HighBit = 12, 15

    path = write(tmp_path / "a.dcm", TWELVE << 4, syntax, move_up, WindowCenter=2048, WindowWidth=4096)
    np.testing.assert_allclose(read_dicom(path), np.clip((TWELVE - 2047.5) / 4095 + 0.5, 0, 1), rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("interpretation", "shape", "inverted", "told"),
    [
        ("MONOCHROME2", "INVERSE", True, True),
        ("MONOCHROME2", "IDENTITY", False, False),
        ("MONOCHROME1", "INVERSE", True, False),
        ("MONOCHROME1", "IDENTITY", True, False),
        ("MONOCHROME1", None, True, False),
    ],
)
def test_the_inverse_shape_is_one_inversion(tmp_path, interpretation, shape, inverted, told):
    elements = {"PhotometricInterpretation": interpretation, **({"PresentationLUTShape": shape} if shape else {})}
    with collected() as notes:
        shown = read_dicom(write(tmp_path / "a.dcm", TWELVE, **BITS, **elements))
    expected = 1 - spread(TWELVE) if inverted else spread(TWELVE)
    np.testing.assert_allclose(shown, expected, rtol=0, atol=2e-7)
    assert [("INVERSE" in note) for note in notes] == [True] * told


def replaced(path, old, new):
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    return path


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian], ids=["implicit", "explicit"]
)
def test_decimal_commas_are_points(tmp_path, syntax):
    elements = {"WindowCenter": "2048.5", "WindowWidth": "4000.25", "RescaleSlope": "1.5", "RescaleIntercept": "-10.5"}
    path = write(tmp_path / "a.dcm", TWELVE, syntax, VOILUTFunction="LINEAR_EXACT", **elements)
    for number in elements.values():
        replaced(path, number.encode(), number.replace(".", ",").encode())
    with collected() as notes:
        shown = read_dicom(path)
    expected = np.clip((TWELVE * 1.5 - 10.5 - 2048.5) / 4000.25 + 0.5, 0, 1)
    np.testing.assert_allclose(shown, expected, rtol=0, atol=2e-7)
    assert [note for note in notes if "decimal comma" in note] == notes != []


def test_a_number_that_is_none_is_named(tmp_path):
    path = replaced(write(tmp_path / "a.dcm", TWELVE, WindowCenter="2048.5", WindowWidth=10), b"2048.5", b"20,8,5")
    with pytest.raises(ShardError, match=r"a.dcm: .*WindowCenter is '20,8,5', not a number"):
        read_dicom(path)


def jpeg(pixels, colours, adobe=None, ids=None, jfif=False):
    """A baseline stream of three planes that are stored as they are, with these markers and component ids."""
    stream = io.BytesIO()
    rgb = Image.fromarray(pixels)
    if colours == "YCbCr":
        rgb.save(stream, "JPEG", quality=98, subsampling=0)
    else:
        rgb.save(stream, "JPEG", quality=98, subsampling=0, keep_rgb=True)
    data = stream.getvalue()
    at, kept = 2, [b"\xff\xd8"]
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segment = bytearray(data[at:end])
        if segment[1] == 0xC0 and ids:
            segment[10:19:3] = bytes(ids)
        if segment[1] not in (0xE0, 0xEE):
            kept.append(bytes(segment))
        at = end
    if adobe is not None:
        kept.insert(1, b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([adobe]))
    if jfif:
        kept.insert(1, b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0")
    scan = bytearray(data[at:])
    if ids:
        scan[5:11:2] = bytes(ids)
    return b"".join(kept) + bytes(scan)


STREAMS = {  # the colours in the stream, its markers; by libjpeg's rule
    "JFIF": ("YCbCr", {"jfif": True}),
    "Adobe 1": ("YCbCr", {"adobe": 1}),
    "Adobe 0": ("RGB", {"adobe": 0, "ids": (0, 1, 2)}),
    "Adobe 0 with the ids of YCbCr": ("RGB", {"adobe": 0, "ids": (1, 2, 3)}),
    "no marker, ids of YCbCr": ("YCbCr", {"ids": (1, 2, 3)}),
    "no marker, ids of RGB": ("RGB", {"ids": (82, 71, 66)}),
}


@pytest.mark.parametrize("interpretation", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("case", STREAMS)
def test_colours_are_those_of_the_jpeg_stream(tmp_path, case, interpretation, recwarn):
    colours, markers = STREAMS[case]
    pixels = COLOUR.astype(np.uint8)

    def insert(header):
        header.PixelData = encapsulate([jpeg(pixels, colours, **markers)])
        header.PhotometricInterpretation = interpretation

    path = write(tmp_path / "a.dcm", pixels, uid.JPEGBaseline8Bit, insert)
    with collected() as notes:
        shown = read_dicom(path)
    assert np.abs(shown.astype(int) - pixels).max() <= 12
    assert len(notes) == ((interpretation == "RGB") != (colours == "RGB"))
    assert not recwarn.list


@pytest.mark.parametrize("interpretation", ["RGB", "YBR_FULL"])
def test_a_stream_that_does_not_say_is_as_its_header(tmp_path, interpretation):
    pixels = COLOUR.astype(np.uint8)

    def insert(header):
        colours = "RGB" if interpretation == "RGB" else "YCbCr"
        header.PixelData = encapsulate([jpeg(pixels, colours, ids=(0, 1, 2))])
        header.PhotometricInterpretation = interpretation

    shown = read_dicom(write(tmp_path / "a.dcm", pixels, uid.JPEGBaseline8Bit, insert))
    assert np.abs(shown.astype(int) - pixels).max() <= 12


def box(kind, payload):
    return (8 + len(payload)).to_bytes(4, "big") + kind + payload


@pytest.mark.parametrize("last_box", ["length", "to the end", "long"])
def test_jpeg_2000_with_the_header_of_a_file(tmp_path, last_box):
    def wrap(header):
        [codestream] = generate_frames(header.PixelData, number_of_frames=1)
        codestream = codestream[: codestream.rindex(b"\xff\xd9") + 2]
        boxes = box(b"ihdr", b"\0\0\0\x25\0\0\0\x35\0\1\x0b\7\0\0") + box(b"colr", b"\1\0\0\0\0\0\x11")
        start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", boxes)
        last = {
            "length": box(b"jp2c", codestream),
            "to the end": b"\0\0\0\0jp2c" + codestream,
            "long": b"\0\0\0\1jp2c" + (16 + len(codestream)).to_bytes(8, "big") + codestream,
        }[last_box]
        header.PixelData = encapsulate([start + last])

    path = write(tmp_path / "a.dcm", TWELVE, uid.JPEG2000Lossless, wrap, **BITS)
    np.testing.assert_allclose(read_dicom(path), spread(TWELVE), rtol=0, atol=2e-7)


def test_a_jpeg_2000_file_without_codestream_is_refused(tmp_path):
    def empty(header):
        header.PixelData = encapsulate([box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")])

    path = write(tmp_path / "a.dcm", TWELVE, uid.JPEG2000Lossless, empty, **BITS)
    with pytest.raises(ShardError, match="a JPEG 2000 file without codestream"):
        read_dicom(path)
