# SPDX-License-Identifier: Apache-2.0
"""Figures of a registered pair: plain arrays on the fixed grid → matplotlib Figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy.ndimage import gaussian_filter

from eddymotion.images.grid import all_points
from eddymotion.registration.intensities import intensity_curve
from eddymotion.reports import own_style
from eddymotion.reports.figures import FADED

PLANES = (("axial", 2, (0, 1)), ("coronal", 1, (0, 2)), ("sagittal", 0, (1, 2)))
"""Name, the axis across, and the axes that are drawn to the right and upwards."""

ENDS = (("L", "R"), ("P", "A"), ("I", "S"))
"""Names of the ends of each axis."""

OUTLINES = ("#E69F00", "#56B4E9")
"""Okabe & Ito's orange and sky blue, both clear on grey: the head, and what is bright in it."""

SMOOTHING_MM = 2.0
"""Of images whose outlines are drawn."""

N_ARROWS = 22
"""Their number, about, along the longer side of a picture."""

LONGEST = 2.5
"""Distances between arrows that the longest may cover."""

ARROWS = LinearSegmentedColormap.from_list("arrows", colormaps["plasma"](np.linspace(0.4, 1, 64)))
"""Colours that stand out on dark grey."""

WIDTH = 11.0
"""Of a figure, inches."""


@dataclass(frozen=True, eq=False)
class Cuts:
    """Where to cut: the axes closest to RAS+, and a slice through the middle of the head.

    Parameters
    ----------
    turn : (3, 2) array
        Orientation of the grid, nibabel's.
    sizes : (3,) array
        Of voxels along x, y, z, mm.
    shape, position : tuple of int
        Along x, y, z.
    affine : (4, 4) array
        Turned voxel indices → RAS+ mm.
    """

    turn: np.ndarray
    sizes: np.ndarray
    shape: tuple[int, ...]
    position: tuple[int, ...]
    affine: np.ndarray

    @classmethod
    def of(cls, fixed: np.ndarray, head: np.ndarray, affine: np.ndarray) -> Cuts:
        """Look at an image; the slices go through the middle of what is bright in its head."""
        turn = io_orientation(affine)
        shown = np.where(head, fixed, fixed.min())
        levels = outline_levels(shown)
        bright = shown > levels[0] if levels else head
        turned = apply_orientation(bright, turn).astype(bool)
        where = np.argwhere(turned)
        middle = where.mean(axis=0) if len(where) else (np.array(turned.shape) - 1) / 2
        turned_affine = affine @ inv_ornt_aff(turn, head.shape)
        return cls(
            turn, voxel_sizes(turned_affine), turned.shape, tuple(np.rint(middle).astype(int)),
            turned_affine,
        )  # fmt: skip

    def slices(self, volume: np.ndarray) -> list[np.ndarray]:
        """Cut a volume (X, Y, Z): axial, coronal, sagittal, rows upwards."""
        turned = apply_orientation(volume, self.turn)
        return [turned.take(self.position[across], axis=across).T for _, across, _ in PLANES]

    def extents(self) -> list[tuple[float, float]]:
        """Width and height of the three pictures, mm."""
        full = self.sizes * self.shape
        return [(float(full[right]), float(full[up])) for _, _, (right, up) in PLANES]

    def panels(self, n_rows: int, bar: bool = False) -> tuple[Figure, np.ndarray]:
        """Make a figure with a row of the three pictures, `n_rows` times."""
        extents = self.extents()
        widths = [width for width, _ in extents]
        height = WIDTH / sum(widths) * max(height for _, height in extents)
        size = (WIDTH + 0.3 + bar, n_rows * (height + 0.05) + 0.6)
        layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
        figure = Figure(figsize=size, layout=layout)
        axes = figure.subplots(n_rows, 3, squeeze=False, width_ratios=widths)
        for row in axes:
            for panel, (_, _, (right, up)), (width, tall) in zip(
                row, PLANES, extents, strict=True
            ):
                panel.set(xticks=[], yticks=[], xlim=(0, width), ylim=(0, tall), aspect="equal")
                panel.set(facecolor="black", anchor="N")
                panel.spines[:].set_visible(False)
                _name_ends(panel, ENDS[right], ENDS[up])
        for panel, (name, _, _) in zip(axes[0], PLANES, strict=True):
            panel.set_title(name, color=FADED, fontsize="medium")
        return figure, axes

    def show(self, axes: Sequence[Axes], volume: np.ndarray, **options: Any) -> Any:
        """Draw the three slices; return the last picture."""
        picture = None
        for panel, piece, (width, height) in zip(
            axes, self.slices(volume), self.extents(), strict=True
        ):
            picture = panel.imshow(
                piece, origin="lower", extent=(0, width, 0, height), interpolation="nearest",
                **options,
            )  # fmt: skip
        return picture

    def outline(self, axes: Sequence[Axes], volume: np.ndarray, levels: Sequence[float]) -> None:
        """Draw lines of equal intensity over the three slices."""
        smooth = gaussian_filter(volume, SMOOTHING_MM / voxel_sizes(self.affine).max() + 0.3)
        for panel, piece, (width, height) in zip(
            axes, self.slices(smooth), self.extents(), strict=True
        ):
            x = (np.arange(piece.shape[1]) + 0.5) * width / piece.shape[1]
            y = (np.arange(piece.shape[0]) + 0.5) * height / piece.shape[0]
            reached = [level for level in levels if piece.min() < level < piece.max()]
            if reached and min(piece.shape) > 1:
                colors = [OUTLINES[list(levels).index(level)] for level in reached]
                panel.contour(x, y, piece, levels=reached, colors=colors, linewidths=1.0)


