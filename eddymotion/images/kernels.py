# SPDX-License-Identifier: Apache-2.0
"""Compiled inner loops: cubic B-splines and smoothing of volumes.

Every kernel has a plain SciPy twin in the tests. Arrays are C-contiguous with the fastest axis
last; a NIfTI volume in Fortran order is therefore passed transposed, (z, y, x), and coordinates
come in the same order.

A cubic B-spline sample is a weighted sum of 4×4×4 coefficients. The compiler leaves that sum
scalar, so :func:`_weigh_block` emits it as sixteen four-wide loads, and products of sixteen at a
time, which is more than ten times faster. The gradient reuses the loads; where it is not used the
compiler drops it.

Filters run along one axis for many lines side by side, with the innermost loop across the lines,
which the compiler vectorises by itself. Lines side by side are rows of a flat array: row i starts
at ``start + i * step``. Slices, not index sums: the compiler then sees that no index is negative.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eddymotion.machine.compiling import compiled, emitted

PADDING = 2
"""Mirrored coefficients on each side: half a voxel beyond the edge stays addressable."""

EDGE = 0.5
"""Positions up to this far (voxels) outside the outermost voxel centres belong to the image."""

_POLE = np.sqrt(3.0) - 2.0
"""Of the recursive filter that turns samples into cubic B-spline coefficients."""

_HORIZON = 12
"""Samples after which the pole's power is below the rounding of float32."""

_LANES = 16
"""Lines filtered together where they are not side by side in memory."""


def spline_coefficients(volume: np.ndarray) -> np.ndarray:
    """Return the padded cubic B-spline coefficients of a volume, mirrored at its edges.

    Parameters
    ----------
    volume : (A, B, C) array
        C-contiguous float32 for speed.

    Returns
    -------
    (A + 4, B + 4, C + 4) float32 array
    """
    source = _contiguous(volume)
    a, b, c = source.shape
    padded = np.empty((a + 2 * PADDING, b + 2 * PADDING, c + 2 * PADDING), np.float32)
    _prefilter(source, padded.reshape(-1))
    return padded


def smooth(volume: np.ndarray, sigmas: Sequence[float] | np.ndarray) -> np.ndarray:
    """Smooth with a Gaussian, cut off at three sigmas; the edge voxels repeat beyond the edges.

    Parameters
    ----------
    volume : (A, B, C) array
        C-contiguous float32 for speed.
    sigmas : three numbers
        Standard deviation along each axis, voxels. Zero leaves an axis as it is.

    Returns
    -------
    (A, B, C) float32 array
    """
    source = _contiguous(volume)
    smoothed = np.empty(source.shape, np.float32)
    _smooth(source, *(_half_gaussian(float(sigma)) for sigma in sigmas), smoothed.reshape(-1))
    return smoothed


def _contiguous(volume: np.ndarray) -> np.ndarray:
    """See a volume as the one type that the filters are compiled for."""
    view = np.ascontiguousarray(volume, dtype=np.float32).view()
    view.flags.writeable = False
    return view


def _half_gaussian(sigma: float) -> np.ndarray:
    """Weights of the centre and of the samples to one side of it."""
    distance = np.arange(int(3.0 * sigma + 0.5) + 1)
    weights = np.exp(-0.5 * (distance / max(sigma, 1e-6)) ** 2)
    return (weights / (2 * weights.sum() - 1)).astype(np.float32)


def kernel_order(mapping: np.ndarray) -> np.ndarray:
    """Turn a (3 or 4, 4) mapping between (x, y, z) voxels into the kernels' (z, y, x), (3, 4)."""
    return np.ascontiguousarray(mapping[[2, 1, 0]][:, [2, 1, 0, 3]])


@emitted
def _weigh_block(
    typing_context, coefficients, offset, stride_a, stride_b, along_a, along_b, along_c
):
    """Weigh the 4×4×4 coefficients that start at `offset`.

    The last three say which fraction of the cell the position has passed. Returns the value and
    its derivatives along a, b and c.
    """
    from eddymotion.images.emission import weighing_block

    return weighing_block(coefficients, along_a)


@compiled
def _weights(t):
    """Cubic B-spline weights of the four coefficients around fraction t of a cell."""
    u = np.float32(1.0) - t
    sixth = np.float32(1.0 / 6.0)
    return (
        u * u * u * sixth,
        np.float32(2.0 / 3.0) - np.float32(0.5) * t * t * (np.float32(1.0) + u),
        np.float32(2.0 / 3.0) - np.float32(0.5) * u * u * (np.float32(1.0) + t),
        t * t * t * sixth,
    )


@compiled
def _slopes(t):
    """Return the derivatives of :func:`_weights`."""
    u = np.float32(1.0) - t
    half = np.float32(0.5)
    return (
        -half * u * u,
        t * (np.float32(1.5) * t - np.float32(2.0)),
        u * (np.float32(2.0) - np.float32(1.5) * u),
        half * t * t,
    )


