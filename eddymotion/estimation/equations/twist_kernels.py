# SPDX-License-Identifier: Apache-2.0
"""Compiled inner loop: sums of forces at points, and of their moments.

As :mod:`eddymotion.images.kernels`: it has a plain twin in the tests.
"""

from __future__ import annotations

import numpy as np

from eddymotion.machine.compiling import compiled


def sum_twists(
    points: np.ndarray, slopes: np.ndarray, factors: np.ndarray, parts: np.ndarray
) -> np.ndarray:
    """Sum ``[f, x × f]`` over the points of each part, ``f`` being the slopes times factors.

    Parameters
    ----------
    points : (V, 3) array
        ``x``
    slopes : (N, 3, V) float32 array
    factors : (N, V) float32 array
    parts : (V,) or (N, V) int array
        In which part each point is: from zero on, in any order; fast where neighbours are alike.

    Returns
    -------
    (B, N, 6) array
    """
    sums = np.zeros((int(parts.max()) + 1, len(slopes), 6))
    places = np.ascontiguousarray(points.T, dtype=np.float32)
    parts = np.atleast_2d(np.ascontiguousarray(parts, dtype=np.int32))
    slopes, factors = np.ascontiguousarray(slopes), np.ascontiguousarray(factors)
    _sum_all(places, slopes, factors, parts, sums)
    return sums


@compiled
def _sum_all(places, slopes, factors, parts, sums):
    """Add to `sums` (B, N, 6); `parts` are those of all volumes in one row, or a row for each."""
    x, y, z = places[0], places[1], places[2]
    for volume in range(slopes.shape[0]):
        own, of = slopes[volume], parts[volume % parts.shape[0]]
        _sum_twists(x, y, z, own[0], own[1], own[2], factors[volume], of, sums[:, volume])


@compiled
def _sum_twists(x, y, z, slope_x, slope_y, slope_z, factors, parts, sums):
    """Add to `sums` (B, 6) of one volume; everything else is (V,)."""
    zero = np.float32(0.0)
    first = 0
    while first < parts.size:
        part, stop = parts[first], first + 1
        while stop < parts.size and parts[stop] == part:
            stop += 1
        a, b, c, d, e, f = zero, zero, zero, zero, zero, zero
        for p in range(first, stop):
            u, v, w = factors[p] * slope_x[p], factors[p] * slope_y[p], factors[p] * slope_z[p]
            a += u
            b += v
            c += w
            d += y[p] * w - z[p] * v
            e += z[p] * u - x[p] * w
            f += x[p] * v - y[p] * u
        sums[part, 0] += a
        sums[part, 1] += b
        sums[part, 2] += c
        sums[part, 3] += d
        sums[part, 4] += e
        sums[part, 5] += f
        first = stop
