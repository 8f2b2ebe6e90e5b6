"""The contact sheet: colours that differ from stains, and a legend that says what they mean."""

import numpy as np
import pytest
from PIL import Image

from egal_bench.querying.sheet import CAM_COLOUR, LEGEND, OPACITY, ROI_COLOUR, TILE, tile_of
from egal_shards.reader import Sample

STAINS = {"yellow": (230, 200, 60), "eosin": (235, 140, 180), "haematoxylin": (90, 60, 140), "DAB": (150, 95, 50)}


def sample(colour, roi=True):
    """Return a sample of one colour, whose ROI is its middle."""
    area = np.zeros((TILE, TILE), dtype=bool)
    area[60:100, 60:100] = roi
    image = np.broadcast_to(np.array(colour, np.uint8)[:, None, None], (3, TILE, TILE))
    return Sample("a", image, area, roi, 0, "a", "pool")


def test_grad_cam_is_more_opaque_where_it_is_higher():
    class_map = np.zeros((TILE, TILE), np.float32)
    class_map[:, 40:80], class_map[:, 80:] = 1.5, 3.0  # only the share of the maximum counts
    tile, ground = tile_of(sample((200, 100, 50), roi=False), class_map), np.array([200, 100, 50])
    for column, share in ((10, 0.0), (60, 0.5), (140, 1.0)):
        expected = ground + OPACITY * share * (np.array(CAM_COLOUR) - ground)
        np.testing.assert_allclose(tile[80, column], expected, atol=0.5)


def test_map_without_positive_part_leaves_the_image_unchanged():
    tile = tile_of(sample((200, 100, 50), roi=False), np.full((4, 4), -1.0))
    assert (tile == (200, 100, 50)).all()


@pytest.mark.parametrize("stain", STAINS)
def test_colours_stand_out_from_a_stain(stain):
    ground, tile = np.array(STAINS[stain], np.float64), tile_of(sample(STAINS[stain]), np.ones((4, 4)))
    assert (tile[60, 60:100] == ROI_COLOUR).all()
    assert (tile[59, 60:100] == 0).all()  # the rim
    assert np.linalg.norm(tile[80, 80] - ground) > 70
    assert np.linalg.norm(np.array(ROI_COLOUR) - ground) > 100


def test_sheet_begins_with_a_legend_of_both_colours(scored):
    legend = np.asarray(Image.open(scored / "contact_sheet.png"))[: LEGEND + 4]
    strongest = np.round(128 + OPACITY * (np.array(CAM_COLOUR) - 128))
    for colour in (ROI_COLOUR, strongest):
        assert (legend == colour).all(axis=2).any()
    assert (legend.min(axis=2) < 60).any()  # text
