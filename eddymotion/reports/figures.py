"""Figures: values → matplotlib Figure. Nothing here knows about files."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eddymotion.dataset import DWI
from eddymotion.geometry import Motion, framewise_displacement, rigid_parameters
from eddymotion.reports.slices import Slices

AXIS_COLORS = {"x": "#D55E00", "y": "#0072B2", "z": "#009E73"}
"""Okabe & Ito's colours, told apart by colour-blind readers."""

FADED = "#777777"


def motion_figure(dwi: DWI, motion: Motion, truth: Motion | None = None) -> Figure:
    """Draw translations, rotations and framewise displacement over the volumes.

    Parameters
    ----------
    dwi : DWI
    motion : Motion
    truth : Motion, optional
        Drawn as dashed black lines.

    Error bars are 95 % intervals, where the motion has standard errors.
    """
    parameters = rigid_parameters(motion.matrices, dwi.center)
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 1.2))
    volumes = np.arange(len(motion))
    errors = motion.standard_errors
    bounds = np.zeros_like(parameters) if errors is None else 1.96 * np.nan_to_num(errors)
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
        for b0 in dwi.gradients.b0s:
            axes.axvspan(b0 - 0.5, b0 + 0.5, color="#E8E8E8", lw=0, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    reference = "the first b=0" if len(dwi.gradients.b0s) else "volume 0"
    top.set_title(f"Head motion relative to {reference} (grey: b=0 volumes)", loc="left")
    return figure


def before_after_figure(before: Slices, after: Slices) -> Figure:
    """Compare the series before and after.

    Left to right: spread over the volumes of a shell, which is high at edges that move; colour
    FA; and one line through the head over time, where motion makes edges jump.
    """
    figure = Figure(figsize=(12.5, 7.4), layout="constrained")
    panels = figure.subplots(2, 4, width_ratios=(1, 1.15, 1, 2.1))
    limit = None
    for row, (name, view) in zip(panels, (("before", before), ("after", after)), strict=True):
        axial, sagittal = view.spread()
        limit = limit or view.bright(axial, sagittal)
        _show(row[0], axial.T, view.sizes[[0, 1]], vmax=limit)
        _show(row[1], sagittal.T, view.sizes[[1, 2]], vmax=limit)
        _show(row[2], view.color_fa().transpose(1, 0, 2), view.sizes[[0, 1]])
        row[3].imshow(view.profile(), origin="lower", aspect="auto", cmap="gray",
                      interpolation="nearest")  # fmt: skip
        row[3].set_yticks([])
        row[3].set_ylabel("inferior – superior")
        row[0].set_ylabel(name, fontsize="x-large")
    titles = ("SD over volumes, axial", "SD over volumes, sagittal", "colour FA",
              "one line through the head, over volumes")  # fmt: skip
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title)
    panels[1, 3].set_xlabel("diffusion-weighted volume")
    return figure


def _show(axes: Axes, picture: np.ndarray, sizes: np.ndarray, **options: Any) -> None:
    axes.imshow(
        picture, origin="lower", aspect=sizes[1] / sizes[0], cmap="gray", vmin=0, **options
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
