# SPDX-License-Identifier: Apache-2.0
"""The share of its signal that each slice of a volume has kept.

The values of a volume at random points ``x`` of the brain, at height ``h`` (in slices), are
compared with its leave-one-out prediction::

    y(x) = g(h) ŷ(x) + noise,    g a cubic spline

A volume is interpolated by a cubic spline, and so is the gain of its slices: ``r_k = g(k)`` is the
share of its signal that slice ``k`` has kept, whatever the slices beside it have lost. Least
squares give ``r`` and, from the residual and the number of points in the slice, its standard
error.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from eddymotion.estimation.outliers.slice_kernels import SliceSums
from eddymotion.images.stack import SliceWeights

OFF_MIDDLE = 0.3
"""Points up to this distance (slices) from the middle of a slice count: interpolation there mixes
in little of the slices beside it."""

MIN_POINTS_IN_SLICE = 25
"""Slices with fewer points are not judged."""

RIDGE = 1e-6
"""Pull of the gains to one, relative to the largest entry of their normal matrix."""


class SliceFit(NamedTuple):
    """A volume against its prediction, slice by slice, (Z,) each; NaN with too few points.

    Parameters
    ----------
    gain : array
        Share of the predicted signal that is there.
    error : array
        Its standard error.
    mean_square : array
        Of the residual.
    n_points : array
    """

    gain: np.ndarray
    error: np.ndarray
    mean_square: np.ndarray
    n_points: np.ndarray


def fit_slices(
    observed: np.ndarray,
    predicted: np.ndarray,
    height: np.ndarray,
    n_slices: int,
    mixture: SliceWeights | None = None,
) -> SliceFit:
    """Fit the gain of each slice of a volume to its prediction.

    Parameters
    ----------
    observed, predicted : (V,) array
        NaN where not known.
    height : (V,) array
        Where the points are along the slice axis of the volume, in slices.
    n_slices : int
    mixture : SliceWeights, optional
        Which slices make up what is observed, where the head moved within the volume; as those
        of an image are interpolated when not given.
    """
    if mixture is None:
        sums = SliceSums.of_spline(observed, predicted, height, n_slices, OFF_MIDDLE)
        at_knots = _at_slices(n_slices)
    else:
        sums = _sums_of_mixture(observed, predicted, height, n_slices, mixture)
        at_knots = np.eye(n_slices)
    normal, n_points = sums.normal.copy(), sums.n_points
    normal[np.diag_indices(n_slices)] += RIDGE * max(normal.max(), np.finfo(float).tiny)
    covariance = np.linalg.inv(normal)
    change = covariance @ sums.slopes
    misfit = sums.squares.sum() - 2 * change @ sums.slopes + change @ sums.normal @ change
    n_all = n_points.sum()
    error = np.sqrt(((at_knots @ covariance) * at_knots).sum(axis=1))
    error *= np.sqrt(max(misfit, 0.0) / n_all) if n_all else np.nan
    squares = sums.squares / np.maximum(n_points, 1)
    enough = n_points >= MIN_POINTS_IN_SLICE
    gain, error, squares = (
        np.where(enough, column, np.nan) for column in (1 + at_knots @ change, error, squares)
    )
    return SliceFit(gain, error, squares, n_points)


def _sums_of_mixture(
    observed: np.ndarray,
    predicted: np.ndarray,
    height: np.ndarray,
    n_slices: int,
    mixture: SliceWeights,
) -> SliceSums:
    """Sum as :meth:`SliceSums.of_spline`, of points that are a mixture of slices."""
    index = np.rint(height).astype(int)
    counted = (np.abs(height - index) < OFF_MIDDLE) & (index >= 0) & (index < n_slices)
    counted &= np.isfinite(observed) & np.isfinite(predicted)
    index = index[counted]
    y, p = (values[counted].astype(float) for values in (observed, predicted))
    knots, weights = _mixed_weights(mixture, counted, n_slices)
    normal, slopes = np.zeros((n_slices, n_slices)), np.zeros(n_slices)
    for a in range(len(knots)):
        slopes += np.bincount(knots[a], weights[a] * p * (y - p), n_slices)
        for b in range(a + 1):
            cells = knots[a] * n_slices + knots[b]
            entries = np.bincount(cells, weights[a] * weights[b] * p * p, n_slices**2)
            entries = entries.reshape(n_slices, n_slices)
            normal += entries if a == b else entries + entries.T
    squares = np.bincount(index, (y - p) ** 2, n_slices)
    return SliceSums(normal, slopes, squares, np.bincount(index, minlength=n_slices))


def _mixed_weights(
    mixture: SliceWeights, points: np.ndarray, n_slices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which slices make up what is observed at some of the points, and how much: (8, V) each."""
    weights = mixture.weights[points].T.astype(float)
    slices = mixture.first[points] + np.arange(len(weights))[:, None]
    return np.minimum(slices, n_slices - 1), weights


def spline_through(values: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Interpolate values of slices (Z, m) at heights (P,) as a volume is: (P, m).

    Zero farther than half a slice outside.
    """
    n_slices = len(values)
    inside = (height >= -0.5) & (height <= n_slices - 0.5)
    result = np.zeros((len(height), values.shape[1]))
    knots, weights = _spline_weights(height[inside].astype(float), n_slices)
    coefficients = np.linalg.solve(_at_slices(n_slices), values.astype(float))
    result[inside] = np.einsum("kp,kpm->pm", weights, coefficients[knots])
    return result


def _spline_weights(height: np.ndarray, n_slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Which coefficients of a cubic spline, mirrored at the ends, make its values: (4, V) each."""
    last = n_slices - 1
    height = last - np.abs(last - np.abs(height))
    first = np.floor(height).astype(int)
    t = height - first
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (t + t**2 - t**3) + 1, t**3]
    ) / 6  # fmt: skip
    knots = np.abs(first + np.arange(-1, 3)[:, None])
    return last - np.abs(last - knots), weights


@lru_cache(maxsize=1)
def _at_slices(n_slices: int) -> np.ndarray:
    """Coefficients of the spline → its values at the slices, (Z, Z)."""
    knots, weights = _spline_weights(np.arange(n_slices, dtype=float), n_slices)
    values = np.zeros((n_slices, n_slices))
    np.add.at(values, (np.broadcast_to(np.arange(n_slices), knots.shape), knots), weights)
    values.flags.writeable = False
    return values
