# SPDX-License-Identifier: Apache-2.0
"""Many images in one figure.

All lie in a single axes that covers the figure: axes of its own for each would take ten times as
long to make and to draw as the image that they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

NOT_KNOWN = "#4A4A4A"
"""Outside the brain, or not predicted."""


@dataclass(frozen=True)
class FigureBox:
    """A part of a figure, inches from its left and its upper edge."""

    left: float
    top: float
    width: float
    height: float

    def around(self, picture: np.ndarray, sizes: Sequence[float] | np.ndarray) -> FigureBox:
        """Return the largest box inside that is as tall as a picture is: upper, centred."""
        tall, wide = picture.shape[:2] * np.asarray(sizes, float)[::-1]
        scale = min(self.width / wide, self.height / tall)
        left = self.left + (self.width - scale * wide) / 2
        return FigureBox(left, self.top, scale * wide, scale * tall)


def cells(
    box: FigureBox, n_rows: int, widths: Sequence[float], gap: float = 0.08
) -> list[list[FigureBox]]:
    """Divide a box into rows of equal height and columns whose widths have given ratios."""
    share = (box.width - gap * (len(widths) - 1)) / sum(widths)
    lefts = box.left + np.cumsum([0.0, *(share * width + gap for width in widths[:-1])])
    height = (box.height - gap * (n_rows - 1)) / n_rows
    return [
        [
            FigureBox(float(left), box.top + row * (height + gap), share * width, height)
            for left, width in zip(lefts, widths, strict=True)
        ]
        for row in range(n_rows)
    ]


class Panels:
    """A figure of images and words.

    Parameters
    ----------
    width, height : float
        Inches.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)

    def image(
        self,
        cell: FigureBox,
        picture: np.ndarray,
        sizes: Sequence[float] | np.ndarray,
        **options: Any,
    ) -> AxesImage:
        """Show a picture (B, A) with its first row at the bottom; `sizes` (2,) are of its pixels.

        Options are ``cmap``, ``vmin``, ``vmax`` and ``interpolation``.
        """
        box = cell.around(picture, sizes)
        limits = {name: options.pop(name, None) for name in ("vmin", "vmax")}
        shown = AxesImage(
            self.axes, origin="lower",
            extent=(box.left, box.left + box.width, box.top + box.height, box.top),
            **({"cmap": "gray"} | options),
        )  # fmt: skip
        shown.set_data(picture)
        shown.set_cmap(shown.get_cmap().with_extremes(bad=NOT_KNOWN))
        shown.set_clim(**limits)
        self.axes.add_image(shown)
        return shown

    def lines(
        self,
        cell: FigureBox,
        lines: Sequence[np.ndarray],
        shape: Sequence[int],
        sizes: Sequence[float] | np.ndarray,
        **options: Any,
    ) -> None:
        """Draw lines (K, 2) on the picture of a cell: in its pixels, across and up, from 0 on.

        The picture's `shape` and `sizes` are those of :meth:`image`.
        """
        box = cell.around(np.empty(shape), sizes)
        scale = np.array([box.width, -box.height]) / shape[1::-1]
        corner = np.array([box.left, box.top + box.height])
        drawn = LineCollection(
            [corner + (line + 0.5) * scale for line in lines], linewidths=1.1, **options
        )
        self.axes.add_collection(drawn, autolim=False)  # which sets a clip of its own
        drawn.set_clip_path(
            Rectangle((box.left, box.top), box.width, box.height, transform=self.axes.transData)
        )

    def title(self, cell: FigureBox, words: str, *, middle: bool = True) -> None:
        """Write above a cell."""
        left = cell.left + cell.width / 2 if middle else cell.left
        self.axes.text(
            left, cell.top - 0.06, words, ha="center" if middle else "left", va="bottom",
            fontsize="large",
        )  # fmt: skip

    def label(self, cell: FigureBox, words: str, **font: Any) -> None:
        """Write upwards before a cell."""
        self.axes.text(
            cell.left - 0.06, cell.top + cell.height / 2, words, rotation=90, ha="right",
            va="center", multialignment="center", **font,
        )  # fmt: skip

    def plot(self, cell: FigureBox) -> Axes:
        """Give a cell axes of its own, with ticks."""
        bottom = self.height - cell.top - cell.height
        left, width = cell.left / self.width, cell.width / self.width
        return self.figure.add_axes((left, bottom / self.height, width, cell.height / self.height))
