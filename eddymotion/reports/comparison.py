# SPDX-License-Identifier: Apache-2.0
"""Figures of comparisons: plain arrays → matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eddymotion.reports import own_style
from eddymotion.reports.figures import AXIS_COLORS, FADED, mark_volumes

ONE, OTHER = "#0072B2", "#D55E00"
"""Okabe & Ito's blue and vermilion: two things that are compared."""

MAX_NAMED = 40
"""More landmarks than this are drawn as a distribution, without their names."""


@own_style()
def motion_comparison_figure(
    true: np.ndarray,
    estimated: np.ndarray,
    errors: np.ndarray,
    tre: np.ndarray,
    tre_nothing: np.ndarray,
    *,
    shaded: Sequence[int] | np.ndarray,
    title: str,
) -> Figure:
    """Draw the errors of a motion over the volumes, and estimated on true parameters.

    Parameters
    ----------
    true, estimated, errors : (N, 6) array
        Translations (mm) and rotations (degrees).
    tre, tre_nothing : (N,) array
        Mean target registration error of each volume, of the estimate and of no correction, mm.
    shaded : sequence of int
        Volumes to be marked: b=0.
    title : str
    """
    figure = Figure(figsize=(12.5, 7.0), layout="constrained")
    halves = figure.add_gridspec(1, 2, width_ratios=(1.9, 1))
    over_volumes, on_truth = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    left = list(over_volumes.subplots(3, 1, sharex=True))
    right = list(on_truth.subplots(2, 1))
    volumes = np.arange(len(true))
    units = (("translation", "mm"), ("rotation", "°"))
    for part, (name, unit) in enumerate(units):
        columns = slice(3 * part, 3 * part + 3)
        _components(left[part], volumes, errors[:, columns])
        left[part].set_ylabel(f"{name} error ({unit})")
        _scatter(right[part], true[:, columns], estimated[:, columns], f"{name} ({unit})")
    _against_nothing(left[2], volumes, tre, tre_nothing)
    for axes in left:
        mark_volumes(axes, shaded)
        axes.set_xlim(-0.6, len(true) - 0.4)
    left[2].set_xlabel("volume" + (" (grey: b=0)" if len(shaded) else ""))
    left[0].set_title(title, loc="left")
    left[0].legend(ncols=3, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    return figure


def _components(axes: Axes, volumes: np.ndarray, values: np.ndarray) -> None:
    axes.axhline(0, color=FADED, lw=0.8)
    for (name, color), column in zip(AXIS_COLORS.items(), values.T, strict=True):
        axes.plot(volumes, column, color=color, lw=1.0, marker="o", ms=2.5, label=name)


def _scatter(axes: Axes, true: np.ndarray, estimated: np.ndarray, label: str) -> None:
    low, high = (f(np.concatenate([true, estimated])) for f in (np.min, np.max))
    margin = 0.06 * max(high - low, 1e-3)
    ends = np.array([low - margin, high + margin])
    axes.plot(ends, ends, color=FADED, lw=0.8, zorder=0)
    for (name, color), x, y in zip(AXIS_COLORS.items(), true.T, estimated.T, strict=True):
        axes.plot(x, y, "o", color=color, ms=3.5, alpha=0.7, mew=0, label=name)
    axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel=f"true {label}",
             ylabel=f"estimated {label}")  # fmt: skip
    axes.locator_params(nbins=5)
    axes.spines[["top", "right"]].set_visible(False)


def _against_nothing(
    axes: Axes, volumes: np.ndarray, tre: np.ndarray, tre_nothing: np.ndarray
) -> None:
    """Draw two errors on a logarithmic axis, since one should be far below the other."""
    known = np.concatenate([tre, tre_nothing])
    known = known[known > 0]
    floor = known.min() / 2 if known.size else 1e-3
    axes.plot(volumes, np.maximum(tre_nothing, floor), color=FADED, lw=1.2, marker="o", ms=2.5,
              label="nothing done")  # fmt: skip
    axes.plot(volumes, np.maximum(tre, floor), color=ONE, lw=1.2, marker="o", ms=2.5,
              label="estimated")  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("mean TRE (mm)")
    axes.legend(ncols=2, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)


