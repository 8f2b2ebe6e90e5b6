"""`acquire` written again from the definitions: one image, one pixel at a time, in Python floats (binary64)."""

import math
from dataclasses import dataclass


@dataclass
class Truth:
    logits: list[float]
    entropy: float
    cam: list[list[float]]  # H×W, normalised
    intersection: int
    cam_area: int
    roi_area: int
    soft_intersection: float
    soft_area: float
    condition: float  # largest Σ|α_c·A_c| over the range of the rectified class map: cancellation in the class map
    resized_range: float  # of the resized map, before the last min-max

    def cam_error(self, channels: int, u: float) -> float:
        """Return a bound on the rounding error of a pixel of the normalised map, computed with unit roundoff u."""
        low = (
            2 * (channels + 3) * u * self.condition + 4 * u
        )  # value and minimum of a sum of C products, then a quotient
        return 2 * (2 * low + 8 * u) / (self.resized_range + 1e-7)

    def near(self, threshold: float, margin: float) -> int:
        """Return the number of pixels within `margin` of the threshold: only these can rounding move across it."""
        return sum(abs(value - threshold) <= margin for row in self.cam for value in row)


def linear_head(a, weight, bias):
    """Return the logits [K] of a linear head on global average pooling; a [C][h][w], weight [K][C]."""
    pooled = [math.fsum(v for row in channel for v in row) / (len(channel) * len(channel[0])) for channel in a]
    return [
        math.fsum([b, *(w * p for w, p in zip(row, pooled, strict=True))]) for row, b in zip(weight, bias, strict=True)
    ]


def entropy(logits):
    top = max(logits)
    e = [math.exp(z - top) for z in logits]
    p = [v / math.fsum(e) for v in e]
    return -math.fsum(v * math.log(v) for v in p if v > 0)


def min_max(image):
    low = min(map(min, image))
    high = max(map(max, image))
    return [[(v - low) / (1e-7 + (high - low)) for v in row] for row in image]


def bilinear(image, height, width):
    def source(i, size, n):  # half-pixel centres, clamped
        s = min(max((i + 0.5) * n / size - 0.5, 0.0), n - 1.0)
        first = int(s)
        return first, min(first + 1, n - 1), s - first

    out = []
    for y in range(height):
        y0, y1, fy = source(y, height, len(image))
        row = []
        for x in range(width):
            x0, x1, fx = source(x, width, len(image[0]))
            top = (1 - fx) * image[y0][x0] + fx * image[y0][x1]
            bottom = (1 - fx) * image[y1][x0] + fx * image[y1][x1]
            row.append((1 - fy) * top + fy * bottom)
        out.append(row)
    return out


def truth(a, alpha, logits, roi, threshold) -> Truth:
    """Return the fields of `Acquisition` for one image: a [C][h][w], alpha [C], logits [K], roi [H][W]."""
    h, w = len(a[0]), len(a[0][0])
    terms = [[[alpha[c] * a[c][i][j] for c in range(len(a))] for j in range(w)] for i in range(h)]
    relu = [[max(math.fsum(t), 0.0) for t in row] for row in terms]
    scale = max(math.fsum(map(abs, t)) for row in terms for t in row)
    spread = max(map(max, relu)) - min(map(min, relu))
    resized = bilinear(min_max(relu), len(roi), len(roi[0]))
    cam = min_max(resized)
    pairs = [(c, bool(r)) for cams, rois in zip(cam, roi, strict=True) for c, r in zip(cams, rois, strict=True)]
    return Truth(
        logits=list(logits),
        entropy=entropy(logits),
        cam=cam,
        intersection=sum(c >= threshold and r for c, r in pairs),
        cam_area=sum(c >= threshold for c, _ in pairs),
        roi_area=sum(r for _, r in pairs),
        soft_intersection=math.fsum(c for c, r in pairs if r),
        soft_area=math.fsum(c for c, _ in pairs) + sum(r for _, r in pairs),
        condition=scale / (spread + 1e-7),
        resized_range=max(map(max, resized)) - min(map(min, resized)),
    )
