# SPDX-License-Identifier: Apache-2.0
"""b-vectors turn with the head."""

import numpy as np
from head import BLUE, GREY, INK, ORANGE, arrow, head, limits, panels, turned

R = 30.0
left, right = panels(2, ["in the scanner", "in the reference frame"])
up = np.array([[0.0, 110.0]])
fibre = np.array([[-45.0, -20.0], [45.0, 20.0]])
for axis, degrees, gradient, name in (
    (left, R, up[0], "g"),
    (right, 0.0, turned(up, -R)[0], "R⁻¹ g"),
):
    head(axis, degrees=degrees)
    axis.plot(*turned(fibre, degrees).T, color=BLUE, lw=5, alpha=0.5, solid_capstyle="round")
    arrow(axis, (0, 0), gradient, ORANGE, name)
    limits(axis, 130, 150)
arrow(right, (0, 0), up[0], GREY, "g, as it was", (-78, -2))
left.text(0, -140, "the head turned by R; the gradient stays", ha="center", color=INK, fontsize=9)
right.text(0, -140, "gradient and fibre make the angle that they made", ha="center", color=INK,
           fontsize=9)  # fmt: skip
