# SPDX-License-Identifier: Apache-2.0
"""Framewise displacement and root mean square."""

import numpy as np
from head import BLUE, GREY, INK, ORANGE, arrow, limits, panels, turned

left, right = panels(2, ["framewise displacement (Power)", "RMS displacement (Jenkinson)"])
angle = np.linspace(0, 2 * np.pi, 200)

left.plot(50 * np.cos(angle), 50 * np.sin(angle), color=INK)
start, end = np.deg2rad(20), np.deg2rad(62)
arc = np.linspace(start, end, 50)
left.plot(50 * np.cos(arc), 50 * np.sin(arc), color=ORANGE, lw=5)
for a in (start, end):
    left.plot([0, 50 * np.cos(a)], [0, 50 * np.sin(a)], color=GREY, lw=1)
left.text(50, 36, "50 mm · Δangle", color=ORANGE)
left.text(13, 13, "Δangle", color=GREY, fontsize=9)
left.text(-26, -22, "50 mm", color=INK, fontsize=9)
left.plot([0, -35.4], [0, -35.4], color=INK, lw=1, ls=":")
arrow(left, (-85, -70), (-60, -70), BLUE, "|Δx|", (4, -4))
arrow(left, (-85, -70), (-85, -52), BLUE, "|Δy|", (-12, 5))
left.text(
    0, -100, "sum of the three translations and three arcs", ha="center", color=INK, fontsize=9
)
limits(left, 115, 105)

right.plot(80 * np.cos(angle), 80 * np.sin(angle), color=INK)
grid = np.stack(np.meshgrid(*[np.arange(-70, 71, 20.0)] * 2), axis=-1).reshape(-1, 2)
inside = grid[np.hypot(*grid.T) < 78]
moved = turned(inside, 9) + np.array([6.0, 3.0])
for a, b in zip(inside, moved, strict=True):
    style = {"arrowstyle": "-|>", "color": BLUE, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 6}
    right.annotate("", b, a, arrowprops=style)
right.plot([0, 80 * np.cos(-0.9)], [0, 80 * np.sin(-0.9)], color=INK, lw=1, ls=":")
right.text(56, -74, "80 mm", color=INK, fontsize=9)
right.text(0, -100, "root mean square over all points", ha="center", color=INK, fontsize=9)
limits(right, 115, 105)
