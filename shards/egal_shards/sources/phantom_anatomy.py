"""Drawn anatomy without a lesion: a brain slice or a chest radiograph.

The unit of length is half a side of the image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Rng = np.random.Generator


@dataclass(frozen=True)
class Anatomy:
    """A healthy image, and the region in which a lesion may lie."""

    image: np.ndarray  # float32 [S,S], roughly 0 to 1, without noise
    body: np.ndarray  # bool [S,S], head or thorax; never in the corners of the marker
    organ: np.ndarray  # bool [S,S], brain or one lung
    organ_centre: tuple[float, float]  # x, y
    organ_axes: tuple[float, float]  # half-axes of an ellipse inside the organ


def grid(size: int, centre: tuple[float, float] = (0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """Return x [1,S] and y [S,1], float32: the centres of the pixels relative to `centre`.

    The image spans -1 to 1, and y points down.
    """
    axis = (2 * np.arange(size, dtype=np.float32) + 1) / np.float32(size) - 1
    return axis[None, :] - np.float32(centre[0]), axis[:, None] - np.float32(centre[1])


def inside(distance: np.ndarray, size: int, softness: float = 0.03) -> np.ndarray:
    """Return 1 where distance < 0 and 0 where distance > 0, with a linear edge between.

    The edge is `softness` wide, but at least one and a half pixels.
    """
    return np.clip(0.5 - distance / np.float32(max(softness, 3 / size)), 0, 1)


@lru_cache(maxsize=64)
def _spline(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the four knots [4,S] around every pixel, and their uniform cubic B-spline weights, float32 [4,S]."""
    position = (np.arange(size) + 0.5) * cells / size
    first = position.astype(np.int64)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    return first + np.arange(4)[:, None], weights.astype(np.float32)


def field(rng: Rng, size: int, cells: int) -> np.ndarray:
    """Return a smooth random field float32 [S,S] of roughly zero mean and unit variance, with `cells` knots per side.

    Sums are taken by einsum, since those of BLAS can depend on the number of threads.
    """
    near, weights = _spline(size, cells)
    knots = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    columns = np.einsum("kx,kxy->yx", weights, knots[near])  # [cells+3,S]
    return np.float32(2.1) * np.einsum("ky,kyx->yx", weights, np.ascontiguousarray(columns)[near])