@own_style()
def slices_comparison_figure(
    times: np.ndarray,
    displacement: Mapping[str, np.ndarray],
    *,
    shaded: Sequence[int] | np.ndarray,
    title: str,
) -> Figure:
    """Draw the errors of slices in the order of time, and their distribution.

    Parameters
    ----------
    times : (N, Z) array
        Of the slices, seconds; volumes are drawn one after the other where they are not known.
    displacement : mapping
        Name → RMS displacement (N, Z), mm, NaN for slices that do not count; the estimate first.
    shaded : sequence of int
        Volumes to be marked: b=0.
    title : str
    """
    n_volumes, n_slices = times.shape
    known = bool(np.isfinite(times).all())
    when = times if known else np.arange(n_volumes * n_slices).reshape(times.shape) / n_slices
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    course, share = figure.subplots(1, 2, width_ratios=(2.6, 1))
    order = np.argsort(when, axis=None, kind="stable")
    for (name, values), color in zip(displacement.items(), (ONE, OTHER, FADED), strict=False):
        ordered = values.ravel()[order]
        counts = np.isfinite(ordered)
        course.plot(when.ravel()[order][counts], ordered[counts], ".", color=color, ms=3,
                    label=name, zorder=3 - len(course.lines) / 10)  # fmt: skip
        found = np.sort(ordered[counts])
        share.plot(found, 100 * np.arange(1, len(found) + 1) / len(found), color=color, lw=1.4)
    starts = np.append(when.min(axis=1), when.max() + np.ptp(when[-1]) / n_slices)
    for volume in shaded:
        course.axvspan(*starts[volume : volume + 2], color="#E8E8E8", lw=0, zorder=0)
    course.set_xlim(starts[0], starts[-1])
    unit = "time (s)" if known else "volume"
    course.set_xlabel(unit + (", grey: b=0" if len(shaded) else ""))
    course.set_ylabel("displacement of a slice (mm)")
    course.set_title(title, loc="left")
    course.legend(frameon=False, ncols=3, loc="upper right", markerscale=3)
    share.set(xlabel="displacement (mm)", ylabel="slices below this (%)", ylim=(0, 101))
    for axes in (course, share):
        axes.spines[["top", "right"]].set_visible(False)
    _from_least_to_largest(course, share, displacement)
    return figure


def _from_least_to_largest(
    course: Axes, share: Axes, displacement: Mapping[str, np.ndarray]
) -> None:
    """Draw both on a logarithmic axis: one error should be far below the others."""
    found = np.concatenate([values[np.isfinite(values)] for values in displacement.values()])
    found = found[found > 0]
    least, most = (found.min(), found.max()) if found.size else (1e-3, 1.0)
    limits = max(least, most / 1e4) / 1.5, most * 2.5
    course.set(yscale="log", ylim=limits)
    share.set(xscale="log", xlim=limits)
    course.yaxis.set_major_formatter("{x:g}")
    share.xaxis.set_major_formatter("{x:g}")


