"""What the settings that several sources share mean, said once: the help of their flags."""

GROUP = "column of groups (patients) that no split cuts, or block:COLUMN:N, contiguous blocks of N ids"
DUP = "column of near-duplicate groups, kept on one side"
META = (
    "CSV, in INPUT or absolute, of image_id and any of orig_width, orig_height (pixels of the original), groups, "
    "near-duplicates"
)
WINDOW = (
    "LOW,HIGH: the values shown as black and as white. none: a DICOM file's own VOI window, or its minimum to maximum; "
    "other files as they are"
)
