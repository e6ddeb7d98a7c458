# SPDX-License-Identifier: Apache-2.0
"""A head seen from above, and arrows."""

import matplotlib.pyplot as plt
import numpy as np

INK, BLUE, ORANGE, GREY = "#222222", "#0b6fb8", "#c8500a", "#8a8a8a"


def panels(n, titles, width=9.0, height=3.4):
    """Return axes in a row, equal scales, no frames."""
    _, axes = plt.subplots(1, n, figsize=(width, height), layout="constrained")
    for axis, title in zip(np.atleast_1d(axes), titles, strict=True):
        axis.set_aspect("equal")
        axis.axis("off")
        axis.set_title(title, fontsize=11, color=INK)
    return np.atleast_1d(axes)


def turned(points, degrees):
    """Turn points (P, 2) counterclockwise."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return points @ np.array([[c, s], [-s, c]])


def head(axis, center=(0.0, 0.0), degrees=0.0, color=INK, alpha=1.0):
    """Draw a head of 160 mm with its nose up; right ear on the right."""
    angle = np.linspace(0, 2 * np.pi, 200)
    outline = np.stack([70 * np.cos(angle), 88 * np.sin(angle)], axis=1)
    nose = np.array([[-12.0, 86.0], [0.0, 106.0], [12.0, 86.0]])
    ears = [np.array([[s * 70.0, 14.0], [s * 80.0, 8.0], [s * 80.0, -10.0], [s * 69.0, -16.0]])
            for s in (-1, 1)]  # fmt: skip
    for line in (outline, nose, *ears):
        x, y = (turned(line, degrees) + center).T
        axis.plot(x, y, color=color, alpha=alpha, lw=1.6, solid_capstyle="round")


def arrow(axis, start, end, color=BLUE, label="", offset=(6, 6), style="-|>"):
    """Draw an arrow with a label at its head."""
    axis.annotate("", end, start, arrowprops={
        "arrowstyle": style, "color": color, "lw": 2, "shrinkA": 0, "shrinkB": 0,
        "mutation_scale": 14,
    })  # fmt: skip
    axis.annotate(label, end, xytext=offset, textcoords="offset points", color=color, fontsize=11)


def limits(axis, half_width, half_height):
    """Show a window about the origin."""
    axis.set(xlim=(-half_width, half_width), ylim=(-half_height, half_height))
