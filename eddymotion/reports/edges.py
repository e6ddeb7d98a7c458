# SPDX-License-Identifier: Apache-2.0
"""Edges of the fluid that b=0 volumes show, to be drawn on volumes that show it dark."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from eddymotion.data.gradients import Gradients
from eddymotion.reports.slices import PLANES, Slices

SMOOTHING_MM = 1.0
"""Standard deviation of the Gaussian filter of the images whose edges are drawn."""

EVEN_MM = 15.0
"""Standard deviation of the Gaussian window over which the brightness of tissue is made even."""

FLUID = 1.3
"""What is brighter than the tissue by this factor does not count as tissue."""

EDGE = 0.35
"""The edge lies here between tissue (0) and fluid (1): low, so that sulci have one too."""

NEAR_MM = 3.0
"""Standard deviation of the window that defines what is near the brain."""

NEAR = 0.2
"""Share of such a window that the brain fills where edges are drawn: the scalp has others."""

SHORTEST_MM = 12.0
"""Shorter edges are mostly noise."""


def has_both_kinds(gradients: Gradients) -> bool:
    """Whether there are b=0 and diffusion-weighted volumes, to be laid on each other."""
    return len(gradients.b0s) > 0 and len(gradients.dwis) > 0


def lowest_shell(slices: Slices) -> dict[str, np.ndarray]:
    """Average the lowest shell, or all diffusion-weighted volumes without shells.

    Returns
    -------
    dict
        Name of a plane → (A, B), relative to the brightness of the tissue around.
    """
    gradients = slices.gradients
    volumes = gradients.shells[0] if gradients.is_shelled else gradients.dwis
    means = _means(slices, volumes)
    return {name: mean / _tissue(slices, name, mean) for name, mean in means.items()}


def b0_edges(slices: Slices, volumes: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Trace the edges between tissue and fluid in the mean of some b=0 volumes.

    Parameters
    ----------
    slices : Slices
    volumes : array of int

    Returns
    -------
    dict
        Name of a plane → lines (K, 2) in voxels along its axes.
    """
    from contourpy import contour_generator

    even = {}
    for name, mean in _means(slices, volumes).items():
        smooth = gaussian_filter(mean, SMOOTHING_MM / slices.sizes(name))
        even[name] = smooth / _tissue(slices, name, mean)
    inside = np.concatenate([even[name][slices.mask(name)] for name in PLANES])
    level = 1 + EDGE * (float(np.percentile(inside, 99)) - 1) if inside.size else np.inf
    found: dict[str, list[np.ndarray]] = {}
    for name, values in even.items():
        sizes, brain = slices.sizes(name), slices.mask(name).astype(float)
        near = gaussian_filter(brain, NEAR_MM / sizes) > NEAR
        drawable = min(values.shape) > 1 and np.isfinite(level)
        shown = np.ma.masked_array(values, ~near).T
        lines: Any = contour_generator(z=shown).lines(level) if drawable else []
        found[name] = [line for line in lines if _length(line * sizes) >= SHORTEST_MM]
    return found


def mask_edges(mask: np.ndarray) -> list[np.ndarray]:
    """Trace the edge of a mask (A, B): lines (K, 2) in voxels along its axes."""
    from contourpy import contour_generator

    if min(mask.shape) < 2 or not mask.any():
        return []
    lines: Any = contour_generator(z=mask.T.astype(float)).lines(0.5)
    return lines


def _means(slices: Slices, volumes: np.ndarray) -> dict[str, np.ndarray]:
    return {
        name: np.nan_to_num(slices.planes[name][..., volumes].mean(axis=-1, dtype=float))
        for name in PLANES
    }


def _tissue(slices: Slices, name: str, plane: np.ndarray) -> np.ndarray:
    """Brightness of the tissue around each pixel, without fluid; coils make it uneven."""
    mask, width = slices.mask(name), EVEN_MM / slices.sizes(name)
    level = _weighted(plane, mask, width)
    relative = plane / level
    tissue = mask & (relative < FLUID * np.median(relative[mask])) if mask.any() else mask
    return _weighted(plane, tissue, width)


def _weighted(plane: np.ndarray, where: np.ndarray, width: np.ndarray) -> np.ndarray:
    total = gaussian_filter(np.where(where, plane, 0.0), width)
    level = total / np.maximum(gaussian_filter(where.astype(float), width), 1e-6)
    return np.maximum(level, max(1e-3 * float(level.max()), 1e-6))


def _length(line: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
