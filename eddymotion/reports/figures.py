"""Figures: values → matplotlib Figure. Nothing here knows about files."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from nibabel.orientations import apply_orientation, io_orientation

from eddymotion.dataset import DWI
from eddymotion.geometry import Motion, framewise_displacement, rigid_parameters
from eddymotion.models.base import as_rows
from eddymotion.models.tensor import design_matrix

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
    """
    parameters = rigid_parameters(motion.matrices, dwi.center)
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 1.2))
    volumes = np.arange(len(motion))
    for axes, columns, label in (
        (top, parameters[:, :3], "translation (mm)"),
        (middle, np.rad2deg(parameters[:, 3:]), "rotation (°)"),
    ):
        for (name, color), values in zip(AXIS_COLORS.items(), columns.T, strict=True):
            axes.plot(volumes, values, color=color, lw=1.6, label=name)
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


def before_after_figure(original: DWI, corrected: DWI) -> Figure:
    """Compare the series before and after.

    Left to right: spread over the volumes of a shell, which is high at edges that move; colour
    FA; and one line through the head over time, where motion makes edges jump.
    """
    figure = Figure(figsize=(12.5, 7.4), layout="constrained")
    panels = figure.subplots(2, 4, width_ratios=(1, 1.15, 1, 2.1))
    limit = None
    for row, (name, dwi) in zip(panels, (("before", original), ("after", corrected)), strict=True):
        view = _Canonical(dwi)
        spread = view.spread()
        inside = spread[view.mask]
        limit = limit or float(np.percentile(inside, 97))
        axial, sagittal = view.axial, view.sagittal
        _show(row[0], spread[:, :, axial].T, view.sizes[[0, 1]], vmax=limit)
        _show(row[1], spread[sagittal].T, view.sizes[[1, 2]], vmax=limit)
        _show(row[2], view.color_fa(axial).transpose(1, 0, 2), view.sizes[[0, 1]])
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


class _Canonical:
    """A series seen with its axes closest to RAS+."""

    def __init__(self, dwi: DWI) -> None:
        turn = io_orientation(dwi.affine)
        self.dwi = dwi
        self.signal = apply_orientation(dwi.signal, turn)
        self.mask = apply_orientation(dwi.mask, turn).astype(bool)
        self.sizes = dwi.voxel_sizes[np.argsort(turn[:, 0])]
        where = np.argwhere(self.mask)
        low, high = where.min(axis=0), where.max(axis=0)
        self.sagittal = int(low[0] + 0.42 * (high[0] - low[0]))
        self.coronal = int(low[1] + 0.5 * (high[1] - low[1]))
        self.axial = int(low[2] + 0.58 * (high[2] - low[2]))

    def spread(self) -> np.ndarray:
        """SD over the largest shell, each volume scaled to the same mean, (X, Y, Z)."""
        shell = max(self.dwi.gradients.shells, key=len)
        gains = [self.signal[..., volume][self.mask].mean() for volume in shell]
        total, squares = (np.zeros(self.mask.shape) for _ in range(2))
        for volume, gain in zip(shell, gains, strict=True):  # one at a time: memory
            scaled = self.signal[..., volume] * (np.mean(gains) / gain)
            total += scaled
            squares += scaled.astype(float) ** 2
        mean = total / len(shell)
        return np.sqrt(np.clip(squares / len(shell) - mean**2, 0, None))

    def color_fa(self, axial: int) -> np.ndarray:
        """FA-weighted directions of an axial slice, (X, Y, 3), by a log-linear tensor fit."""
        gradients = self.dwi.gradients
        try:
            design = design_matrix(gradients)
        except ValueError:
            return np.zeros((*self.signal.shape[:2], 3))
        slab = self.signal[:, :, axial]
        rows = as_rows(slab)
        floor = max(1e-4 * float(rows.max()), 1e-6)
        fitted = np.linalg.pinv(design) @ np.log(np.maximum(rows, floor))
        xx, xy, yy, xz, yz, zz = fitted[:6]
        tensors = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=-1).reshape(-1, 3, 3)
        values, vectors = np.linalg.eigh(tensors)
        values = np.clip(values, 0, None)
        mean = values.mean(axis=1, keepdims=True)
        power = np.sqrt((values**2).sum(axis=1)) + 1e-12
        fa = np.sqrt(1.5 * ((values - mean) ** 2).sum(axis=1)) / power
        colors = np.abs(vectors[:, :, 2]) * np.clip(fa, 0, 1)[:, None]
        x, y = slab.shape[:2]
        colors = colors.reshape(y, x, 3).transpose(1, 0, 2)
        return np.clip(1.4 * colors, 0, 1) * self.mask[:, :, axial, None]

    def profile(self) -> np.ndarray:
        """Signal along one line from bottom to top, a column a volume."""
        line = self.signal[self.sagittal, self.coronal][:, self.dwi.gradients.dwis]
        return line / np.maximum(line.mean(axis=0), 1e-6 * max(float(line.max()), 1e-6))
