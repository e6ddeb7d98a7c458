# SPDX-License-Identifier: Apache-2.0
"""The course of the head within volumes, excitation by excitation: a table → SVG."""

from __future__ import annotations

import numpy as np

from eddymotion.io.tsv import Table
from eddymotion.reports.svg import (
    AXIS_COLORS,
    LEFT,
    VERMILION,
    Columns,
    Panel,
    element,
    spread_labels,
    text,
    title,
)

MOST_POINTS = 2500
"""Of a curve; where a series has more excitations, some of a volume are left out."""

LEAST_MM, LEAST_DEGREES = 0.1, 0.1
"""Least extent of an axis on each side."""


def course_chart(trajectory: Table, excursions: np.ndarray, voxel: float) -> str:
    """Draw the six parameters through all excitations, and how far volumes moved within.

    Parameters
    ----------
    trajectory : Table
        As in the file: a row an excitation of a volume.
    excursions : (N,) array
        Largest way from the pose of each volume, mm.
    voxel : float
        Shortest edge of a voxel, mm: larger excursions are marked.
    """
    n = len(excursions)
    columns, far = Columns(range(n)), excursions > voxel
    x, rows = _places(columns, trajectory)
    kinds = {"translation (mm)": ("trans", 1.0, LEAST_MM),
             "rotation (°)": ("rot", 180 / np.pi, LEAST_DEGREES)}  # fmt: skip
    parts, top = [text(LEFT, 16, "■ more than a voxel", fill=VERMILION)], 26.0
    parts += [columns.band(int(v), top, 362.0, "#F3D9CC", fill_opacity="0.6")
              for v in np.flatnonzero(far)]  # fmt: skip
    for label, (kind, scale, least) in kinds.items():
        values = scale * np.array([trajectory.numbers(f"{kind}_{axis}")[rows] for axis in "xyz"])
        low, high = min(values.min(), -least), max(values.max(), least)
        space = 0.06 * (high - low)
        panel = Panel(columns, top, 130.0, low - space, high + space, label)
        parts += [panel.frame(), _curves(panel, x, values, kind)]
        top += 146.0
    high = 1.15 * max(float(excursions.max(initial=0)), voxel)
    panel = Panel(columns, top, 70.0, 0.0, high, "within (mm)")
    parts.append(panel.frame())
    parts += [panel.bar(v, float(mm), VERMILION if far[v] else "#8A8A8A")
              for v, mm in enumerate(excursions) if mm > 0]  # fmt: skip
    y = panel.y(voxel)
    parts.append(element("line", x1=LEFT, x2=columns.right, y1=y, y2=y, stroke=VERMILION,
                         stroke_dasharray="5 4"))  # fmt: skip
    parts += [text(columns.right + 8, y + 4, "a voxel", fill=VERMILION), columns.axis(top + 70)]
    label = (
        f"Course of the head through {len(trajectory)} excitations of {n} volumes; it moved by "
        f"more than a voxel within {int(far.sum())} of them"
    )
    return columns.chart(top + 94, parts, label, "within")


def _places(columns: Columns, trajectory: Table) -> tuple[np.ndarray, np.ndarray]:
    """Where excitations are drawn, and which rows: those at the ends of a volume and some within.

    A volume goes from one side of its column to the other.
    """
    volumes = trajectory.numbers("volume").astype(int)
    n_groups = len(volumes) // len(columns.order)
    kept = max(2, min(n_groups, MOST_POINTS // len(columns.order)))
    within = np.unique(np.linspace(0, n_groups - 1, kept).round().astype(int))
    rows = (n_groups * np.arange(len(columns.order))[:, None] + within).ravel()
    part = (rows % n_groups + 0.5) / n_groups
    return LEFT + (volumes[rows] + part) * columns.step, rows


def _curves(panel: Panel, x: np.ndarray, values: np.ndarray, kind: str) -> str:
    """Draw x, y and z (3, P) at places (P,) of a panel."""
    ends = spread_labels([panel.y(row[-1]) for row in values], 13)
    parts = []
    for axis, row, end in zip("xyz", values, ends, strict=True):
        color = AXIS_COLORS[axis]
        points = " ".join(f"{a:.1f},{panel.y(b):.1f}" for a, b in zip(x, row, strict=True))
        line = element("polyline", points=points, fill="none", stroke=color, stroke_width=1.3)
        parts.append(element("g", title(f"{kind}_{axis}") + line))
        parts.append(text(panel.columns.right + 8, end + 4, axis, fill=color, weight="bold"))
    return "".join(parts)
