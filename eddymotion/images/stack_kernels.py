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

SLICE_STEPS = 6
"""Largest number of steps in which the slice is found that recorded a point."""

RIGHT_SIDES = 4
"""Solved for at once: weights, their slopes, and ones; the last one fills a register."""

LEAST_WEIGHT = 1e-3
"""Slices of less weight are not read."""


@compiled
def _point(points, shifts, p):
    """Return a point, and what is added to where it is in the planes and along the slice axis."""
    if shifts.shape[0]:
        return (points[p, 0], points[p, 1], points[p, 2],
                shifts[p, 0], shifts[p, 1], shifts[p, 2])  # fmt: skip
    return points[p, 0], points[p, 1], points[p, 2], 0.0, 0.0, 0.0


@compiled
def _along(matrices, k, axis, point):
    """Where a point is along an axis under the pose of slice `k`, in voxels."""
    m = matrices[k, axis]
    return m[0] * point[0] + m[1] * point[1] + m[2] * point[2] + m[3] + point[3 + axis]


@compiled
def _nearest(matrices, point):
    """Return the slice that a point was recorded in, and the height there."""
    last = matrices.shape[0] - 1
    k = (last + 1) // 2
    height = 0.0
    for _ in range(SLICE_STEPS):
        height = _along(matrices, k, 2, point)
        found = min(max(int(np.floor(height + 0.5)), 0), last)
        if found == k:
            break
        k = found
    return k, height


@compiled
def find_slices(matrices, points, shifts, slices, heights):
    """Fill the slice that each point was recorded in, (P,) int, and its height there, (P,)."""
    for p in range(points.shape[0]):
        slices[p], heights[p] = _nearest(matrices, _point(points, shifts, p))


@compiled
def _covariance(distance, decay):
    """Covariance of two slices at a distance; `decay` is the inverse square of the length."""
    return np.exp(-0.5 * decay * distance * distance)


@compiled
def _factor(matrix, n):
    """Replace the lower triangle of a positive matrix ``L D Lᵀ`` by ``L D``, without roots.

    With the inverse of ``D`` in the diagonal.
    """
    for j in range(n):
        matrix[j, j] = 1 / max(matrix[j, j], 1e-12)
        for i in range(j + 1, n):
            share = matrix[i, j] * matrix[j, j]
            for q in range(j + 1, i + 1):
                matrix[i, q] -= share * matrix[q, j]


@compiled
def _solve(factor, n, right):
    """Solve in place for right sides (…, 4) with the factor of :func:`_factor`."""
    for j in range(n):
        for c in range(RIGHT_SIDES):
            right[j, c] *= factor[j, j]
        for i in range(j + 1, n):
            for c in range(RIGHT_SIDES):
                right[i, c] -= factor[i, j] * right[j, c]
    for step in range(n):
        j = n - 1 - step
        for i in range(j + 1, n):
            share = factor[i, j] * factor[j, j]
            for c in range(RIGHT_SIDES):
                right[j, c] -= share * right[i, c]


@compiled
def _relate(distances, n, decay, nugget, work):
    """Factor the covariance of `n` nodes at such distances."""
    for i in range(n):
        for j in range(i):
            work[i, j] = _covariance(distances[i] - distances[j], decay)
        work[i, i] = 1.0 + nugget
    _factor(work, n)


@compiled
def _krige(distances, n, decay, work, weights):
    """Fill the weights of `n` nodes at such distances, and how they change with the height.

    Ordinary kriging, with the `work` of :func:`_relate`: the weights add up to one. All distances
    grow with the height of the point.

    Parameters
    ----------
    weights : (8, 4) array
        Filled: weights and their derivatives in the first two columns.

    Returns
    -------
    float
        The variance.
    """
    for i in range(n):
        covariance = _covariance(distances[i], decay)
        weights[i, 0], weights[i, 1] = covariance, -distances[i] * decay * covariance
        weights[i, 2], work[n, i] = 1.0, covariance
    _solve(work, n, weights)
    sum_weights, sum_slopes, sum_ones, variance = 0.0, 0.0, 0.0, 1.0
    for i in range(n):
        variance -= weights[i, 0] * work[n, i]
        sum_weights += weights[i, 0]
        sum_slopes += weights[i, 1]
        sum_ones += weights[i, 2]
    left = 1.0 - sum_weights
    more, less = left / sum_ones, sum_slopes / sum_ones
    for i in range(n):
        weights[i, 0] += weights[i, 2] * more
        weights[i, 1] -= weights[i, 2] * less
    return variance + left**2 / sum_ones