@compiled
def _is_inside(shape, a, b, c):
    """Whether a position (voxels) lies in the unpadded image, up to half a voxel outside."""
    margin = 2 * PADDING + 1 - EDGE
    return (
        a >= -EDGE and a <= shape[0] - margin
        and b >= -EDGE and b <= shape[1] - margin
        and c >= -EDGE and c <= shape[2] - margin
    )  # fmt: skip


@compiled
def sample_at(coefficients, a, b, c, outside):
    """Sample at one position, in voxels."""
    shape = coefficients.shape
    if not _is_inside(shape, a, b, c):
        return np.float32(outside)
    ia, ib, ic = int(np.floor(a)), int(np.floor(b)), int(np.floor(c))
    ta, tb, tc = np.float32(a - ia), np.float32(b - ib), np.float32(c - ic)
    stride_a, stride_b = shape[1] * shape[2], shape[2]
    offset = (ia + 1) * stride_a + (ib + 1) * stride_b + ic + 1
    return _weigh_block(coefficients, offset, stride_a, stride_b, ta, tb, tc)[0]


@compiled
def mapped_component(matrix, points, p, row):
    """Component `row` of point `p` under an affine map (3, 4)."""
    return (
        matrix[row, 0] * points[p, 0] + matrix[row, 1] * points[p, 1]
        + matrix[row, 2] * points[p, 2] + matrix[row, 3]
    )  # fmt: skip


@compiled
def sample_points(coefficients, matrix, points, values):
    """Sample at mapped points.

    Parameters
    ----------
    coefficients : padded float32 array
        From :func:`spline_coefficients`.
    matrix : (3, 4) float64 array
        Coordinates of the points → position (a, b, c) in the sampled volume, voxels.
    points : (P, 3) float64 array
    values : (P,) float32 array
        Filled; NaN outside the volume.
    """
    for p in range(points.shape[0]):
        values[p] = sample_at(
            coefficients,
            mapped_component(matrix, points, p, 0),
            mapped_component(matrix, points, p, 1),
            mapped_component(matrix, points, p, 2),
            np.nan,
        )


@compiled
def sample_points_with_gradient(coefficients, matrix, points, values, gradients):
    """Sample as :func:`sample_points`; fill also the derivatives by the points' coordinates.

    `gradients` is (P, 3) float32, NaN outside the volume.
    """
    shape = coefficients.shape
    stride_a, stride_b = shape[1] * shape[2], shape[2]
    turn = matrix[:, :3].astype(np.float32)
    for p in range(points.shape[0]):
        a = mapped_component(matrix, points, p, 0)
        b = mapped_component(matrix, points, p, 1)
        c = mapped_component(matrix, points, p, 2)
        if not _is_inside(shape, a, b, c):
            values[p] = gradients[p, 0] = gradients[p, 1] = gradients[p, 2] = np.nan
            continue
        ia, ib, ic = int(np.floor(a)), int(np.floor(b)), int(np.floor(c))
        ta, tb, tc = np.float32(a - ia), np.float32(b - ib), np.float32(c - ic)
        offset = (ia + 1) * stride_a + (ib + 1) * stride_b + ic + 1
        sampled = _weigh_block(coefficients, offset, stride_a, stride_b, ta, tb, tc)
        values[p] = sampled[0]
        for k in range(3):
            gradients[p, k] = (
                sampled[1] * turn[0, k] + sampled[2] * turn[1, k] + sampled[3] * turn[2, k]
            )


@compiled
def sample_grid(coefficients, matrix, outside, values):
    """Sample on a whole grid.

    Parameters
    ----------
    coefficients : padded float32 array
        From :func:`spline_coefficients`.
    matrix : (3, 4) float64 array
        Grid index (a, b, c) → position in the sampled volume, both in voxels.
    outside : float
        Value of grid points outside the sampled volume.
    values : (A, B, C) float32 array
        Filled.
    """
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            start_a = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 3]
            start_b = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 3]
            start_c = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 3]
            for k in range(values.shape[2]):
                values[i, j, k] = sample_at(
                    coefficients,
                    start_a + matrix[0, 2] * k,
                    start_b + matrix[1, 2] * k,
                    start_c + matrix[2, 2] * k,
                    outside,
                )


