# SPDX-License-Identifier: Apache-2.0
"""Compiled inner loops: cubic B-splines and smoothing of volumes.

Every kernel has a plain SciPy twin in the tests. Arrays are C-contiguous with the fastest axis
last; a NIfTI volume in Fortran order is therefore passed transposed, (z, y, x), and coordinates
come in the same order.

A cubic B-spline sample is a weighted sum of 4×4×4 coefficients. The compiler leaves that sum
scalar, so :func:`_weigh_block` emits it as sixteen four-wide loads, and products of sixteen at a
time, which is more than ten times faster. The gradient reuses the loads; where it is not used the
compiler drops it.

Filters run along one axis for many lines side by side, whose numbers of one place are a row of a
flat array: row i starts at ``start + i * step``. The compiler spends more on the bounds of short
rows than on their numbers, so that :mod:`eddymotion.images.row_emission` emits what is done to
them. Lines along the fastest axis lie one after the other with their ends extended, and are one
long row: neighbours along it are rows one number apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eddymotion.machine.compiling import compiled, emitted

PADDING = 2
"""Mirrored coefficients on each side: half a voxel beyond the edge stays addressable."""

EDGE = 0.5
"""Positions up to this far (voxels) outside the outermost voxel centres belong to the image."""

OUTSIDE = -2
"""Stands for a cell of no image."""

AT_A_TIME, AHEAD = 256, 8
"""Points that are placed together, and how far ahead their coefficients are asked for: by the time
that they are weighed they have come from memory."""

_POLE = np.sqrt(3.0) - 2.0
"""Of the recursive filter that turns samples into cubic B-spline coefficients."""

_HORIZON = 12
"""Samples after which the pole's power is below the rounding of float32."""

_DOUBLINGS = 4
"""Factors of the filter along lines: the next one would change less than rounding does."""

_REACH = 2**_DOUBLINGS - 1
"""Samples on each side that these take in."""

_GAIN_OF_LINES = float(-6 * _POLE * np.prod([1 + _POLE ** (2 * 2**k) for k in range(_DOUBLINGS)]))
"""Of that filter, and of a spline."""

_LANES = 16
"""Numbers that are filtered side by side."""


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


@emitted
def _fetch_block(typing_context, coefficients, offset, stride_a, stride_b):
    """Have the 4×4×4 coefficients that start at `offset` brought near."""
    from eddymotion.images.emission import fetching_block

    return fetching_block(coefficients)


@compiled
def place_points(matrix, points, first, size, cells, fractions):
    """Find where mapped points are, as many at a time as there is room for.

    Parameters
    ----------
    matrix, points
        As of :func:`sample_points`.
    first : int
        The first of them.
    size : three int
        (A, B, C)
    cells : (3, K) int64 array
        Filled: the voxel before each point; :data:`OUTSIDE` along a outside the image.
    fractions : (3, K) float32 array
        Filled: how much of the cell it has passed.

    Returns
    -------
    int
        How many.
    """
    n = min(cells.shape[1], points.shape[0] - first)
    for k in range(n):
        a = mapped_component(matrix, points, first + k, 0)
        b = mapped_component(matrix, points, first + k, 1)
        c = mapped_component(matrix, points, first + k, 2)
        is_inside = (
            (a >= -EDGE) & (a <= size[0] - 1 + EDGE)
            & (b >= -EDGE) & (b <= size[1] - 1 + EDGE)
            & (c >= -EDGE) & (c <= size[2] - 1 + EDGE)
        )  # fmt: skip
        below_a, below_b, below_c = np.floor(a), np.floor(b), np.floor(c)
        cells[0, k] = int(below_a) if is_inside else OUTSIDE
        cells[1, k] = int(below_b)
        cells[2, k] = int(below_c)
        fractions[0, k] = a - below_a
        fractions[1, k] = b - below_b
        fractions[2, k] = c - below_c
    return n


@compiled
def _find_blocks(cells, n, stride_a, stride_b, offsets):
    """Fill where the coefficients around the first `n` cells start; :data:`OUTSIDE` outside."""
    for k in range(n):
        offset = (cells[0, k] + 1) * stride_a + (cells[1, k] + 1) * stride_b + cells[2, k] + 1
        offsets[k] = OUTSIDE if cells[0, k] == OUTSIDE else offset


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
    shape = coefficients.shape
    size = shape[0] - 2 * PADDING, shape[1] - 2 * PADDING, shape[2] - 2 * PADDING
    stride_a, stride_b = shape[1] * shape[2], shape[2]
    cells, t = np.empty((3, AT_A_TIME), np.int64), np.empty((3, AT_A_TIME), np.float32)
    offsets = np.zeros(AT_A_TIME + AHEAD, np.int64)
    for first in range(0, points.shape[0], AT_A_TIME):
        n = place_points(matrix, points, first, size, cells, t)
        _find_blocks(cells, n, stride_a, stride_b, offsets)
        for k in range(n):
            _fetch_block(coefficients, offsets[k + AHEAD], stride_a, stride_b)
            values[first + k] = np.nan
            if offsets[k] != OUTSIDE:
                values[first + k] = _weigh_block(
                    coefficients, offsets[k], stride_a, stride_b, t[0, k], t[1, k], t[2, k]
                )[0]


