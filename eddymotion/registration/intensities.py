# SPDX-License-Identifier: Apache-2.0
"""What one image's intensities mean in the other: the contrast of a pair."""

from __future__ import annotations

import numpy as np

N_BINS = 24
"""Of equal counts, over the intensities of the first image."""


def intensity_curve(values: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return knots of the mean of `targets` as a function of `values`.

    It is the curve whose residuals the correlation ratio measures (Roche et al. 1998).

    Parameters
    ----------
    values, targets : (P,) array
        Intensities of two aligned images at the same points.

    Returns
    -------
    knots, means : (K,) array
        For :func:`numpy.interp`; at least two.
    """
    if values.size < N_BINS:
        return np.array([0.0, 1.0]), np.array([0.0, 1.0])
    edges = np.unique(np.quantile(values, np.linspace(0, 1, N_BINS + 1)))
    if len(edges) < 3:
        return np.array([values.mean(), values.mean() + 1]), np.full(2, targets.mean())
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(bins, minlength=len(edges) - 1)
    filled = counts > 0
    knots = np.bincount(bins, values, len(counts))[filled] / counts[filled]
    means = np.bincount(bins, targets, len(counts))[filled] / counts[filled]
    return knots, means