@compiled
def _filter_lines(flat, start, step, n, width):
    """Replace `n` rows of samples by B-spline coefficients, but for the gain; mirrored edges."""
    if n < 2:
        return
    period = 2 * n - 2
    pole, end = np.float32(_POLE), np.float32(_POLE / (_POLE * _POLE - 1.0))
    scale = 1.0 / (1.0 - _POLE**period)
    row = flat[start : start + width]
    for k in range(width):
        row[k] *= np.float32(scale)
    for i in range(1, min(n, _HORIZON)):
        weight = np.float32(scale * (_POLE**i + (_POLE ** (period - i) if i < n - 1 else 0.0)))
        other = flat[start + i * step : start + i * step + width]
        for k in range(width):
            row[k] += weight * other[k]
    for i in range(1, n):
        row = flat[start + i * step : start + i * step + width]
        other = flat[start + (i - 1) * step : start + (i - 1) * step + width]
        for k in range(width):
            row[k] += pole * other[k]
    for k in range(width):
        row[k] = end * (pole * other[k] + row[k])
    for i in range(n - 2, -1, -1):
        row = flat[start + i * step : start + i * step + width]
        other = flat[start + (i + 1) * step : start + (i + 1) * step + width]
        for k in range(width):
            row[k] = pole * (other[k] - row[k])


@compiled
def _mirror_rows(flat, start, step, n, width):
    """Fill the padding rows before and after `n` rows."""
    period = max(2 * n - 2, 1)
    for outside in range(1, PADDING + 1):
        inside = outside % period
        inside = min(inside, period - inside) if n > 1 else 0
        for origin, to in ((inside, -outside), (n - 1 - inside, n - 1 + outside)):
            source = flat[start + origin * step : start + origin * step + width]
            row = flat[start + to * step : start + to * step + width]
            for k in range(width):
                row[k] = source[k]


@compiled
def _prefilter(volume, flat):
    """Fill the padded coefficients, flat, of `volume`: along c and b plane by plane, then a."""
    size_a, size_b, size_c = volume.shape
    rows, columns = size_b + 2 * PADDING, size_c + 2 * PADDING
    stride = np.intp(_LANES)  # a literal would have the helpers compiled again for that number
    block = np.empty(columns * stride, np.float32)
    gain = np.float32(6.0 ** ((size_a > 1) + (size_b > 1) + (size_c > 1)))
    for a in range(size_a):
        plane = (a + PADDING) * rows * columns
        for first in range(0, size_b, stride):
            lanes = min(stride, size_b - first)
            for lane in range(lanes):
                line = volume[a, first + lane]
                for c in range(size_c):
                    block[(c + PADDING) * stride + lane] = gain * line[c]
            _filter_lines(block, PADDING * stride, stride, size_c, lanes)
            _mirror_rows(block, PADDING * stride, stride, size_c, lanes)
            for lane in range(lanes):
                start = plane + (first + lane + PADDING) * columns
                line = flat[start : start + columns]
                for c in range(columns):
                    line[c] = block[c * stride + lane]
        _filter_lines(flat, plane + PADDING * columns, columns, size_b, columns)
        _mirror_rows(flat, plane + PADDING * columns, columns, size_b, columns)
    for b in range(rows):
        start = (PADDING * rows + b) * columns
        _filter_lines(flat, start, rows * columns, size_a, columns)
        _mirror_rows(flat, start, rows * columns, size_a, columns)


@compiled
def _smooth_lines(source, weights, flat, start, step, n, width):
    """Smooth the `n` rows of `source`, one after another there, into rows of `flat`."""
    for i in range(n):
        row = flat[start + i * step : start + i * step + width]
        centre = source[i * width : (i + 1) * width]
        for k in range(width):
            row[k] = weights[0] * centre[k]
        for j in range(1, weights.size):
            weight, before, after = weights[j], max(i - j, 0), min(i + j, n - 1)
            left = source[before * width : (before + 1) * width]
            right = source[after * width : (after + 1) * width]
            for k in range(width):
                row[k] += weight * (left[k] + right[k])


@compiled
def _smooth(volume, weights_a, weights_b, weights_c, flat):
    """Fill the smoothed volume, flat: along c and b plane by plane, then along a."""
    size_a, size_b, size_c = volume.shape
    plane = size_b * size_c
    radius = weights_c.size - 1
    padded = np.empty(size_c + 2 * radius, np.float32)
    lines = np.empty(max(size_a, size_b) * size_c, np.float32)
    for a in range(size_a):
        for b in range(size_b):
            line = volume[a, b]
            for c in range(padded.size):
                padded[c] = line[min(max(c - radius, 0), size_c - 1)]
            row = lines[b * size_c : (b + 1) * size_c]
            for c in range(size_c):
                row[c] = weights_c[0] * line[c]
            for j in range(1, radius + 1):
                left = padded[radius - j : radius - j + size_c]
                right = padded[radius + j : radius + j + size_c]
                for c in range(size_c):
                    row[c] += weights_c[j] * (left[c] + right[c])
        _smooth_lines(lines, weights_b, flat, a * plane, size_c, size_b, size_c)
    for b in range(size_b):
        for a in range(size_a):
            line = flat[a * plane + b * size_c : a * plane + (b + 1) * size_c]
            row = lines[a * size_c : (a + 1) * size_c]
            for c in range(size_c):
                row[c] = line[c]
        _smooth_lines(lines, weights_a, flat, b * size_c, plane, size_a, size_c)