@compiled
def sample_points_with_gradient(coefficients, matrix, points, values, gradients):
    """Sample as :func:`sample_points`; fill also the derivatives by the points' coordinates.

    `gradients` is (3, P) float32, NaN outside the volume.
    """
    shape = coefficients.shape
    size = shape[0] - 2 * PADDING, shape[1] - 2 * PADDING, shape[2] - 2 * PADDING
    stride_a, stride_b = shape[1] * shape[2], shape[2]
    turn = matrix[:, :3].astype(np.float32)
    cells, t = np.empty((3, AT_A_TIME), np.int64), np.empty((3, AT_A_TIME), np.float32)
    offsets = np.zeros(AT_A_TIME + AHEAD, np.int64)
    for first in range(0, points.shape[0], AT_A_TIME):
        n = place_points(matrix, points, first, size, cells, t)
        _find_blocks(cells, n, stride_a, stride_b, offsets)
        for k in range(n):
            p = first + k
            _fetch_block(coefficients, offsets[k + AHEAD], stride_a, stride_b)
            if offsets[k] == OUTSIDE:
                values[p] = gradients[0, p] = gradients[1, p] = gradients[2, p] = np.nan
                continue
            sampled = _weigh_block(
                coefficients, offsets[k], stride_a, stride_b, t[0, k], t[1, k], t[2, k]
            )
            values[p] = sampled[0]
            for axis in range(3):
                gradients[axis, p] = (
                    sampled[1] * turn[0, axis] + sampled[2] * turn[1, axis]
                    + sampled[3] * turn[2, axis]
                )  # fmt: skip


@compiled
def sample_grid(coefficients, matrix, values):
    """Sample on a whole grid.

    Parameters
    ----------
    coefficients : padded float32 array
        From :func:`spline_coefficients`.
    matrix : (3, 4) float64 array
        Grid index (a, b, c) → position in the sampled volume, both in voxels.
    values : (A, B, C) float32 array
        Filled; zero outside the sampled volume.
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
                    0.0,
                )


def sampled_grid(
    coefficients: np.ndarray, mapping: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Sample on a whole grid of a shape (X, Y, Z): (Z, Y, X) float32, zero outside the volume.

    Parameters
    ----------
    coefficients : padded float32 array
        From :func:`spline_coefficients`.
    mapping : (3 or 4, 4) array
        Voxels (x, y, z) of the grid → those of the sampled volume.
    """
    values = np.empty(shape[::-1], np.float32)
    sample_grid(coefficients, kernel_order(mapping), values)
    return values


@emitted
def _recurse_rows(typing_context, flat, start, step, n, width, firsts):
    """Replace `n` rows of samples by B-spline coefficients, but for the gain; mirrored edges.

    Row i starts at ``start + i * step`` and has `width` numbers; `firsts` are the weights of
    :func:`_first_weights`. There are two rows at least.
    """
    from eddymotion.images.row_emission import recursing_rows

    return recursing_rows(flat, firsts, _POLE)


@emitted
def _smooth_rows(
    typing_context, source, at, along, n, low, high, width, weights, flat, start, step
):
    """Smooth rows `low` to `high` of the `n` of `source`; edge rows repeat beyond the edges.

    Row i starts at ``at + i * along`` there, and at ``start + i * step`` where it is written.
    """
    from eddymotion.images.row_emission import smoothing_rows

    return smoothing_rows(source, weights, flat)


@compiled
def _first_weights(n):
    """Weights by which the first of `n` samples and those after it start the recursion."""
    period = max(2 * n - 2, 1)
    weights = np.empty(min(n, _HORIZON), np.float32)
    for i in range(weights.size):
        mirrored = _POLE ** (period - i) if 0 < i < n - 1 else 0.0
        weights[i] = (_POLE**i + mirrored) / (1.0 - _POLE**period)
    return weights


@compiled
def _mirrored(i, n):
    """Which of `n` samples is seen at `i`, before or beyond them."""
    period = max(2 * n - 2, 1)
    i = abs(i) % period
    return min(i, period - i)


