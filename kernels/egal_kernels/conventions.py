"""The names of the conventions: what each does to a class map before it is compared with the ROI. Needs no PyTorch."""

CONVENTIONS = {
    "grad-cam": "as pytorch-grad-cam: ReLU, min-max, bilinear resize, min-max again at full resolution",
    "torchcam": "as torchcam, with its map resized bilinearly: ReLU, min-max, resize; resizing lowers the peak below 1",
    "monai": "as MONAI, but 1 is hot (by default MONAI inverts its map): ReLU, bilinear resize, min-max",
    "captum": "as Captum, which neither clips nor scales: bilinear resize, min-max of positive and negative values",
    "author": "as the code of the EG-AL paper: ReLU, bilinear resize, min-max",
}
