"""DICOM files as an X-ray unit writes them, in any transfer syntax that can be written here."""

import io

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid


def dataset(values, **elements):
    """The data set of u8, u16 or i16 [H,W] or u8 [H,W,3]; all bits stored."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    made.Rows, made.Columns = values.shape[:2]
    made.SamplesPerPixel = 3 if values.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * values.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in elements.items():
        setattr(made, name, value)
    if "PixelData" not in elements:
        made.PixelData = values.tobytes() + bytes(values.nbytes % 2)
    made["PixelData"].VR = "OW" if made.BitsAllocated > 8 else "OB"
    return made


def write(path, values, syntax=ExplicitVRLittleEndian, change=None, **elements):
    """Save dataset(values, **elements) in a transfer syntax, `change`d at the very last."""
    if syntax == ExplicitVRBigEndian and values.dtype.itemsize > 1:
        elements = {"PixelData": values.astype(values.dtype.newbyteorder(">")).tobytes(), **elements}
    made = dataset(values, **elements)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    if syntax == JPEGBaseline8Bit:
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "JPEG", quality=95, subsampling=0)
        made.PixelData = encapsulate([stream.getvalue()])
        made["PixelData"].is_undefined_length = True
        made.file_meta.TransferSyntaxUID = syntax
    elif syntax.is_encapsulated:
        made.compress(syntax)
    if change:
        change(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(
        path, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, enforce_file_format=True
    )
    return path


def spread(values):
    """0…1 from minimum to maximum, in float64."""
    values = values.astype(np.float64)
    return (values - values.min()) / (values.max() - values.min())