def norm(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Euclidean norm. Unlike np.hypot, which is slower, it does not guard against overflow."""
    return np.sqrt(x * x + y * y)


def ridges(noise: np.ndarray, width: float) -> np.ndarray:
    """Return winding lines: 1 at the zero crossings of a random field, falling to 0 at |noise| = width."""
    return np.clip(1 - np.abs(noise) / np.float32(width), 0, 1)


def brain(patient: Rng, scan: Rng, size: int) -> Anatomy:
    """Return an axial brain slice: scalp, skull, folded cortex, white matter, ventricles, deep nuclei."""
    folds, cortex, sway = field(patient, size, 16), field(patient, size, 7), field(patient, size, 4)
    half_w, half_h = patient.uniform(0.80, 0.86), patient.uniform(0.93, 0.97)
    horn_w, horn_h, tilt = patient.uniform(0.07, 0.13), patient.uniform(0.24, 0.36), patient.uniform(0.15, 0.35)
    shift = scan.normal(0, 0.012, 2)
    angle, zoom = scan.normal(0, 0.035), scan.uniform(0.96, 1.0)
    x0, y0 = grid(size, (shift[0], shift[1]))
    x = (x0 - np.float32(angle) * y0) / np.float32(zoom)
    y = (y0 + np.float32(angle) * x0) / np.float32(zoom)

    head = norm(x / half_w, y / half_h)  # 1 on the skin
    matter = head + 0.045 * cortex
    side = np.abs(x + 0.012 * sway)
    white = inside(matter - 0.72, size, 0.12) * inside(0.07 - side, size, 0.06)
    sulci = ridges(folds, 0.5) * inside(0.58 - matter, size, 0.2)
    fissure = inside(side - 0.012, size) * inside(0.34 - np.abs(y + 0.03), size, 0.1)
    horn_x, horn_y = side - horn_w - tilt * np.square(y + 0.02) * 1.6, y + 0.02
    ventricles = inside(norm(horn_x / (0.55 * horn_w), horn_y / horn_h) - 1, size, 0.35)
    nuclei = inside(norm((side - 0.30) / 0.12, (y - 0.06) / 0.19) - 1, size, 0.5)

    tissue = 0.40 + 0.14 * white - 0.10 * nuclei * white + 0.015 * sway
    tissue = tissue - 0.22 * sulci * (1 - 0.5 * white)
    tissue = tissue * (1 - 0.75 * fissure) * (1 - (0.70 + scan.uniform(0, 0.1)) * ventricles)
    brain_edge = inside(head - 0.86, size)
    image = 0.10 * inside(head - 0.95, size) + (tissue - 0.10) * brain_edge
    image += 0.45 * (inside(head - 1.0, size) - inside(head - 0.94, size))
    return Anatomy(
        image=image,
        body=head < 1.0,
        organ=head < 0.86,
        organ_centre=(float(shift[0]), float(shift[1])),
        organ_axes=(0.86 * zoom * half_w, 0.86 * zoom * half_h),
    )


def chest(patient: Rng, scan: Rng, size: int) -> Anatomy:
    """Return a frontal chest radiograph: shoulders, two lungs, heart, mediastinum, ribs, clavicles, vessels."""
    vessels, sway = field(patient, size, 14), field(patient, size, 4)
    width, apex, base = patient.uniform(0.31, 0.35), patient.uniform(0.60, 0.66), patient.uniform(0.60, 0.70)
    heart_w, spacing = patient.uniform(0.28, 0.36), patient.uniform(0.17, 0.20)
    sick = patient.choice((-1.0, 1.0))  # side of the lung with the lesion
    shift, breath = scan.normal(0, 0.012, 2), scan.uniform(0.94, 1.0)
    x, y = grid(size, (shift[0], shift[1]))
    side = np.abs(x) + 0.010 * sway
    middle, half = np.float32((base - apex) / 2), np.float32((base + apex) / 2 * breath)
    along = (y - middle) / half  # -1 apex, 1 base
    across = (side - 0.43 - 0.04 * along) / (width * (1 + 0.20 * along))
    lung = np.square(across) + np.where(along < 0, np.square(along), np.square(np.square(along)))  # 1 on the pleura
    heart = norm((x - 0.15 - 0.08 * y) / heart_w, (y - 0.30) / 0.27)
    shoulder = 0.35 * x * x - 0.74 - 0.40 * np.exp(-np.square(x / 0.22))  # the shoulders rise into the neck
    body = inside(shoulder - y, size) * inside(np.abs(x) - 0.97, size)

    air = inside(lung - 1, size, 0.12)
    image = 0.05 + (0.60 + 0.02 * sway) * body - (0.42 + 0.03 * along) * air
    image += 0.22 * inside(heart - 1, size, 0.25) * air + 0.10 * inside(np.abs(x) - 0.10, size, 0.08) * body
    hilum = np.clip(1 - norm((side - 0.17) / 0.42, (y - 0.02) / 0.55), 0, 1)
    image += 0.22 * ridges(vessels, 0.55) * hilum * air
    cage = inside(lung - 1.35, size, 0.3) * inside(0.16 - side, size, 0.1)
    back = np.clip(np.cos((y + 0.35 * side * (1 - side)) * np.float32(2 * np.pi / spacing)) - 0.2, 0, 1)
    front = np.clip(np.cos((y - 0.55 * side + 0.06) * np.float32(2 * np.pi / (1.3 * spacing))) - 0.5, 0, 1)
    image += (0.12 * back + 0.09 * front) * cage
    collar = np.abs(y + 0.60 + 0.10 * (side - 0.2)) - 0.028
    image += 0.13 * inside(collar, size) * inside(np.abs(side - 0.42) - 0.30, size, 0.1)
    image -= 0.12 * inside(np.abs(x - 0.01) - 0.04, size, 0.05) * inside(y + 0.25, size, 0.2) * body
    return Anatomy(
        image=image,
        body=body > 0.5,
        organ=(lung < 1) & (x * sick > 0),
        organ_centre=(float(shift[0] + sick * 0.43), float(shift[1] + middle)),
        organ_axes=(0.9 * width, 0.85 * float(half)),
    )


ANATOMIES: dict[str, Callable[[Rng, Rng, int], Anatomy]] = {"brain": brain, "chest": chest}
