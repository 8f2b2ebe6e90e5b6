"""The names of the conventions, and what each does between a class map and the map that meets the ROI."""

CONVENTIONS = {
    "grad-cam": "as pytorch-grad-cam: ReLU, min-max, bilinear resize, min-max again at full resolution",
    "torchcam": "as torchcam, its map resized bilinearly: ReLU, min-max, resize; resizing lowers the peak below 1",
    "monai": "as MONAI, but hot is 1 (its default inverts): ReLU, bilinear resize, min-max",
    "captum": "as Captum, which neither clips nor scales: bilinear resize, min-max of positive and negative values",
    "author": "as the code of the EG-AL paper: ReLU, bilinear resize, min-max",
}
