"""Help texts of the flags that several sources share."""

GROUP = (
    "column of groups (patients), each kept on one side of the split; or block:COLUMN:N, blocks of N consecutive ids"
)
DUP = "column of near-duplicate groups, each kept on one side of the split"
META = (
    "CSV file, relative to INPUT or absolute, with the columns image_id and any of orig_width, orig_height (pixels of "
    "the original), groups, near-duplicates"
)
MASK_ROI = (
    "the side of mask files that is the ROI: light (above 0), or dark (0) for masks with inverted colours. none: "
    "light, with an error if most masks look inverted"
)
WINDOW = (
    "LOW,HIGH: the pixel values to show as black and as white. Without it DICOM files use their own VOI window, or "
    "their minimum and maximum, and other files stay as they are"
)
