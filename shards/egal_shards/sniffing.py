"""What a file is, by its first bytes."""

HEAD = 512  # bytes that `describe` looks at

_SIGNATURES = (  # first bytes, what they announce, how to fix it
    (b"\x89PNG\r\n\x1a\n", "a PNG file", ""),
    (b"\xff\xd8\xff", "a JPEG file", ""),
    (b"II*\0", "a TIFF file", ""),
    (b"MM\0*", "a TIFF file", ""),
    (b"II+\0", "a TIFF file", ""),
    (b"MM\0+", "a TIFF file", ""),
    (b"BM", "a BMP file", ""),
    (b"GIF8", "a GIF file", "convert it to PNG"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file", "convert it to PNG"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 file", "convert it to PNG"),
    (b"\x93NUMPY", "a NumPy file", "convert it to PNG"),
    (b"\x89HDF", "an HDF5 file", "convert it to PNG"),
    (b"%PDF", "a PDF file", "convert it to PNG"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with: git lfs pull"),
)
_WEB_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body")


def describe(head: bytes) -> tuple[str, str]:
    """Return (what a file with these first bytes is, how to fix it); both are empty where nothing is recognised."""
    if not head:
        return "an empty file (0 bytes)", "copy or download it again"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_WEB_PAGES) or b"<html" in text:
        return "a web page (HTML)", "download the file itself again"
    if head[128:132] == b"DICM":
        return "a DICOM file", "name it .dcm"
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it first"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP file", "convert it to PNG"
    if head[4:8] == b"ftyp":
        return "a HEIC, AVIF or video file", "convert it to PNG"
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return "a NIfTI volume", "save the slice as PNG"
    for signature, kind, fix in _SIGNATURES:
        if head.startswith(signature):
            return kind, fix
    if text.startswith((b"<?xml", b"<svg")):
        return "an XML or SVG file", "download or export the image itself"
    if _is_text(head):
        return "a text file", "download or export the image itself"
    return "", ""


def _is_text(head: bytes) -> bool:
    """Return whether the bytes are UTF-8 of printable characters; the last character may be cut."""
    text = head.decode(errors="ignore")
    is_utf8 = len(text.encode()) >= len(head) - 3
    return is_utf8 and all(character.isprintable() or character in "\t\r\n" for character in text)