def _name_ends(axes: Axes, right: tuple[str, str], up: tuple[str, str]) -> None:
    style: dict[str, Any] = {"color": "#999999", "fontsize": "small", "transform": axes.transAxes}
    axes.text(0.01, 0.5, right[0], ha="left", va="center", **style)
    axes.text(0.99, 0.5, right[1], ha="right", va="center", **style)
    axes.text(0.5, 0.01, up[0], ha="center", va="bottom", **style)
    axes.text(0.5, 0.99, up[1], ha="center", va="top", **style)


@own_style()
def overlay_figure(
    fixed: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    head: np.ndarray,
    affine: np.ndarray,
) -> Figure:
    """Draw outlines of the moving image on the fixed one, before and after.

    Parameters
    ----------
    fixed, before, after : (X, Y, Z) array
        The fixed image, and the moving one on its grid.
    head : (X, Y, Z) bool array
        Where the fixed image shows something.
    affine : (4, 4) array
        Of the grid, RAS+ mm.
    """
    view = Cuts.of(fixed, head, affine)
    figure, rows = view.panels(2)
    levels = outline_levels(after if np.ptp(after) > 0 else before)
    window = _window(fixed, head)
    for axes, volume, when in zip(rows, (before, after), ("before", "after"), strict=True):
        view.show(axes, fixed, cmap="gray", vmin=window[0], vmax=window[1])
        view.outline(axes, volume, levels)
        _label(axes[0], when)
    _title(figure, "fixed image (grey), with outlines of the moving image")
    return figure


@own_style()
def alignment_figure(
    target: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    head: np.ndarray,
    affine: np.ndarray,
    white_matter: np.ndarray | None,
) -> Figure:
    """Draw outlines of a reference on its target, before and after, and then the other way round.

    Parameters
    ----------
    target, before, after, head, affine
        As for :func:`overlay_figure`; the reference of a series is the moving image.
    white_matter : (X, Y, Z) array, optional
        Of the target, 0 to 1: its edge is drawn on the reference instead of outlines.
    """
    view = Cuts.of(target, head, affine)
    figure, rows = view.panels(3)
    levels = outline_levels(after if np.ptp(after) > 0 else before)
    edges = (target, outline_levels(np.where(head, target, target.min())))
    if white_matter is not None:
        edges = (white_matter, [0.5])
    drawn = (
        ("before", target, (before, levels)),
        ("after", target, (after, levels)),
        ("after, the other way", after, edges),
    )
    for axes, (label, grey, lines) in zip(rows, drawn, strict=True):
        low, high = _window(grey, head)
        view.show(axes, grey, cmap="gray", vmin=low, vmax=high)
        view.outline(axes, *lines)
        _label(axes[0], label)
    what = "outlines" if white_matter is None else "the edge of the white matter"
    _title(
        figure,
        f"target (grey) with outlines of the series; below, the series with {what} of the target",
    )
    return figure


def outline_levels(volume: np.ndarray) -> list[float]:
    """Return the intensity of the head's edge, and one within the head."""
    from dipy.segment.threshold import otsu

    if np.ptp(volume) == 0:
        return []
    clipped = np.clip(volume, *np.quantile(volume, (0.01, 0.995)))
    if np.ptp(clipped) == 0:
        clipped = volume
    edge = 0.6 * float(otsu(clipped))
    inner = float(np.quantile(volume[volume > edge], 0.8)) if (volume > edge).any() else edge
    return [edge, inner] if inner > edge else [edge]


