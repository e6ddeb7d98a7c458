# SPDX-License-Identifier: Apache-2.0
"""Compiled inner loop that reads a stack of slices, each at a pose of its own.

As :mod:`eddymotion.images.kernels`: the kernel has a plain twin in the tests.
"""

from __future__ import annotations

import numpy as np

from eddymotion.images.kernels import PADDING, _slopes, _weights
from eddymotion.machine.compiling import compiled

N_NODES = 8
"""Slices that may have a say at a point."""

REACH = 2.6
"""Farther slices, in slices, say nothing."""

NEAREST = 1.0
"""Where the nearest slice is farther than this, in slices, nothing is known."""

SLICE_STEPS = 6
"""At most so many steps find the slice that a point was recorded in."""

LEAST_WEIGHT = 1e-3
"""Slices of less weight are not read."""


@compiled
def _height(matrices, points, p, k, shifts):
    """Where a point is along the slice axis, in slices, under the pose of slice `k`."""
    m = matrices[k, 2]
    height = m[0] * points[p, 0] + m[1] * points[p, 1] + m[2] * points[p, 2] + m[3]
    return height + shifts[p, 2] if shifts.shape[0] else height


@compiled
def _nearest(matrices, points, p, shifts):
    """Return the slice that a point was recorded in, and the height there."""
    last = matrices.shape[0] - 1
    k = (last + 1) // 2
    height = 0.0
    for _ in range(SLICE_STEPS):
        height = _height(matrices, points, p, k, shifts)
        found = min(max(int(np.floor(height + 0.5)), 0), last)
        if found == k:
            break
        k = found
    return k, height


@compiled
def find_slices(matrices, points, shifts, slices, heights):
    """Fill the slice that each point was recorded in, (P,) int, and its height there, (P,)."""
    for p in range(points.shape[0]):
        slices[p], heights[p] = _nearest(matrices, points, p, shifts)


@compiled
def _covariance(distance, length):
    """Covariance of two slices so far apart, and its derivative."""
    value = np.exp(-0.5 * (distance / length) ** 2)
    return value, -distance / length**2 * value


@compiled
def _factor(matrix, n):
    """Replace the lower triangle of a positive matrix by its Cholesky factor."""
    for j in range(n):
        for i in range(j, n):
            value = matrix[i, j]
            for q in range(j):
                value -= matrix[i, q] * matrix[j, q]
            matrix[i, j] = np.sqrt(max(value, 1e-12)) if i == j else value / matrix[j, j]


@compiled
def _solve(factor, n, right):
    """Solve in place with the factor of :func:`_factor`."""
    for i in range(n):
        for q in range(i):
            right[i] -= factor[i, q] * right[q]
        right[i] /= factor[i, i]
    for step in range(n):
        i = n - 1 - step
        for q in range(i + 1, n):
            right[i] -= factor[q, i] * right[q]
        right[i] /= factor[i, i]


@compiled
def _krige(distances, n, length, nugget, work, weights, slopes):
    """Fill the weights of `n` nodes at such distances, their slopes; return the variance.

    Ordinary kriging: the weights add up to one. The slopes are derivatives by the height of the
    point, with which all distances grow.
    """
    ones = work[n]
    for i in range(n):
        for j in range(i + 1):
            work[i, j] = _covariance(distances[i] - distances[j], length)[0]
        work[i, i] += nugget
        weights[i], slopes[i] = _covariance(distances[i], length)
        ones[i] = 1.0
    _factor(work, n)
    variance = 1.0
    _solve(work, n, ones)
    sum_ones, sum_weights, sum_slopes = 0.0, 0.0, 0.0
    for i in range(n):
        slopes[i + n] = weights[i]  # the covariance, kept
    _solve(work, n, weights)
    _solve(work, n, slopes)
    for i in range(n):
        variance -= weights[i] * slopes[i + n]
        sum_ones += ones[i]
        sum_weights += weights[i]
        sum_slopes += slopes[i]
    variance += (1.0 - sum_weights) ** 2 / sum_ones
    for i in range(n):
        weights[i] += ones[i] * (1.0 - sum_weights) / sum_ones
        slopes[i] -= ones[i] * sum_slopes / sum_ones
    return variance


@compiled
def _in_plane(plane, a, b):
    """Read a slice at (a, b) voxels: the value, and its slopes along a and b."""
    ia, ib = int(np.floor(a)), int(np.floor(b))
    ta, tb = np.float32(a - ia), np.float32(b - ib)
    wa, wb, sa, sb = _weights(ta), _weights(tb), _slopes(ta), _slopes(tb)
    value, slope_a, slope_b = np.float32(0), np.float32(0), np.float32(0)
    first_a, first_b = ia + PADDING - 1, ib + PADDING - 1
    for i in range(4):
        row, along = np.float32(0), np.float32(0)
        for j in range(4):
            coefficient = plane[first_a + i, first_b + j]
            row += wb[j] * coefficient
            along += sb[j] * coefficient
        value += wa[i] * row
        slope_a += sa[i] * row
        slope_b += wa[i] * along
    return value, slope_a, slope_b


