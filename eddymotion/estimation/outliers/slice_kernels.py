# SPDX-License-Identifier: Apache-2.0
"""Compiled inner loop: least squares for the gains of slices.

As :mod:`eddymotion.images.kernels`: it has a plain twin in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.machine.compiling import compiled


@dataclass(frozen=True, eq=False)
class SliceSums:
    """Normal equations for changes ``c`` of gains: ``y − p ≈ p Σ_k w_k c_k`` at points.

    Parameters
    ----------
    normal : (Z, Z) array
        ``Σ w_j w_k p²``
    slopes : (Z,) array
        ``Σ w_k p (y − p)``
    squares : (Z,) array
        ``Σ (y − p)²`` of the points of each slice.
    n_points : (Z,) int array
    """

    normal: np.ndarray
    slopes: np.ndarray
    squares: np.ndarray
    n_points: np.ndarray

    @classmethod
    def of_spline(
        cls,
        observed: np.ndarray,
        predicted: np.ndarray,
        height: np.ndarray,
        n_slices: int,
        most_off: float,
    ) -> SliceSums:
        """Sum over points, at which gains are interpolated as an image is.

        Parameters
        ----------
        observed, predicted : (V,) array
            ``y`` and ``p``; NaN where not known.
        height : (V,) array
            Where the points are along the slice axis, in slices.
        n_slices : int
        most_off : float
            Points that are farther from the middle of a slice do not count.
        """
        n = n_slices
        found = cls(np.zeros((n, n)), np.zeros(n), np.zeros(n), np.zeros(n, np.int64))
        columns = (np.ascontiguousarray(of, dtype=np.float32) for of in
                   (observed, predicted, height))  # fmt: skip
        _sum_slices(*columns, most_off, found.normal, found.slopes, found.squares, found.n_points)
        return found


@compiled
def _sum_slices(observed, predicted, height, most_off, normal, slopes, squares, n_points):
    """Add to the sums of :class:`SliceSums`; cubic splines are mirrored at the last slices."""
    last = slopes.size - 1
    knots, weights = np.empty(4, np.int64), np.empty(4)
    for v in range(height.size):
        if not np.isfinite(height[v]):
            continue
        h, y, p = float(height[v]), float(observed[v]), float(predicted[v])
        index = int(np.rint(h))
        if not (abs(h - index) < most_off and 0 <= index <= last):
            continue
        if not (np.isfinite(y) and np.isfinite(p)):
            continue
        away = y - p
        n_points[index] += 1
        squares[index] += away * away
        h = last - abs(last - abs(h))
        first = int(np.floor(h))
        t = h - first
        weights[0] = (1 - t) ** 3 / 6
        weights[1] = (3 * t**3 - 6 * t**2 + 4) / 6
        weights[2] = (3 * (t + t**2 - t**3) + 1) / 6
        weights[3] = t**3 / 6
        for a in range(4):
            knots[a] = last - abs(last - abs(first + a - 1))
        for a in range(4):
            slopes[knots[a]] += weights[a] * p * away
            for b in range(4):
                normal[knots[a], knots[b]] += weights[a] * weights[b] * p * p
