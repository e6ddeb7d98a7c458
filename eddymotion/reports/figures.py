# SPDX-License-Identifier: Apache-2.0
"""Figures: values → matplotlib Figure. Nothing here knows about files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eddymotion.data.gradients import reference_volumes
from eddymotion.data.series import DWI
from eddymotion.estimation.maps import cnr
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import framewise_displacement, rigid_parameters
from eddymotion.reports import own_style
from eddymotion.reports.edges import b0_edges, lowest_shell, mask_edges
from eddymotion.reports.maps import color_fa, local_correlation, tsnr
from eddymotion.reports.panels import FigureBox, Panels, cells
from eddymotion.reports.slices import PLANES, Slices
from eddymotion.reports.svg import AXIS_COLORS
from eddymotion.robust import Z_95

FADED = "#777777"

EDGE_COLOR = "#E69F00"
"""Okabe & Ito's orange, clear on grey."""

AROUND_MM = 6.0
"""What is shown around the brain where edges are drawn."""

EDGES_WIDTH, GAP = 11.4, 0.035
"""Of the figure of edges, inches."""

BAR_WIDTH = 0.22
"""Of a colour bar with its numbers, relative to that of a map."""


@own_style()
def motion_figure(dwi: DWI, motion: Motion, truth: Motion | None = None) -> Figure:
    """Draw translations, rotations and framewise displacement over the volumes.

    Error bars are 95 % intervals, where the motion has standard errors.

    Parameters
    ----------
    dwi : DWI
    motion : Motion
    truth : Motion, optional
        Drawn as dashed black lines.
    """
    parameters = rigid_parameters(motion.matrices, dwi.center)
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 1.2))
    volumes = np.arange(len(motion))
    errors = motion.standard_errors
    bounds = np.zeros_like(parameters) if errors is None else Z_95 * np.nan_to_num(errors)
    for axes, columns, margins, label in (
        (top, parameters[:, :3], bounds[:, :3], "translation (mm)"),
        (middle, np.rad2deg(parameters[:, 3:]), np.rad2deg(bounds[:, 3:]), "rotation (°)"),
    ):
        for (name, color), values, margin in zip(
            AXIS_COLORS.items(), columns.T, margins.T, strict=True
        ):
            axes.plot(volumes, values, color=color, lw=1.6, label=name)
            axes.errorbar(volumes, values, margin, fmt="none", ecolor=color, elinewidth=0.8)
            last = values[-1]
            axes.annotate(name, (volumes[-1], last), (5, 0), textcoords="offset points",
                          color=color, va="center")  # fmt: skip
        axes.set_ylabel(label)
    if truth is not None:
        true = rigid_parameters(truth.matrices, dwi.center)
        top.plot(volumes, true[:, :3], color="black", lw=0.7, ls="--", zorder=3)
        middle.plot(volumes, np.rad2deg(true[:, 3:]), color="black", lw=0.7, ls="--", zorder=3)
        top.set_title("dashed: true motion", loc="right", fontsize="small", color=FADED)
    bottom.bar(volumes, np.nan_to_num(framewise_displacement(parameters)), color=FADED, width=0.8)
    bottom.set_ylabel("FD (mm)")
    bottom.set_xlabel("volume")
    for axes in (top, middle, bottom):
        mark_volumes(axes, dwi.gradients.b0s)
        axes.margins(x=0.01)
    reference = "the first b=0" if len(dwi.gradients.b0s) else "volume 0"
    top.set_title(f"Head motion relative to {reference} (grey: b=0 volumes)", loc="left")
    return figure


