# SPDX-License-Identifier: Apache-2.0
"""Compiled inner loops through eddy-current fields, polynomials of scanner position.

As :mod:`eddymotion.images.kernels`: every kernel has a plain twin in the tests.
"""

from __future__ import annotations

import numpy as np

from eddymotion.images.kernels import mapped_component, sample_at
from eddymotion.machine.compiling import compiled


@compiled
def _polynomial(weights, x, y, z):
    """Weigh 1 and :data:`~eddymotion.mapping.eddy_currents.TERMS`."""
    w = weights
    linear = w[0] + w[1] * x + w[2] * y + w[3] * z
    quadratic = (
        w[4] * x * x + w[5] * y * y + w[6] * z * z + w[7] * x * y + w[8] * x * z + w[9] * y * z
    )
    cubic = (
        x * x * (w[10] * x + w[13] * y + w[14] * z)
        + y * y * (w[11] * y + w[15] * x + w[16] * z)
        + z * z * (w[12] * z + w[17] * x + w[18] * y)
        + w[19] * x * y * z
    )
    return linear + quadratic + cubic


@compiled
def _differences(weights, start, step):
    """Newton's divided differences of a polynomial along a line: it is a cubic there."""
    x, y, z = start
    i, j, k = step
    f0 = _polynomial(weights, x, y, z)
    f1 = _polynomial(weights, x + i, y + j, z + k)
    f2 = _polynomial(weights, x + 2 * i, y + 2 * j, z + 2 * k)
    f3 = _polynomial(weights, x + 3 * i, y + 3 * j, z + 3 * k)
    return f0, f1 - f0, (f2 - 2 * f1 + f0) / 2, (f3 - 3 * f2 + 3 * f1 - f0) / 6


@compiled
def _newton(differences, t):
    """Value of the cubic of :func:`_differences`, `t` steps from the start."""
    inner = differences[2] + (t - 2.0) * differences[3]
    return differences[0] + t * (differences[1] + (t - 1.0) * inner)


@compiled
def sample_grid_through_field(coefficients, matrix, units, displacement, shift, stretch, values):
    """Sample on a whole grid through a polynomial displacement; scale the samples.

    Along a row of the grid a polynomial of third order is a cubic, known from four of its values.

    Parameters
    ----------
    coefficients : padded float32 array
        From :func:`spline_coefficients`.
    matrix : (3, 4) float64 array
        Grid index (a, b, c) → position in the sampled volume without a displacement, in voxels.
    units : (3, 4) float64 array
        Grid index (a, b, c) → x, y, z of the polynomials.
    displacement : (20,) float64 array
        Weights of 1 and :data:`~eddymotion.mapping.eddy_currents.TERMS`: mm.
    shift : (3,) float64 array
        Change of the position (a, b, c), in voxels, for 1 mm of displacement.
    stretch : (20,) float64 array
        Weights of the polynomial that multiplies the samples.
    values : (A, B, C) float32 array
        Filled; zero outside the sampled volume.
    """
    n = values.shape[2]
    length = max(n - 1, 1) / 3.0
    step = (units[0, 2] * length, units[1, 2] * length, units[2, 2] * length)
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            start = (
                units[0, 0] * i + units[0, 1] * j + units[0, 3],
                units[1, 0] * i + units[1, 1] * j + units[1, 3],
                units[2, 0] * i + units[2, 1] * j + units[2, 3],
            )
            moved = _differences(displacement, start, step)
            scaled = _differences(stretch, start, step)
            start_a = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 3]
            start_b = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 3]
            start_c = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 3]
            for k in range(n):
                t = k / length
                d = _newton(moved, t)
                values[i, j, k] = np.float32(_newton(scaled, t)) * sample_at(
                    coefficients,
                    start_a + matrix[0, 2] * k + shift[0] * d,
                    start_b + matrix[1, 2] * k + shift[1] * d,
                    start_c + matrix[2, 2] * k + shift[2] * d,
                    0.0,
                )


@compiled
def displace_points(points, pose, units, displacement, stretch, pe, recorded, factors):
    """Find where points are recorded, and the factor that undoes the field's effect there.

    Parameters
    ----------
    points : (P, 3) float64 array
        mm
    pose, units : (3, 4) float64 array
        Points → scanner position (mm), and → x, y, z of the polynomials.
    displacement, stretch : (20,) float64 array
        Weights of 1 and :data:`~eddymotion.mapping.eddy_currents.TERMS`.
    pe : (3,) float64 array
    recorded : (P, 3) float64 array
        Filled, mm.
    factors : (P,) float32 array
        Filled.
    """
    for p in range(points.shape[0]):
        x = mapped_component(units, points, p, 0)
        y = mapped_component(units, points, p, 1)
        z = mapped_component(units, points, p, 2)
        shift = _polynomial(displacement, x, y, z)
        for row in range(3):
            recorded[p, row] = mapped_component(pose, points, p, row) - shift * pe[row]
        factors[p] = _polynomial(stretch, x, y, z)


@compiled
def weigh_terms(points, units, weights, columns):
    """Fill columns (K, P), float32, with the first K terms at points (P, 3), each times a weight.

    Parameters
    ----------
    points : (P, 3) float64 array
    units : (3, 4) float64 array
        Points → x, y, z of :data:`~eddymotion.mapping.eddy_currents.TERMS`.
    weights : (P,) float32 array
    columns : (K, P) float32 array
        Filled; K is 3, 9 or 19.
    """
    n_terms = columns.shape[0]
    for p in range(points.shape[0]):
        w = weights[p]
        x = np.float32(mapped_component(units, points, p, 0))
        y = np.float32(mapped_component(units, points, p, 1))
        z = np.float32(mapped_component(units, points, p, 2))
        columns[0, p], columns[1, p], columns[2, p] = w * x, w * y, w * z
        if n_terms > 3:
            columns[3, p], columns[4, p], columns[5, p] = w * x * x, w * y * y, w * z * z
            columns[6, p], columns[7, p], columns[8, p] = w * x * y, w * x * z, w * y * z
        if n_terms > 9:
            columns[9, p], columns[10, p] = w * x * x * x, w * y * y * y
            columns[11, p], columns[12, p] = w * z * z * z, w * x * x * y
            columns[13, p], columns[14, p] = w * x * x * z, w * x * y * y
            columns[15, p], columns[16, p] = w * y * y * z, w * x * z * z
            columns[17, p], columns[18, p] = w * y * z * z, w * x * y * z
