# SPDX-License-Identifier: Apache-2.0
"""Compiled inner loops: cubic B-splines of 16-bit coefficients, of which only some are kept.

As :mod:`eddymotion.images.kernels`, but of each row along the fastest axis only one stretch is
kept. Coefficient (a, b, c), padding included, is ``values[starts[a, b] + c]``. A cell can be read
if ``first[a, b] <= c <= last[a, b]``: all sixteen rows around it are there then.
"""

from __future__ import annotations

import numpy as np

from eddymotion.images.kernels import (
    AHEAD,
    AT_A_TIME,
    OUTSIDE,
    mapped_component,
    place_points,
)
from eddymotion.machine.compiling import compiled, emitted

MISSING = -(2**15)
"""Stands for a coefficient that is not a number."""

LARGEST = 2**15 - 1
"""Of the integers that stand for coefficients."""


@emitted
def _weigh_kept(typing_context, values, starts, cell, stride, c, along_a, along_b, along_c):
    """Weigh the 4×4×4 integers whose rows start where `starts` says from `cell` on.

    `stride` leads from one a to the next there, `c` along the rows; the last three say which
    fraction of the cell the position has passed. Returns the value and its derivatives along a, b
    and c, and the smallest integer.
    """
    from eddymotion.images.emission import weighing_kept

    return weighing_kept(values, starts, along_a)


@compiled
def widen(matrix, points, first, last):
    """Widen the stretches of cells (A + 1, B + 1) so that they hold the cells of mapped points.

    Row and column 0 are the cells before the first voxel. Points beyond the edges count there.
    """
    for p in range(points.shape[0]):
        a = int(np.floor(mapped_component(matrix, points, p, 0))) + 1
        b = int(np.floor(mapped_component(matrix, points, p, 1))) + 1
        c = int(np.floor(mapped_component(matrix, points, p, 2)))
        a = min(max(a, 0), first.shape[0] - 1)
        b = min(max(b, 0), first.shape[1] - 1)
        first[a, b] = min(first[a, b], c)
        last[a, b] = max(last[a, b], c)


@compiled
def gather(coefficients, begin, end, kept):
    """Fill `kept` with the coefficients of each row from `begin` on, before `end`."""
    k = 0
    for a in range(coefficients.shape[0]):
        for b in range(coefficients.shape[1]):
            row = coefficients[a, b, begin[a, b] : end[a, b]]
            out = kept[k : k + row.size]
            for c in range(row.size):
                out[c] = row[c]
            k += row.size


@emitted
def _fetch_kept(typing_context, values, starts, cell, stride, c):
    """Have the 4×4×4 integers of :func:`_weigh_kept` brought near."""
    from eddymotion.images.emission import fetching_kept

    return fetching_kept(values, starts)


@compiled
def _find_kept(cells, n, first, last, stride, corners):
    """Fill the corners (2, …) of the first `n` cells: among `starts`, and along the rows.

    :data:`~eddymotion.images.kernels.OUTSIDE` along the rows where a cell cannot be read.
    """
    for k in range(n):
        a, b, c = cells[0, k] + 1, cells[1, k] + 1, cells[2, k]
        corners[0, k], corners[1, k] = 0, OUTSIDE
        if cells[0, k] != OUTSIDE and first[a, b] <= c <= last[a, b]:
            corners[0, k], corners[1, k] = a * stride + b, c + 1


@compiled
def sample_kept(values, starts, first, last, size, unit, matrix, points, sampled):
    """Sample at mapped points.

    Parameters
    ----------
    values : (K,) int16 array
    starts : (A + 4, B + 4) int32 array
    first, last : (A + 1, B + 1) int16 array
        Of the cells from the one before the edge on.
    size : three int
        (A, B, C)
    unit : float32
        What an integer stands for.
    matrix, points
        As of :func:`~eddymotion.images.kernels.sample_points`.
    sampled : (P,) float32 array
        Filled; NaN where a cell cannot be read.
    """
    stride = starts.shape[1]
    cells, t = np.empty((3, AT_A_TIME), np.int64), np.empty((3, AT_A_TIME), np.float32)
    corners = np.zeros((2, AT_A_TIME + AHEAD), np.int64)
    for start in range(0, points.shape[0], AT_A_TIME):
        n = place_points(matrix, points, start, size, cells, t)
        _find_kept(cells, n, first, last, stride, corners)
        for k in range(n):
            _fetch_kept(values, starts, corners[0, k + AHEAD], stride, corners[1, k + AHEAD])
            sampled[start + k] = np.nan
            if corners[1, k] == OUTSIDE:
                continue
            found = _weigh_kept(
                values, starts, corners[0, k], stride, corners[1, k], t[0, k], t[1, k], t[2, k]
            )
            if found[4] != MISSING:
                sampled[start + k] = unit * found[0]


@compiled
def sample_kept_with_gradient(
    values, starts, first, last, size, unit, matrix, points, sampled, gradients
):
    """Sample as :func:`sample_kept`; fill also the derivatives by the points' coordinates.

    `gradients` is (3, P) float32.
    """
    stride, turn = starts.shape[1], unit * matrix[:, :3].astype(np.float32)
    cells, t = np.empty((3, AT_A_TIME), np.int64), np.empty((3, AT_A_TIME), np.float32)
    corners = np.zeros((2, AT_A_TIME + AHEAD), np.int64)
    for start in range(0, points.shape[0], AT_A_TIME):
        n = place_points(matrix, points, start, size, cells, t)
        _find_kept(cells, n, first, last, stride, corners)
        for k in range(n):
            p = start + k
            _fetch_kept(values, starts, corners[0, k + AHEAD], stride, corners[1, k + AHEAD])
            sampled[p] = gradients[0, p] = gradients[1, p] = gradients[2, p] = np.nan
            if corners[1, k] == OUTSIDE:
                continue
            found = _weigh_kept(
                values, starts, corners[0, k], stride, corners[1, k], t[0, k], t[1, k], t[2, k]
            )
            if found[4] == MISSING:
                continue
            sampled[p] = unit * found[0]
            for axis in range(3):
                gradients[axis, p] = (
                    found[1] * turn[0, axis] + found[2] * turn[1, axis] + found[3] * turn[2, axis]
                )