@compiled
def _extend_lines(plane, gain, mirrored, lines, stride):
    """Fill lines, `stride` from one to the next, with those of a plane, and both their ends.

    `mirrored` says which samples are seen beyond the first, the nearest first, and beyond the
    last.
    """
    reach = mirrored.shape[1]
    for b in range(plane.shape[0]):
        line, start = plane[b], b * stride + reach
        row = lines[start : start + line.size]
        for c in range(line.size):
            row[c] = gain * line[c]
        for k in range(reach):
            lines[start - 1 - k] = row[mirrored[0, k]]
            lines[start + line.size + k] = row[mirrored[1, k]]


@compiled
def _filter_lines(lines, other):
    """Replace samples side by side by B-spline coefficients, but for the gain, in place.

    With ``S`` for the next sample and ``p`` for the pole, ``1 / (1 − pS) = Π (1 + p^s S^s)`` over
    ``s = 1, 2, 4, …``, of which four factors leave out less than rounding; and the same backwards.
    Both together are ``1 + p^(2s) + p^s (S^s + S^−s)``: a weighted sum of three samples, which
    needs no sample before it. What is beyond the ends of a line reaches 15 samples into it.
    """
    weights = np.ones(2, np.float32)
    first, second = lines, other
    for k in range(_DOUBLINGS):
        step = 2**k
        weights[1] = _POLE**step / (1.0 + _POLE ** (2 * step))
        width = lines.size - 2 * step
        _smooth_rows(first, 0, step, 3, 1, 2, width, weights, second, step, 0)
        first, second = second, first


@compiled
def _prefilter(volume, flat):
    """Fill the padded coefficients, flat, of `volume`: along c and b plane by plane, then a."""
    size_a, size_b, size_c = volume.shape
    rows, columns = size_b + 2 * PADDING, size_c + 2 * PADDING
    plane = rows * columns
    reach = PADDING + _REACH
    mirrored = np.empty((2, reach), np.int64)
    for k in range(reach):
        mirrored[0, k] = _mirrored(-1 - k, size_c)
        mirrored[1, k] = _mirrored(size_c + k, size_c)
    stride = size_c + 2 * reach
    lines, other = np.zeros(size_b * stride, np.float32), np.zeros(size_b * stride, np.float32)
    gain = _GAIN_OF_LINES if size_c > 1 else 1.0
    gain = np.float32(gain * 6.0 ** ((size_a > 1) + (size_b > 1)))
    firsts = _first_weights(size_b)
    for a in range(size_a):
        _extend_lines(volume[a], gain, mirrored, lines, stride)
        if size_c > 1:
            _filter_lines(lines, other)
        if size_b > 1:
            _recurse_rows(lines, _REACH, stride, size_b, _rounded(columns), firsts)
        for b in range(rows):
            start = _REACH + _mirrored(b - PADDING, size_b) * stride
            line = lines[start : start + columns]
            start = (a + PADDING) * plane + b * columns
            row = flat[start : start + columns]
            for c in range(columns):
                row[c] = line[c]
    if size_a > 1:
        _recurse_rows(flat, PADDING * plane, plane, size_a, plane, _first_weights(size_a))
    for outside in range(1, PADDING + 1):
        for a in (-outside, size_a - 1 + outside):
            start = (_mirrored(a, size_a) + PADDING) * plane
            inside = flat[start : start + plane]
            start = (a + PADDING) * plane
            row = flat[start : start + plane]
            for k in range(plane):
                row[k] = inside[k]


@compiled
def _rounded(width):
    """Round a width up to whole vectors."""
    return (width + _LANES - 1) // _LANES * _LANES


@compiled
def _smooth(volume, weights_a, weights_b, weights_c, flat):
    """Fill the smoothed volume, flat: along a, then along b and c plane by plane."""
    size_a, size_b, size_c = volume.shape
    plane, radius = size_b * size_c, weights_c.size - 1
    stride = size_c + 2 * radius
    source, lines = volume.reshape(-1), np.empty(size_b * stride + _LANES, np.float32)
    _smooth_rows(source, 0, plane, size_a, 0, size_a, plane, weights_a, flat, 0, plane)
    for a in range(size_a):
        start = a * plane
        _smooth_rows(flat, start, size_c, size_b, 0, size_b, size_c, weights_b,
                     lines, radius, stride)  # fmt: skip
        for b in range(size_b):
            line = lines[b * stride : (b + 1) * stride]
            for k in range(radius):
                line[k] = line[radius]
                line[radius + size_c + k] = line[radius + size_c - 1]
            _smooth_rows(lines, b * stride, 1, 2 * radius + 1, radius, radius + 1, size_c,
                         weights_c, flat, start + b * size_c, 0)  # fmt: skip