def mark_volumes(axes: Axes, shaded: Iterable[int]) -> None:
    """Shade some volumes of an axis over volumes, and leave out its upper and right line."""
    for volume in shaded:
        axes.axvspan(volume - 0.5, volume + 0.5, color="#E8E8E8", lw=0, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


@own_style()
def before_after_figure(before: Slices, after: Slices) -> Figure:
    """Compare the series before and after.

    Left to right: spread over the volumes of a shell, which is high at edges that move; and one
    line through the head over time, where motion makes edges jump.
    """
    panels = Panels(12.5, 6.6)
    rows = cells(FigureBox(0.3, 0.27, 12.15, 5.83), 2, (1, 1.2, 2.6), gap=0.3)
    limit = white = None
    for row, (name, view) in zip(rows, (("before", before), ("after", after)), strict=True):
        sizes = view.grid.sizes
        axial, sagittal = view.spread()
        limit = limit or view.bright(axial, sagittal)
        panels.image(row[0], axial.T, sizes[[0, 1]], vmin=0, vmax=limit)
        panels.image(row[1], sagittal.T, sizes[[1, 2]], vmin=0, vmax=limit)
        profile = view.profile()
        white = white or float(np.percentile(profile, 99))
        axes = panels.plot(row[2])
        axes.imshow(profile, origin="lower", aspect="auto", cmap="gray", vmin=0, vmax=white,
                    interpolation="nearest")  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_yticks([])
        axes.set_ylabel("inferior – superior")
        panels.label(row[0], name, fontsize="x-large")
    titles = ("SD over volumes, axial", "SD over volumes, sagittal",
              "one line through the head, over volumes")  # fmt: skip
    for cell, title in zip(rows[0], titles, strict=True):
        panels.title(cell, title)
    axes.set_xlabel("diffusion-weighted volume")
    return panels.figure


@own_style()
def brain_figure(after: Slices) -> Figure:
    """Draw the edge of the brain mask on the mean b=0 in three planes.

    Parameters
    ----------
    after : Slices
        Of the corrected series; without b=0, on the mean of the lowest shell.
    """
    volumes = reference_volumes(after.gradients)
    means = {name: after.planes[name][..., volumes].mean(axis=-1, dtype=float) for name in PLANES}
    white = _white(means, after)
    panels, (row,) = _three_planes(after, {name: (slice(None),) * 2 for name in PLANES}, 1)
    for cell, name in zip(row, PLANES, strict=True):
        mask, sizes = after.mask(name), after.sizes(name)
        panels.image(cell, means[name].T, sizes, vmin=0, vmax=white, interpolation="bilinear")
        panels.lines(cell, mask_edges(mask), mask.T.shape, sizes, colors=EDGE_COLOR)
    return panels.figure


@own_style()
def b0_edges_figure(before: Slices, after: Slices) -> Figure:
    """Draw the edges of b=0 on the mean of the lowest shell, before and after.

    Before correction they are those of the first b=0 volume, which gives the reference its frame:
    the other b=0 volumes lie elsewhere.

    Parameters
    ----------
    before, after : Slices
        With b=0 and with diffusion-weighted volumes.
    """
    rows = ("before", before, before.gradients.b0s[:1]), ("after", after, after.gradients.b0s)
    boxes = _head_boxes(after)
    panels, cells_of = _three_planes(after, boxes, 2, before=0.025 * EDGES_WIDTH)
    for row, (words, view, b0s) in zip(cells_of, rows, strict=True):
        pictures, edges = lowest_shell(view), b0_edges(view, b0s)
        white = _white(pictures, view)
        of_view = boxes if view.grid.same_as(after.grid) else _head_boxes(view)
        for cell, name in zip(row, PLANES, strict=True):
            box, sizes = of_view[name], view.sizes(name)
            picture = pictures[name][box].T
            panels.image(cell, picture, sizes, vmin=0, vmax=white, interpolation="bilinear")
            corner = [part.start or 0 for part in box]
            lines = [line - corner for line in edges[name]]
            panels.lines(cell, lines, picture.shape, sizes, colors=EDGE_COLOR)
        panels.label(row[0], words, fontsize="x-large")
    return panels.figure


def _head_boxes(view: Slices) -> dict[str, tuple[slice, ...]]:
    """Return the part of each plane that holds the head."""
    return {name: _around(view.mask(name), AROUND_MM / view.sizes(name)) for name in PLANES}


def _white(pictures: Mapping[str, np.ndarray], view: Slices) -> float:
    """Return what few pixels of the brain exceed, in the three planes together."""
    inside = np.concatenate([pictures[name][view.mask(name)] for name in PLANES])
    return float(np.percentile(inside, 99)) if inside.size else 1.0


def _three_planes(
    view: Slices, boxes: Mapping[str, tuple[slice, ...]], n_rows: int, before: float = 0.0
) -> tuple[Panels, list[list[FigureBox]]]:
    """Make room for parts of the three planes, all of one height, and for words before them."""
    widths = []
    for name in PLANES:
        size = np.array(view.mask(name)[boxes[name]].shape) * view.sizes(name)
        widths.append(float(size[0] / size[1]))
    inner = EDGES_WIDTH - before
    height = (inner - GAP * (len(widths) - 1)) / sum(widths)
    tall = n_rows * height + (n_rows - 1) * GAP
    panels = Panels(EDGES_WIDTH, tall)
    return panels, cells(FigureBox(before, 0.0, inner, tall), n_rows, widths, gap=GAP)


@own_style()
def maps_figure(
    before: Slices, after: Slices, predicted: Mapping[str, Mapping[str, np.ndarray]]
) -> Figure:
    """Show colour FA, tSNR of b=0 and CNR of each shell (three at most), before and after.

    Parameters
    ----------
    before, after : Slices
    predicted : mapping
        ``before`` and ``after`` → held-out predictions of the planes.
    """
    shells = [k for k, shell in enumerate(after.gradients.shells) if len(shell) > 2]
    chosen = shells if len(shells) <= 3 else [shells[0], shells[len(shells) // 2], shells[-1]]
    if not after.gradients.is_shelled:
        chosen = []
    stable = tsnr(after.planes["axial"], after.gradients) is not None
    n_columns = 2 + int(stable) + len(chosen)
    panels = Panels(2.55 * n_columns + 0.6, 6.2)
    inside = FigureBox(0.3, 0.27, panels.width - 0.3, panels.height - 0.3)
    n_maps = n_columns - 2
    columns = list(zip(*cells(inside, 2, (1, 1, *(1, BAR_WIDTH) * n_maps)), strict=True))
    with_bars = iter(zip(columns[2::2], columns[3::2], strict=True))
    views = {"before": before, "after": after}
    for plane, kept, cell in (("axial", [0, 1], columns[0]), ("coronal", [0, 2], columns[1])):
        for one, view in zip(cell, views.values(), strict=True):
            box = _around(view.mask(plane))
            picture = color_fa(view, plane)[box].transpose(1, 0, 2)
            panels.image(one, picture, view.grid.sizes[kept])
        panels.title(cell[0], f"colour FA, {plane}")
    for cell, name in zip(columns[0], views, strict=True):
        panels.label(cell, name, fontsize="x-large")
    if stable:
        maps = [tsnr(v.planes["axial"], v.gradients) for v in views.values()]
        _pair(panels, *next(with_bars), maps, views, "tSNR of b=0", 60.0)
    for shell in chosen:
        members = after.gradients.shells[shell]
        maps = []
        for name, view in views.items():
            fitted = predicted[name]["axial"]
            maps.append(cnr(fitted, view.planes["axial"] - fitted, members))
        title = f"CNR, b={after.gradients.shell_bvals[shell]:.0f}"
        _pair(panels, *next(with_bars), maps, views, title)
    return panels.figure


def _pair(
    panels: Panels, column: Sequence[FigureBox], beside: Sequence[FigureBox], maps: Sequence[Any],
    views: Mapping[str, Slices], title: str, most: float = np.inf,
) -> None:  # fmt: skip
    """Show a map before and after, each in its brain, with one colour bar for both."""
    masks = [view.mask("axial") for view in views.values()]
    inside = np.concatenate([values[mask] for values, mask in zip(maps, masks, strict=True)])
    high = max(min(float(np.percentile(inside, 98)) if inside.size else 1.0, most), 1e-3)
    for cell, values, mask, view in zip(column, maps, masks, views.values(), strict=True):
        picture = np.where(mask, values, np.nan)[_around(mask)].T
        shown = panels.image(cell, picture, view.grid.sizes[[0, 1]], vmin=0, vmax=high,
                             cmap="cividis")  # fmt: skip
    panels.title(column[0], title)
    bar = FigureBox(beside[0].left, 0.27 * panels.height, 0.14, 0.5 * panels.height)
    panels.figure.colorbar(shown, cax=panels.plot(bar))


@own_style()
def heldout_figure(
    after: Slices,
    predicted: Mapping[str, np.ndarray],
    chosen: Sequence[tuple[int, str]],
    white: np.ndarray,
) -> Figure:
    """Compare volumes with the predictions that have not seen them.

    Parameters
    ----------
    after : Slices
        Of the corrected series.
    predicted : mapping
        As :attr:`~eddymotion.reports.slices.Slices.planes`.
    chosen : sequence of (volume, words)
        A row each.
    white : (N,) array
        The signal that is white in each volume.
    """
    n_rows = max(len(chosen), 1)
    panels = Panels(12.5, 1.62 * n_rows + 0.4)
    inside = FigureBox(0.65, 0.27, panels.width - 0.7, panels.height - 0.3)
    rows = cells(inside, n_rows, (1.2, 1.0) * 4)
    for row, (volume, words) in zip(rows, chosen, strict=False):
        for k, plane in enumerate(("sagittal", "axial")):
            _one_heldout(panels, row[k::2], after, predicted, plane, volume, white[volume])
        bval = after.gradients.bvals[volume]
        panels.label(row[0], f"volume {volume}\nb={bval:.0f}\n{words}")
    titles = ("observed", "predicted without it", "residual, ±25 % of white",
              "local correlation, 0 to 1")  # fmt: skip
    for cell, title in zip(rows[0][::2], titles, strict=True):
        panels.title(cell, title, middle=False)
    return panels.figure


def _one_heldout(
    panels: Panels, row: Sequence[FigureBox], after: Slices, predicted: Mapping[str, np.ndarray],
    plane: str, volume: int, white: float,
) -> None:  # fmt: skip
    mask, sizes = after.mask(plane), after.sizes(plane)
    observed, expected = after.planes[plane][..., volume], predicted[plane][..., volume]
    local = local_correlation(observed, expected, sizes, mask)
    residual = np.where(mask, observed - expected, np.nan)
    quarter = 0.25 * white
    box = _around(mask)
    shown: tuple[dict[str, Any], ...] = (
        {"vmin": 0, "vmax": white},
        {"vmin": 0, "vmax": white},
        {"vmin": -quarter, "vmax": quarter, "cmap": "RdBu"},
        {"vmin": 0, "vmax": 1, "cmap": "cividis"},
    )
    for cell, picture, options in zip(
        row, (observed, expected, residual, local), shown, strict=True
    ):
        panels.image(cell, picture[box].T, sizes, **options)


def _around(mask: np.ndarray, margin: Sequence[float] | np.ndarray = (0, 0)) -> tuple[slice, ...]:
    """Return the box around a mask and a margin in pixels, or everything if it is empty."""
    if not mask.any():
        return tuple(slice(0, n) for n in mask.shape)
    return tuple(
        slice(max(int(k.min() - more), 0), min(int(k.max() + more) + 1, n))
        for k, more, n in zip(np.nonzero(mask), margin, mask.shape, strict=True)
    )
