"""The galleries for print: one file per gallery and width of a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from egal_bench.reports.galleries import coloured
from egal_bench.reports.print_figures import ONE_COLUMN, SETTINGS, TWO_COLUMNS, label, save

# inches, samples per strategy, and strategies with their Grad-CAM side by side
WIDTHS = {"one_column": (ONE_COLUMN, 2, 3), "two_columns": (TWO_COLUMNS, 4, 7)}
ROWS = 4  # strategies below each other; more would not fit a page
MARGIN, GAP, CAPTION = 0.2, 0.04, 0.3  # inches: at the left and the top, between images, below images with scores
OPACITY = 0.5  # of the Grad-CAM over its image
OUTLINE = "#00e5ff"
Groups = Sequence[tuple[str, Sequence[Mapping[str, Any]]]]


def draw_galleries(galleries: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """Write each gallery of `galleries.galleries` to `folder`, for both widths; return the names of the figures."""
    names = []
    for number, gallery in enumerate(galleries, 1):
        for suffix, (width, samples, strategies) in WIDTHS.items():
            groups, bought = gallery["groups"], gallery["kind"] == "bought"
            with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
                sheet = _bought(groups, width, samples) if bought else _tested(groups, width, samples, strategies)
            names.append(f"gallery_{number}_{gallery['kind']}_{suffix}")
            save(sheet.figure, folder, names[-1])
    return names


def _bought(groups: Groups, width: float, samples: int) -> _Sheet:
    """Return a sheet with a row per strategy: its purchases, with ROI, Grad-CAM and scores."""
    sheet = _Sheet(width, min(len(groups), ROWS), samples, CAPTION)
    for row, (name, own) in enumerate(groups[:ROWS]):
        sheet.name_row(row, name)
        for column, sample in enumerate(own[:samples]):
            sheet.draw(row, column, sample)
            sheet.caption(row, column, sample["scores"].replace(", D", ",\nD"))
    return sheet


def _tested(groups: Groups, width: float, samples: int, strategies: int) -> _Sheet:
    """Return a sheet with a row per test sample: image, ROI, and the Grad-CAM of each strategy."""
    columns = groups[:strategies]
    rows = min(samples, *(len(own) for _, own in columns))
    sheet = _Sheet(width, rows, 2 + len(columns), GAP)
    for column, name in enumerate(["image", "ROI", *(name for name, _ in columns)]):
        sheet.name_column(column, name)
    for row in range(rows):
        sheet.draw(row, 0, columns[0][1][row], cam=False, roi=False)
        sheet.draw(row, 1, columns[0][1][row], cam=False)
        for column, (_, own) in enumerate(columns, 2):
            sheet.draw(row, column, own[row])
    return sheet


class _Sheet:
    """A figure of square images in rows and columns, on a single axes whose unit is the inch.

    Args:
        width: inches.
        below: inches below each row.
    """

    def __init__(self, width: float, rows: int, columns: int, below: float) -> None:
        self.side, self.below = (width - MARGIN - GAP * columns) / columns, below
        self.height = MARGIN + rows * (self.side + below)
        self.figure = Figure(figsize=(width, self.height))
        self.axis = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, self.height))
        self.axis.set_axis_off()

    def draw(self, row: int, column: int, sample: Mapping[str, Any], *, cam: bool = True, roi: bool = True) -> None:
        """Draw the sample, with its Grad-CAM and the outline of its ROI."""
        left, bottom = self._corner(row, column)
        box = (left, left + self.side, bottom, bottom + self.side)
        self.axis.imshow(sample["pixels"], extent=box)
        if cam:
            self.axis.imshow(coloured(sample["map"]), extent=box, alpha=OPACITY, interpolation="bilinear")
        area = sample["area"]
        if roi and area is not None and area.any() and not area.all():
            self.axis.contour(area, [0.5], colors=OUTLINE, linewidths=0.6, extent=box, origin="upper")
        self.axis.set(xlim=(0, self.figure.get_figwidth()), ylim=(0, self.height), aspect="auto")

    def name_row(self, row: int, name: str) -> None:
        """Write the name of a strategy at the left of its row."""
        bottom = self._corner(row, 0)[1]
        self.axis.text(
            MARGIN / 2, bottom + self.side / 2, label(name, 24), rotation=90, ha="center", va="center", fontsize=6
        )

    def name_column(self, column: int, name: str) -> None:
        """Write what a column shows above it."""
        left = self._corner(0, column)[0]
        self.axis.text(
            left + self.side / 2, self.height - MARGIN / 2, label(name, 14), ha="center", va="center", fontsize=5
        )

    def caption(self, row: int, column: int, text: str) -> None:
        """Write a text below an image."""
        left, bottom = self._corner(row, column)
        self.axis.text(left + self.side / 2, bottom - 0.03, text, ha="center", va="top", fontsize=5)

    def _corner(self, row: int, column: int) -> tuple[float, float]:
        """Return the lower left corner of an image, in inches."""
        top = self.height - MARGIN - row * (self.side + self.below)
        return MARGIN + column * (self.side + GAP), top - self.side