@compiled
def _find_nodes(matrices, points, p, shifts, lost, low, nodes, distances):
    """Fill the slices near a point and how far each is; return how many, and the least."""
    n, least = 0, np.inf
    for k in range(low, min(low + N_NODES, matrices.shape[0])):
        distance = _height(matrices, points, p, k, shifts) - k
        if abs(distance) < REACH and not lost[k]:
            nodes[n], distances[n] = k, distance
            least = min(least, abs(distance))
            n += 1
    return n, least


@compiled
def _place(matrix, points, p, shifts):
    """Where a point is in the plane of a slice: a, b in voxels."""
    m = matrix
    a = m[0, 0] * points[p, 0] + m[0, 1] * points[p, 1] + m[0, 2] * points[p, 2] + m[0, 3]
    b = m[1, 0] * points[p, 0] + m[1, 1] * points[p, 1] + m[1, 2] * points[p, 2] + m[1, 3]
    if shifts.shape[0]:
        return a + shifts[p, 0], b + shifts[p, 1]
    return a, b


@compiled
def _mix(coefficients, matrices, points, p, shifts, nodes, n, of_nodes, along):
    """Read the slices and weigh them: value, and slopes along a, b and the slice axis.

    NaN where one of them does not reach.
    """
    last_a = coefficients.shape[1] - 2 * PADDING - 0.5
    last_b = coefficients.shape[2] - 2 * PADDING - 0.5
    total, by_a, by_b, by_c = 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        if max(abs(of_nodes[i]), abs(along[i])) < LEAST_WEIGHT:
            continue
        a, b = _place(matrices[nodes[i]], points, p, shifts)
        if not (-0.5 <= a <= last_a and -0.5 <= b <= last_b):
            return np.nan, 0.0, 0.0, 0.0
        value, slope_a, slope_b = _in_plane(coefficients[nodes[i]], a, b)
        total += of_nodes[i] * value
        by_a += of_nodes[i] * slope_a
        by_b += of_nodes[i] * slope_b
        by_c += along[i] * value
    return total, by_a, by_b, by_c


@compiled
def read_slices(coefficients, matrices, points, shifts, lost, kriging, values, slopes, weights,
                first):  # fmt: skip
    """Read a stack of slices at points of the head.

    Parameters
    ----------
    coefficients : (Z, A + 4, B + 4) float32 array
        Padded cubic B-spline coefficients of each slice in its plane.
    matrices : (Z, 3, 4) float64 array
        Points → a, b and the slice axis, in voxels, under the pose of each slice.
    points : (P, 3) float64 array
        Of the head, mm.
    shifts : (P, 3) or (0, 3) float64 array
        Added to a, b and the slice axis.
    lost : (Z,) bool array
        Slices that are not read.
    kriging : (3,) float64 array
        Length (slices), nugget and largest variance; see
        :class:`~eddymotion.images.stack.Kriging`.
    values : (P,) float32 array
        Filled; NaN where nothing is known.
    slopes : (P, 3) float32 array
        Filled: per mm along the axes of the points; zero where nothing is known.
    weights : (P, 8) float32 array
        Filled: how much each of the slices from `first` on counts; zero likewise.
    first : (P,) int64 array
        Filled.
    """
    n_slices = coefficients.shape[0]
    length, nugget, most = kriging
    nodes = np.empty(N_NODES, np.int64)
    distances = np.empty(N_NODES)
    work = np.empty((N_NODES + 1, N_NODES))
    of_nodes, along = np.empty(N_NODES), np.empty(2 * N_NODES)
    for p in range(points.shape[0]):
        values[p], slopes[p], weights[p] = np.nan, np.float32(0), np.float32(0)
        near, height = _nearest(matrices, points, p, shifts)
        low = max(0, min(near - N_NODES // 2 + 1, n_slices - N_NODES))
        first[p] = low
        if height < -0.5 or height > n_slices - 0.5:
            continue
        n, least = _find_nodes(matrices, points, p, shifts, lost, low, nodes, distances)
        if n < 2 or least > NEAREST:
            continue
        if _krige(distances, n, length, nugget, work, of_nodes, along) > most:
            continue
        total, by_a, by_b, by_c = _mix(
            coefficients, matrices, points, p, shifts, nodes, n, of_nodes, along
        )
        if np.isnan(total):
            continue
        values[p] = total
        for i in range(n):
            weights[p, nodes[i] - low] = of_nodes[i]
        m = matrices[near]
        for axis in range(3):
            slopes[p, axis] = m[0, axis] * by_a + m[1, axis] * by_b + m[2, axis] * by_c
