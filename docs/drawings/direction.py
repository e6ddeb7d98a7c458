# SPDX-License-Identifier: Apache-2.0
"""From the reference to the volume."""

import numpy as np
from head import GREY, INK, ORANGE, head, limits, panels, turned

DEGREES, SHIFT = -25.0, np.array([30.0, -10.0])

(axis,) = panels(1, [""])
left, right = np.array([-150.0, 0.0]), np.array([150.0, 0.0])
for center in (left, right):
    x, y = center
    axis.plot(x + np.array([-1, 1, 1, -1, -1]) * 125, y + np.array([-1, -1, 1, 1, -1]) * 125,
              color=GREY, lw=0.8)  # fmt: skip
head(axis, left)
head(axis, right, alpha=0.2)
head(axis, right + SHIFT, DEGREES)
point = np.array([0.0, 60.0])
start, end = left + point, right + SHIFT + turned(point[None], DEGREES)[0]
axis.plot(*start, "s", color=ORANGE, ms=8)
axis.plot(*end, "o", color=ORANGE, ms=8)
axis.annotate("", end, start, arrowprops={
    "arrowstyle": "-|>", "color": ORANGE, "lw": 2, "connectionstyle": "arc3,rad=-0.25",
    "mutation_scale": 16, "shrinkA": 6, "shrinkB": 6,
})  # fmt: skip
axis.text(0, 134, "M", color=ORANGE, fontsize=15, ha="center", weight="bold")
axis.text(start[0], start[1] - 26, "x\na voxel of the\ncorrected image", color=INK, ha="center",
          va="top", fontsize=9)  # fmt: skip
axis.text(end[0], end[1] - 22, "M x\nis read here", color=INK, ha="center", va="top", fontsize=9)
axis.text(*(left - [0, 142]), "reference", color=INK, ha="center")
axis.text(*(right - [0, 142]), "original volume i", color=INK, ha="center")
limits(axis, 285, 155)