@own_style()
def difference_figure(
    fixed: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    inside: tuple[np.ndarray, np.ndarray],
    head: np.ndarray,
    affine: np.ndarray,
) -> Figure:
    """Draw the fixed image minus the moving one, before and after, on one scale.

    The moving image's intensities are first turned into those that the fixed image has, on
    average, where both agree (after the registration).

    Parameters
    ----------
    inside : pair of (X, Y, Z) bool arrays
        Where there is a moving image, before and after.
    fixed, before, after, head, affine
        As for :func:`overlay_figure`.
    """
    view = Cuts.of(fixed, head, affine)
    figure, rows = view.panels(2, bar=True)
    curve = intensity_curve(after[inside[1] & head], fixed[inside[1] & head])
    differences = [
        np.where(where, fixed - np.interp(volume, *curve), 0.0)
        for volume, where in zip((before, after), inside, strict=True)
    ]
    seen = np.abs(differences[0][inside[0] & head])
    limit = float(np.quantile(seen, 0.98)) if seen.size else 0.0
    limit = limit or float(np.abs(differences[1]).max()) or 1.0
    picture: Any = None
    for axes, volume, where, when in zip(
        rows, differences, inside, ("before", "after"), strict=True
    ):
        picture = view.show(axes, volume, cmap="RdBu_r", vmin=-limit, vmax=limit)
        rms = np.sqrt(np.mean(volume[where & head] ** 2)) if (where & head).any() else np.nan
        _label(axes[0], f"{when}: RMS {rms:.0f}" if rms >= 1000 else f"{when}: RMS {rms:.3g}")
    bar = figure.colorbar(picture, ax=rows, shrink=0.6, pad=0.01, panchor=False)
    bar.set_label("units of the fixed image")
    _title(figure, "fixed − moving, with intensities fitted to the fixed image")
    return figure


@own_style()
def displacement_figure(
    fixed: np.ndarray,
    head: np.ndarray,
    affine: np.ndarray,
    displacements: Callable[[np.ndarray], np.ndarray],
) -> Figure:
    """Draw displacement vectors on a grid over the fixed image.

    Parameters
    ----------
    fixed, head, affine
        As for :func:`overlay_figure`.
    displacements : callable
        Points (P, 3) of the fixed image, RAS+ mm → how far they go, (P, 3) mm.
    """
    view = Cuts.of(fixed, head, affine)
    figure, rows = view.panels(1, bar=True)
    window = _window(fixed, head)
    view.show(rows[0], fixed, cmap="gray", vmin=window[0], vmax=1.6 * window[1] - 0.6 * window[0])
    grids = [_arrows(view, plane, head) for plane in range(3)]
    moves = [displacements(apply_affine(view.affine, voxels)) for voxels in grids]
    lengths = np.linalg.norm(np.concatenate(moves), axis=1)
    largest = lengths.max(initial=0.0)
    smallest = lengths.min(initial=largest)
    step = max(view.extents()[0]) / N_ARROWS
    factor = _round_factor(LONGEST * step / largest) if largest > 0 else 1.0
    picture: Any = None
    for axes, (_, _, shown), voxels, move in zip(rows[0], PLANES, grids, moves, strict=True):
        x, y = ((voxels[:, axis] + 0.5) * view.sizes[axis] for axis in shown)
        right, up = (factor * move @ view.affine[:3, :3] / view.sizes)[:, shown].T
        picture = axes.quiver(
            x, y, right, up, np.linalg.norm(move, axis=1), cmap=ARROWS,
            clim=(smallest, largest or 1.0), angles="xy", scale_units="xy", scale=1,
            width=0.004, minlength=0.5, pivot="tail",
        )  # fmt: skip
    bar = figure.colorbar(picture, ax=rows, shrink=0.8, pad=0.01, panchor=False)
    bar.set_label("displacement (mm)")
    drawn = "to scale" if factor == 1 else f"arrows drawn {factor:g} × as long"
    _title(figure, f"position of points of the fixed image in the moving image ({drawn})")
    return figure


def _arrows(view: Cuts, plane: int, head: np.ndarray) -> np.ndarray:
    """Choose voxels of the head in a plane, on a coarse grid: (P, 3) turned indices."""
    _, _, drawn = PLANES[plane]
    step = max(view.extents()[0]) / N_ARROWS
    every = {axis: max(round(step / view.sizes[axis]), 1) for axis in drawn}
    ranges = [
        np.arange(every[axis] // 2, view.shape[axis], every[axis])
        if axis in every
        else np.array([view.position[axis]])
        for axis in range(3)
    ]
    voxels = all_points(ranges)
    turned = apply_orientation(head, view.turn).astype(bool)
    return voxels[turned[tuple(voxels.T)]]


def _round_factor(wanted: float) -> float:
    """Return 1, 2 or 5 times a power of ten below `wanted`; never less than a tenth."""
    power = 10.0 ** np.floor(np.log10(max(wanted, 0.1)))
    return float(max(m * power for m in (1, 2, 5) if m * power <= max(wanted, 0.1)))


def _window(volume: np.ndarray, head: np.ndarray) -> tuple[float, float]:
    values = volume[head] if head.any() else volume
    low, high = np.quantile(values, (0.01, 0.995))
    return float(min(low, 0.0) if low < 0.3 * high else low), float(max(high, low + 1e-6))


def _label(axes: Axes, text: str) -> None:
    axes.set_ylabel(text, fontsize="large", color="#333333")


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", color="#333333")
