"""Compiled inner loops: cubic B-spline sampling of volumes.

Every kernel has a plain SciPy twin in the tests. Arrays are C-contiguous with the fastest axis
last; a NIfTI volume in Fortran order is therefore passed transposed, (z, y, x), and coordinates
come in the same order.

A cubic B-spline sample is a weighted sum of 4×4×4 coefficients. The compiler leaves that sum
scalar, so :func:`_weigh_block` emits it as sixteen four-wide loads, which is about ten times
faster. The gradient reuses the loads; where it is not used the compiler drops it.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from scipy import ndimage

PADDING = 2
"""Mirrored coefficients on each side: half a voxel beyond the edge stays addressable."""

EDGE = 0.5
"""Positions up to this far (voxels) outside the outermost voxel centres belong to the image."""

_FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}  # all that keeps NaN meaningful


def compiled(function: Callable) -> Callable:
    """Compile `function`, keeping the machine code on disk where some folder allows it."""
    try:
        return numba.njit(cache=True, nogil=True, fastmath=_FASTMATH)(function)
    except RuntimeError:  # no writable folder for the cache, as in read-only containers
        return numba.njit(nogil=True, fastmath=_FASTMATH)(function)


def spline_coefficients(volume: np.ndarray) -> np.ndarray:
    """Return the padded cubic B-spline coefficients of a volume.

    Parameters
    ----------
    volume : (A, B, C) array
        C-contiguous for speed.

    Returns
    -------
    (A + 4, B + 4, C + 4) float32 array
    """
    coefficients = ndimage.spline_filter(volume, order=3, output=np.float32, mode="mirror")
    return np.ascontiguousarray(np.pad(coefficients, PADDING, mode="reflect"))


def kernel_order(mapping: np.ndarray) -> np.ndarray:
    """Turn a (3 or 4, 4) mapping between (x, y, z) voxels into the kernels' (z, y, x), (3, 4)."""
    return np.ascontiguousarray(mapping[[2, 1, 0]][:, [2, 1, 0, 3]])


@intrinsic
def _weigh_block(typing_context, coefficients, offset, stride_a, stride_b, weights, slopes):
    """Weigh the 4×4×4 coefficients that start at `offset`.

    `weights` and `slopes` hold twelve float32: four for axis a, four for b, four for c.
    Returns the value and its derivatives along a, b and c.
    """
    result = types.UniTuple(types.float32, 4)
    signature = result(coefficients, types.intp, types.intp, types.intp, weights, slopes)

    def generate(context, builder, signature, arguments):
        array, offset, stride_a, stride_b, weights, slopes = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        four = ir.VectorType(ir.FloatType(), 4)

        def lane(index):
            return ir.Constant(ir.IntType(32), index)

        def vector(scalars):
            packed = ir.Constant(four, ir.Undefined)
            for index, scalar in enumerate(scalars):
                packed = builder.insert_element(packed, scalar, lane(index))
            return packed

        def add_product(total, factor, values):
            product = builder.fmul(factor, values, flags=("contract",))
            return product if total is None else builder.fadd(total, product, flags=("contract",))

        def dot(a, b):
            product = builder.fmul(a, b)
            low, high = (
                builder.fadd(
                    builder.extract_element(product, lane(k)),
                    builder.extract_element(product, lane(k + 1)),
                )
                for k in (0, 2)
            )
            return builder.fadd(low, high)

        def row(a, b):
            step = builder.add(
                builder.mul(stride_a, ir.Constant(stride_a.type, a)),
                builder.mul(stride_b, ir.Constant(stride_b.type, b)),
            )
            address = builder.gep(data, [builder.add(offset, step)])
            loaded = builder.load(builder.bitcast(address, four.as_pointer()))
            loaded.align = 4
            return loaded

        w = [builder.extract_value(weights, k) for k in range(12)]
        s = [builder.extract_value(slopes, k) for k in range(12)]
        value = slope_a = slope_b = None
        for a in range(4):
            plane = plane_slope = None
            for b in range(4):
                coefficients_ab = row(a, b)
                plane = add_product(plane, vector([w[4 + b]] * 4), coefficients_ab)
                plane_slope = add_product(plane_slope, vector([s[4 + b]] * 4), coefficients_ab)
            value = add_product(value, vector([w[a]] * 4), plane)
            slope_a = add_product(slope_a, vector([s[a]] * 4), plane)
            slope_b = add_product(slope_b, vector([w[a]] * 4), plane_slope)
        along_c, along_c_slope = vector(w[8:]), vector(s[8:])
        results = [
            dot(value, along_c),
            dot(slope_a, along_c),
            dot(slope_b, along_c),
            dot(value, along_c_slope),
        ]
        return context.make_tuple(builder, signature.return_type, results)

    return signature, generate


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
def _sample(coefficients, a, b, c, outside):
    """Sample at one position, in voxels."""
    shape = coefficients.shape
    if not _is_inside(shape, a, b, c):
        return np.float32(outside)
    ia, ib, ic = int(np.floor(a)), int(np.floor(b)), int(np.floor(c))
    w = _weights(np.float32(a - ia)) + _weights(np.float32(b - ib)) + _weights(np.float32(c - ic))
    stride_a, stride_b = shape[1] * shape[2], shape[2]
    offset = (ia + 1) * stride_a + (ib + 1) * stride_b + ic + 1
    return _weigh_block(coefficients, offset, stride_a, stride_b, w, w)[0]


@compiled
def sample_points(coefficients, points, values):
    """Sample at `points` (P, 3), in voxels; NaN outside the image. Fills `values` (P,)."""
    for p in range(points.shape[0]):
        values[p] = _sample(coefficients, points[p, 0], points[p, 1], points[p, 2], np.nan)


@compiled
def sample_points_with_gradient(coefficients, points, values, gradients):
    """Sample values (P,) and derivatives per voxel (P, 3) at `points`; NaN outside."""
    shape = coefficients.shape
    stride_a, stride_b = shape[1] * shape[2], shape[2]
    for p in range(points.shape[0]):
        a, b, c = points[p, 0], points[p, 1], points[p, 2]
        if not _is_inside(shape, a, b, c):
            values[p] = np.nan
            gradients[p, :] = np.nan
            continue
        ia, ib, ic = int(np.floor(a)), int(np.floor(b)), int(np.floor(c))
        ta, tb, tc = np.float32(a - ia), np.float32(b - ib), np.float32(c - ic)
        w = _weights(ta) + _weights(tb) + _weights(tc)
        s = _slopes(ta) + _slopes(tb) + _slopes(tc)
        offset = (ia + 1) * stride_a + (ib + 1) * stride_b + ic + 1
        sampled = _weigh_block(coefficients, offset, stride_a, stride_b, w, s)
        values[p] = sampled[0]
        gradients[p, 0], gradients[p, 1], gradients[p, 2] = sampled[1], sampled[2], sampled[3]


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
                values[i, j, k] = _sample(
                    coefficients,
                    start_a + matrix[0, 2] * k,
                    start_b + matrix[1, 2] * k,
                    start_c + matrix[2, 2] * k,
                    outside,
                )
