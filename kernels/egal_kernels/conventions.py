"""The names of the conventions, and what each does between a class map and the map that meets the ROI."""

CONVENTIONS = {
    "grad-cam": "as pytorch-grad-cam: ReLU, min-max, bilinear resize, min-max again at full resolution",
}
