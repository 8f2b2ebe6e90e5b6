"""The transfer syntaxes that are read."""

DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
NATIVE = (IMPLICIT, EXPLICIT, "1.2.840.10008.1.2.2", DEFLATED)
RLE = "1.2.840.10008.1.2.5"
JPEG = tuple(f"1.2.840.10008.1.2.4.{i}" for i in (50, 51, 57, 70, 80, 81))  # baseline to lossless, JPEG-LS
JPEG2000 = tuple(f"1.2.840.10008.1.2.4.{i}" for i in (90, 91, 201, 202, 203))  # and high throughput
