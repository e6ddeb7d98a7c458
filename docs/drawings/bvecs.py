# SPDX-License-Identifier: Apache-2.0
"""What a .bvec file tells of one and the same gradient, in three images."""

import numpy as np
from head import BLUE, GREY, INK, ORANGE, arrow, head, limits, panels, turned

from eddymotion.data.gradients import to_fsl

GRADIENT = np.array([0.8, 0.6, 0.0])  # RAS+


def affine(first, second):
    """Return the affine of an image with these axes in the plane."""
    matrix = np.eye(4)
    matrix[:2, 0], matrix[:2, 1] = first, second
    return matrix


oblique = turned(np.eye(2), 20.0)
cases = {
    "LAS image: det < 0": affine([-1, 0], [0, 1]),
    "RAS image: det > 0": affine([1, 0], [0, 1]),
    "oblique RAS image: det > 0": affine(*oblique),
}
for axis, (_, matrix) in zip(panels(3, cases, height=3.8), cases.items(), strict=True):
    head(axis, alpha=0.25)
    for column, name in ((0, "i"), (1, "j")):
        unit = matrix[:2, column]
        arrow(axis, (0, 0), 110 * unit, GREY, name, (5, 4))
    arrow(axis, (0, 0), 100 * GRADIENT[:2], ORANGE, "g", (6, -2))
    x, y, _ = to_fsl(GRADIENT[None], matrix)[0] + 0.0
    axis.text(0, -118, "world (RAS+):  0.80   0.60", ha="center", color=ORANGE, fontsize=10)
    axis.text(0, -140, f".bvec:  {x:.2f}   {y:.2f}".replace("-", "−"), ha="center", color=BLUE,
              fontsize=11, weight="bold")  # fmt: skip
    axis.text(0, 128, "i, j: axes of the image", ha="center", color=INK, fontsize=8)
    limits(axis, 130, 150)
