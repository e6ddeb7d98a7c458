# SPDX-License-Identifier: Apache-2.0
"""Compiled inner loops: cubic B-splines of 16-bit coefficients, of which only some are kept.

As :mod:`eddymotion.images.kernels`, but of each row along the fastest axis only one stretch is
kept. Coefficient (a, b, c), padding included, is ``values[starts[a, b] + c]``. A cell can be read
if ``first[a, b] <= c <= last[a, b]``: all sixteen rows around it are there then.
"""

from __future__ import annotations

import numpy as np

from eddymotion.images.kernels import EDGE, mapped_component
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


@compiled
def round_to_integers(kept, unit, values):
    """Fill `values` (K,) int16 with multiples of a unit; too large ones with the largest.

    What is not a number becomes any integer.
    """
    largest = np.float32(LARGEST)
    for k in range(kept.size):
        values[k] = np.int16(np.rint(min(max(kept[k] / unit, -largest), largest)))


@compiled
def _is_inside(size, a, b, c):
    """Whether a position (voxels) lies in the image, up to half a voxel outside."""
    return (
        a >= -EDGE and a <= size[0] - 1 + EDGE
        and b >= -EDGE and b <= size[1] - 1 + EDGE
        and c >= -EDGE and c <= size[2] - 1 + EDGE
    )  # fmt: skip


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
    for p in range(points.shape[0]):
        a = mapped_component(matrix, points, p, 0)
        b = mapped_component(matrix, points, p, 1)
        c = mapped_component(matrix, points, p, 2)
        sampled[p] = np.nan
        if not _is_inside(size, a, b, c):
            continue
        ia, ib, ic = int(np.floor(a)), int(np.floor(b)), int(np.floor(c))
        if ic < first[ia + 1, ib + 1] or ic > last[ia + 1, ib + 1]:
            continue
        ta, tb, tc = np.float32(a - ia), np.float32(b - ib), np.float32(c - ic)
        cell = (ia + 1) * stride + ib + 1
        found = _weigh_kept(values, starts, cell, stride, ic + 1, ta, tb, tc)
        sampled[p] = np.nan if found[4] == MISSING else unit * found[0]


@compiled
def sample_kept_with_gradient(
    values, starts, first, last, size, unit, matrix, points, sampled, gradients
):
    """Sample as :func:`sample_kept`; fill also the derivatives by the points' coordinates."""
    stride, turn = starts.shape[1], matrix[:, :3].astype(np.float32)
    for p in range(points.shape[0]):
        a = mapped_component(matrix, points, p, 0)
        b = mapped_component(matrix, points, p, 1)
        c = mapped_component(matrix, points, p, 2)
        sampled[p] = gradients[p, 0] = gradients[p, 1] = gradients[p, 2] = np.nan
        if not _is_inside(size, a, b, c):
            continue
        ia, ib, ic = int(np.floor(a)), int(np.floor(b)), int(np.floor(c))
        if ic < first[ia + 1, ib + 1] or ic > last[ia + 1, ib + 1]:
            continue
        ta, tb, tc = np.float32(a - ia), np.float32(b - ib), np.float32(c - ic)
        cell = (ia + 1) * stride + ib + 1
        found = _weigh_kept(values, starts, cell, stride, ic + 1, ta, tb, tc)
        factor = np.float32(np.nan) if found[4] == MISSING else unit
        sampled[p] = factor * found[0]
        for k in range(3):
            gradients[p, k] = factor * (
                found[1] * turn[0, k] + found[2] * turn[1, k] + found[3] * turn[2, k]
            )
