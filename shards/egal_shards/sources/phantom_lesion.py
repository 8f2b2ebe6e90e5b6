"""The lesion that decides the class, the marker that must not decide it, and the ROI of the simulated expert."""

from dataclasses import dataclass

import numpy as np

from egal_shards.sources.phantom_anatomy import Anatomy, Rng, field, grid, inside, norm

# Letters of the marker, one per class. Each equals its mirror images, so flips as augmentation do not change it.
GLYPHS = tuple(
    np.array([[pixel == "#" for pixel in row] for row in rows.split()])
    for rows in (
        "##### ..#.. ..#.. ..#.. #####",
        ".###. #...# #...# #...# .###.",
        "#...# .#.#. ..#.. .#.#. #...#",
    )
)
HOMOGENEOUS, RIM, GRANULAR = range(3)  # lesion kinds, in the order of the classes


@dataclass(frozen=True)
class Lesion:
    """The place of a lesion: the pixels closest to its centre, as a fraction of the radius of its outline."""

    centre: np.ndarray  # [2] x, y
    outline: np.ndarray  # complex [H]: coefficients of harmonics 2, 3, … of the radius as a function of the angle
    pixels: int
    mask: np.ndarray  # bool [S,S], with `pixels` pixels
    depth: np.ndarray  # float32 [S,S]: 0 at the centre, 1 on the outline, infinite where no lesion may lie


def locate(centre: np.ndarray, outline: np.ndarray, pixels: int, allowed: np.ndarray) -> Lesion:
    """Return the star-shaped lesion of exactly `pixels` pixels around the centre.

    It lies in `allowed`, bool [S,S], and fills it where that has fewer pixels.
    """
    rows, columns = np.nonzero(allowed)
    x, y = grid(allowed.shape[0], (centre[0], centre[1]))
    x, y = x[0, columns], y[rows, 0]
    radius = norm(x, y)
    turn = (x + np.complex64(1j) * y) / np.maximum(radius, np.float32(1e-6))
    wave = np.zeros_like(turn)
    for coefficient in outline[::-1]:  # scheme of Horner
        wave = (wave + np.complex64(coefficient)) * turn
    distance = radius / np.maximum(1 + (wave * turn).real, np.float32(0.25))
    pixels = min(max(pixels, 1), distance.size)
    level = np.partition(distance, pixels - 1)[pixels - 1]
    depth = np.full(allowed.shape, np.inf, dtype=np.float32)
    depth[rows, columns] = distance / level
    return Lesion(centre, outline, pixels, depth <= 1, depth)


def place(patient: Rng, scan: Rng, kind: int, area: float, anatomy: Anatomy) -> Lesion:
    """Return a lesion of `area` (fraction of the image) in the organ.

    The patient decides its site, the scan its outline.
    """
    angle, reach = patient.uniform(0, 2 * np.pi), np.sqrt(patient.uniform())
    axes = np.array(anatomy.organ_axes)
    room = np.maximum(
        axes - 2.4 * np.sqrt(area / np.pi), 0
    )  # a circle of this area has radius 2·sqrt(area/π); 20 % more as a margin
    site = np.array(anatomy.organ_centre) + room * reach * np.array([np.cos(angle), np.sin(angle)])
    spread = scan.uniform(0.05, 0.13) if kind == GRANULAR else scan.uniform(0.02, 0.08)
    outline = spread * (scan.standard_normal(5) + 1j * scan.standard_normal(5)) * np.array([1, 1, 1, 0.8, 0.6])
    outline = outline if kind == GRANULAR else outline * np.array([1, 0.8, 0.4, 0.2, 0.1])
    centre = site + scan.normal(0, 0.015, 2)
    return locate(centre, outline, round(area * anatomy.organ.size), anatomy.organ)


def paint(scan: Rng, kind: int, lesion: Lesion, anatomy: Anatomy) -> np.ndarray:
    """Return the image of the anatomy, float32 [S,S], with the lesion in it.

    Kinds of lesions differ more in their pattern than in their mean intensity.
    """
    size = anatomy.image.shape[0]
    contrast, mottle = scan.uniform(0.13, 0.30), scan.uniform(0.15, 0.45)
    fine = field(
        scan, size, min(size, round(6 * size / np.sqrt(lesion.pixels)))
    )  # the size of the grains follows the size of the lesion
    if kind == RIM:
        rim = np.clip(1 - np.abs(lesion.depth - scan.uniform(0.75, 0.85)) / scan.uniform(0.3, 0.45), 0, 1)
        pattern = scan.uniform(-0.3, 0.4) + 1.5 * rim + mottle * fine
    else:
        pattern = 1 + (scan.uniform(0.55, 0.95) if kind == GRANULAR else mottle) * (fine - fine[lesion.mask].mean())
    edge = inside(lesion.depth - 1, size, scan.uniform(0.15, 0.35))
    tissue = anatomy.image[lesion.mask].mean()
    return anatomy.image + edge * (0.6 * (tissue - anatomy.image) + np.float32(contrast) * pattern)


def expert(rng: Rng, noise: float, lesion: Lesion, anatomy: Anatomy) -> np.ndarray:
    """Return the ROI of the simulated expert, bool [S,S], which is never empty.

    At noise 0 it is the lesion. Otherwise it is displaced, resized and redrawn in proportion to the noise. The random
    draws do not depend on the noise, so the ROI of a lesion degrades along one path.
    """
    if noise == 0:
        return lesion.mask
    angle, far, resize = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.4), rng.uniform(-0.6, 0.6)
    jitter = 0.12 * (rng.standard_normal(5) + 1j * rng.standard_normal(5))
    radius = 2 * np.sqrt(lesion.pixels / lesion.mask.size / np.pi)
    centre = lesion.centre + noise * far * radius * np.array([np.cos(angle), np.sin(angle)])
    pixels = round(lesion.pixels * float(np.exp(noise * resize)))
    return locate(centre, lesion.outline + noise * jitter, pixels, anatomy.body).mask


def marker(scan: Rng, glyph: int, size: int) -> np.ndarray:
    """Return the letter as bool [S,S], in one of the two upper corners."""
    side = max(5, round(0.11 * size))
    rows = (2 * np.arange(side) + 1) * 5 // (2 * side)
    letter = GLYPHS[glyph][np.ix_(rows, rows)]
    margin = size // 40
    left = margin if scan.integers(2) else size - margin - side
    drawn = np.zeros((size, size), dtype=bool)
    drawn[margin : margin + side, left : left + side] = letter
    return drawn