@compiled
def _share_a_pose(matrices):
    """Whether all slices have one pose: nodes that follow each other are one slice apart."""
    for k in range(1, matrices.shape[0]):
        for i in range(3):
            for j in range(4):
                if matrices[k, i, j] != matrices[0, i, j]:
                    return False
    return True


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
def _value_in_plane(plane, a, b):
    """Read a slice at (a, b) voxels: the value alone."""
    ia, ib = int(np.floor(a)), int(np.floor(b))
    wa, wb = _weights(np.float32(a - ia)), _weights(np.float32(b - ib))
    value = np.float32(0)
    first_a, first_b = ia + PADDING - 1, ib + PADDING - 1
    for i in range(4):
        row = np.float32(0)
        for j in range(4):
            row += wb[j] * plane[first_a + i, first_b + j]
        value += wa[i] * row
    return value


@compiled
def _find_nodes(matrices, plane, point, lost, at_rest, nodes, places):
    """Fill slices that come near a point, and where it is: in the plane, and from each in slices.

    Returns
    -------
    n : int
        How many.
    near, low : int
        The slice that the point was recorded in, and the first that may count.
    least : float
        Distance of the nearest; infinite in a gap that none comes near, NaN outside the stack.
    """
    n_slices = matrices.shape[0]
    near, height = _nearest(matrices, point)
    low = max(0, min(near - N_NODES // 2 + 1, n_slices - N_NODES))
    n, least, outside = 0, np.inf, False
    if height < -0.5 or height > n_slices - 0.5:
        return n, near, low, np.nan
    a, b = _along(matrices, near, 0, point), _along(matrices, near, 1, point)
    for k in range(low, min(low + N_NODES, n_slices)):
        distance = (height if at_rest else _along(matrices, k, 2, point)) - k
        if abs(distance) < REACH and not lost[k]:
            if not at_rest:
                a, b = _along(matrices, k, 0, point), _along(matrices, k, 1, point)
            if -0.5 <= a <= plane[0] - 0.5 and -0.5 <= b <= plane[1] - 0.5:
                nodes[n], places[0, n], places[1, n], places[2, n] = k, a, b, distance
                least = min(least, abs(distance))
                n += 1
            else:
                outside = True
    return n, near, low, np.nan if outside and n == 0 else least


@compiled
def weigh_slices(plane, matrices, points, shifts, lost, kriging, weights, first):
    """Fill the weight of each slice of a stack at points of the head.

    Parameters
    ----------
    plane : (int, int)
        Voxels of a slice along a and b.
    matrices, points, shifts, lost, kriging, weights, first
        As of :func:`read_slices`; weights are zero only where no two slices come near.
    """
    nodes, places = np.empty(N_NODES, np.int64), np.empty((3, N_NODES))
    work, of_nodes = np.empty((N_NODES + 1, N_NODES)), np.zeros((N_NODES, RIGHT_SIDES))
    distances, at_rest, related = places[2], _share_a_pose(matrices), 0
    decay = 1 / kriging[0] ** 2
    for p in range(points.shape[0]):
        weights[p] = np.float32(0)
        point = _point(points, shifts, p)
        n, _, low, _ = _find_nodes(matrices, plane, point, lost, at_rest, nodes, places)
        first[p] = low
        if n < 2:
            continue
        in_a_row = at_rest and nodes[n - 1] - nodes[0] == n - 1
        if not in_a_row or related != n:
            _relate(distances, n, decay, kriging[1], work)
            related = n if in_a_row else 0
        _krige(distances, n, decay, work, of_nodes)
        for i in range(n):
            weights[p, nodes[i] - low] = of_nodes[i, 0]


@compiled
def find_gaps(plane, matrices, points, shifts, lost, kriging, gaps):
    """Fill where the slices of a stack left a gap within it, (P,) bool.

    Other parameters as of :func:`weigh_slices`. More slices never raise the variance of kriging:
    where that by the nearest one alone is low enough, no weights are needed.
    """
    nugget, most, nearest = kriging[1:]
    decay = 1 / kriging[0] ** 2
    nodes, places = np.empty(N_NODES, np.int64), np.empty((3, N_NODES))
    work, of_nodes = np.empty((N_NODES + 1, N_NODES)), np.zeros((N_NODES, RIGHT_SIDES))
    distances = places[2]
    for p in range(points.shape[0]):
        point = _point(points, shifts, p)
        n, _, _, least = _find_nodes(matrices, plane, point, lost, False, nodes, places)
        gaps[p] = not np.isnan(least) and (n < 2 or least > nearest)
        if n < 2 or gaps[p] or 2 + nugget - 2 * _covariance(least, decay) <= most:
            continue
        _relate(distances, n, decay, nugget, work)
        gaps[p] = _krige(distances, n, decay, work, of_nodes) > most


@compiled
def _mix(coefficients, nodes, places, n, of_nodes):
    """Read the slices and weigh them: value, and slopes along a, b and the slice axis."""
    total, by_a, by_b, by_c = 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        weight, along = of_nodes[i, 0], of_nodes[i, 1]
        if max(abs(weight), abs(along)) < LEAST_WEIGHT:
            continue
        value, slope_a, slope_b = _in_plane(coefficients[nodes[i]], places[0, i], places[1, i])
        total += weight * value
        by_a += weight * slope_a
        by_b += weight * slope_b
        by_c += along * value
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
    kriging : (4,) float64 array
        Length (slices), nugget, largest variance, and distance (slices) within which a slice has
        to be; see :class:`~eddymotion.images.stack.Kriging`.
    values : (P,) float32 array
        Filled; NaN where nothing is known.
    slopes : (P, 3) float32 array
        Filled: per mm along the axes of the points; zero where nothing is known.
    weights : (P, 8) float32 array
        Filled: how much each of the slices from `first` on counts; zero likewise.
    first : (P,) int64 array
        Filled.
    """
    plane = (coefficients.shape[1] - 2 * PADDING, coefficients.shape[2] - 2 * PADDING)
    nugget, most, nearest = kriging[1:]
    decay = 1 / kriging[0] ** 2
    nodes, places = np.empty(N_NODES, np.int64), np.empty((3, N_NODES))
    work, of_nodes = np.empty((N_NODES + 1, N_NODES)), np.zeros((N_NODES, RIGHT_SIDES))
    distances, at_rest, related = places[2], _share_a_pose(matrices), 0
    for p in range(points.shape[0]):
        values[p], slopes[p], weights[p] = np.nan, np.float32(0), np.float32(0)
        point = _point(points, shifts, p)
        n, near, low, least = _find_nodes(matrices, plane, point, lost, at_rest, nodes, places)
        first[p] = low
        if n < 2 or least > nearest:
            continue
        in_a_row = at_rest and nodes[n - 1] - nodes[0] == n - 1
        if not in_a_row or related != n:
            _relate(distances, n, decay, nugget, work)
            related = n if in_a_row else 0
        if _krige(distances, n, decay, work, of_nodes) > most:
            continue
        total, by_a, by_b, by_c = _mix(coefficients, nodes, places, n, of_nodes)
        if np.isnan(total):
            continue
        values[p] = total
        for i in range(n):
            weights[p, nodes[i] - low] = of_nodes[i, 0]
        m = matrices[near]
        for axis in range(3):
            slopes[p, axis] = m[0, axis] * by_a + m[1, axis] * by_b + m[2, axis] * by_c


@compiled
def read_values(coefficients, matrices, points, shifts, lost, kriging, values):
    """Read a stack of slices at points of the head as :func:`read_slices`: values (P,) alone."""
    plane = (coefficients.shape[1] - 2 * PADDING, coefficients.shape[2] - 2 * PADDING)
    nugget, most, nearest = kriging[1:]
    decay = 1 / kriging[0] ** 2
    nodes, places = np.empty(N_NODES, np.int64), np.empty((3, N_NODES))
    work, of_nodes = np.empty((N_NODES + 1, N_NODES)), np.zeros((N_NODES, RIGHT_SIDES))
    distances = places[2]
    for p in range(points.shape[0]):
        values[p] = np.nan
        point = _point(points, shifts, p)
        n, _, _, least = _find_nodes(matrices, plane, point, lost, False, nodes, places)
        if n < 2 or least > nearest:
            continue
        _relate(distances, n, decay, nugget, work)
        if _krige(distances, n, decay, work, of_nodes) > most:
            continue
        value = 0.0
        for i in range(n):
            if abs(of_nodes[i, 0]) >= LEAST_WEIGHT:
                plane_value = _value_in_plane(coefficients[nodes[i]], places[0, i], places[1, i])
                value += of_nodes[i, 0] * plane_value
        values[p] = value


@compiled
def mix_slices(weights, first, of_slices, mixed):
    """Mix what belongs to slices as their values are mixed.

    Parameters
    ----------
    weights : (P, 8) float32 array
        How much each of the slices from `first` on counts.
    first : (P,) int64 array
    of_slices : (Z, M) float32 array
    mixed : (P, M) float32 array
        Filled.
    """
    for p in range(weights.shape[0]):
        mixed[p] = np.float32(0)
        for k in range(N_NODES):
            weight = weights[p, k]
            if weight != 0:
                for m in range(of_slices.shape[1]):
                    mixed[p, m] += weight * of_slices[first[p] + k, m]