@own_style()
def landmarks_figure(
    labels: Sequence[str], before: np.ndarray, after: np.ndarray | None, title: str
) -> Figure:
    """Draw how far landmarks are apart: one line each, or their distribution if there are many.

    Parameters
    ----------
    labels : sequence of P str
    before : (P,) array
        mm.
    after : (P,) array, optional
        Under a transform, mm.
    title : str
    """
    many = len(labels) > MAX_NAMED
    height = 5.0 if many else 1.6 + 0.24 * len(labels)
    figure = Figure(figsize=(8.5, height), layout="constrained")
    axes = figure.subplots()
    shown = {"before": (before, OTHER), "after": (after, ONE)}
    for name, (values, color) in shown.items():
        if values is None:
            continue
        if many:
            share = np.arange(1, len(values) + 1) / len(values)
            axes.step(np.sort(values), 100 * share, color=color, where="post", label=name)
        else:
            axes.plot(values, np.arange(len(values)), "o", color=color, ms=6, label=name, zorder=3)
            axes.axvline(float(values.mean()), color=color, lw=0.9, ls=":")
    if many:
        axes.set(ylabel="landmarks within this distance (%)", ylim=(0, 101))
    else:
        if after is not None:
            axes.hlines(np.arange(len(before)), before, after, color="#BBBBBB", lw=1.5)
        axes.set_yticks(np.arange(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.grid(axis="x", color="#EEEEEE")
        axes.set_axisbelow(True)
    note = "" if many else " (dotted: mean)"
    axes.set_xlabel("target registration error (mm)" + note)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left")
    if after is not None:
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    return figure


@own_style()
def series_figure(
    series: Mapping[str, Mapping[str, np.ndarray]],
    between: np.ndarray | None,
    *,
    shaded: Sequence[int] | np.ndarray,
) -> Figure:
    """Draw the quality of one or two series over the volumes, and NDC against smoothness.

    Parameters
    ----------
    series : mapping
        Name → ``loo_r2``, ``ndc``, ``fwhm_mm``, each (N,).
    between : (N,) array, optional
        Correlation of the two series, volume by volume.
    shaded : sequence of int
        Volumes to be marked: b=0.
    """
    rows = 2 if between is None else 3
    figure = Figure(figsize=(12.5, 2.0 + 1.9 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 2, width_ratios=(2.3, 1))
    left = [figure.add_subplot(grid[row, 0]) for row in range(rows)]
    right = figure.add_subplot(grid[:, 1])
    for (name, values), color in zip(series.items(), (OTHER, ONE), strict=False):
        volumes = np.arange(len(values["ndc"]))
        for axes, key in zip(left, ("loo_r2", "ndc"), strict=False):
            axes.plot(volumes, values[key], color=color, lw=1.2, marker="o", ms=2.5, label=name)
        _one_point(right, values["fwhm_mm"], values["ndc"], color)
    labels = ["explained by\nleave-one-out (R²)", "neighbouring-DWI\ncorrelation"]
    if between is not None:
        left[2].plot(np.arange(len(between)), between, color="#333333", lw=1.2, marker="o", ms=2.5)
        labels.append("correlation of\nthe two series")
    for axes, label in zip(left, labels, strict=True):
        axes.set_ylabel(label)
        axes.set_xlim(-0.6, len(volumes) - 0.4)
        axes.grid(axis="y", color="#EEEEEE")
        mark_volumes(axes, shaded)
        axes.tick_params(labelbottom=axes is left[-1])
    left[-1].set_xlabel("volume" + (" (grey: b=0)" if len(shaded) else ""))
    left[0].legend(ncols=2, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    _finish_smoothness(right)
    return figure


def _one_point(axes: Axes, fwhm: np.ndarray, ndc: np.ndarray, color: str) -> None:
    """Draw a series as a cloud of volumes and its mean NDC at its median smoothness."""
    known = np.isfinite(fwhm) & np.isfinite(ndc)
    axes.plot(fwhm[known], ndc[known], "o", color=color, ms=3, alpha=0.35, mew=0)
    if known.any():
        axes.plot(np.median(fwhm[known]), ndc[known].mean(), "o", color=color, ms=10,
                  mec="black", mew=0.8)  # fmt: skip


def _finish_smoothness(axes: Axes) -> None:
    axes.set_xlabel("smoothness of the residual, FWHM (mm)")
    axes.set_ylabel("neighbouring-DWI correlation")
    axes.set_title("smoothing raises it, too (small: volumes)", loc="left", fontsize="medium")
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
