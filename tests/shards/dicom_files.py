"""DICOM files as an X-ray unit writes them, in any transfer syntax that can be written here."""

import io

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid


def dataset(values, **elements):
    """Return the data set of u8, u16 or i16 [H,W] or u8 [H,W,3]; all bits are stored."""
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    header.Rows, header.Columns = values.shape[:2]
    header.SamplesPerPixel = 3 if values.ndim == 3 else 1
    header.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        header.PlanarConfiguration = 0
    header.BitsAllocated = header.BitsStored = 8 * values.dtype.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in elements.items():
        setattr(header, name, value)
    if "PixelData" not in elements:
        header.PixelData = values.tobytes() + bytes(values.nbytes % 2)
    header["PixelData"].VR = "OW" if header.BitsAllocated > 8 else "OB"
    return header


def write(path, values, syntax=ExplicitVRLittleEndian, change=None, **elements):
    """Save dataset(values, **elements) in a transfer syntax; `change` may alter it just before it is written."""
    if syntax == ExplicitVRBigEndian and values.dtype.itemsize > 1:
        elements = {"PixelData": values.astype(values.dtype.newbyteorder(">")).tobytes(), **elements}
    header = dataset(values, **elements)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    if syntax == JPEGBaseline8Bit:
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "JPEG", quality=95, subsampling=0)
        header.PixelData = encapsulate([stream.getvalue()])
        header["PixelData"].is_undefined_length = True
        header.file_meta.TransferSyntaxUID = syntax
    elif syntax.is_encapsulated:
        header.compress(syntax)
    if change:
        change(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(
        path, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, enforce_file_format=True
    )
    return path


def spread(values):
    """Return values scaled to 0…1 from their minimum to their maximum, in float64."""
    values = values.astype(np.float64)
    return (values - values.min()) / (values.max() - values.min())
