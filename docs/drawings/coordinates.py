# SPDX-License-Identifier: Apache-2.0
"""RAS+ and LPS+."""

from head import BLUE, INK, ORANGE, arrow, head, limits, panels

axes = panels(2, ["RAS+", "LPS+"])
for axis, (x, y), names, numbers in (
    (axes[0], (1, 1), ("x: right", "y: anterior"), "(30, 40, z)"),
    (axes[1], (-1, -1), ("x: left", "y: posterior"), "(−30, −40, z)"),
):
    head(axis)
    arrow(axis, (0, 0), (115 * x, 0), BLUE, names[0], (-20, 8))
    arrow(axis, (0, 0), (0, 120 * y), BLUE, names[1], (6, -4 if y > 0 else 2))
    axis.plot(0, 0, "o", ms=9, mfc="white", mec=BLUE)
    axis.plot(0, 0, ".", color=BLUE)
    axis.text(0, -18 * y, "z: superior", color=BLUE, ha="center", va="center", fontsize=9)
    axis.plot(30, 40, "o", color=ORANGE)
    axis.text(36, 46, numbers, color=ORANGE)
    axis.text(0, -148, "seen from above; the nose is up, the right ear on the right", ha="center",
              color=INK, fontsize=8)  # fmt: skip
    limits(axis, 160, 155)
