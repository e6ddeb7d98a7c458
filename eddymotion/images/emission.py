# SPDX-License-Identifier: Apache-2.0
"""LLVM code of what the compiler leaves scalar: weighted sums of 4×4×4 coefficients.

Each function takes the types that Numba found and returns what an intrinsic does: its signature,
and what emits its code. This module is imported when a kernel is compiled, since LLVM is large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

Emitted = tuple[Any, Callable]

FOUR_FLOATS = ir.VectorType(ir.FloatType(), 4)


def _lane(index: int) -> ir.Constant:
    return ir.Constant(ir.IntType(32), index)


def _weigh_rows(
    builder: ir.IRBuilder, row: Callable[[int, int], Any], weights: Any, slopes: Any
) -> list[Any]:
    """Emit the weighted sum of sixteen rows of four coefficients, and its derivatives.

    Parameters
    ----------
    builder
    row : callable
        Emits what loads the row at (a, b) of the block.
    weights, slopes
        Twelve float32 each: four for axis a, four for b, four for c.

    Returns
    -------
    list of four values
        The sum and its derivatives along a, b and c.
    """

    def vector(scalars):
        packed = ir.Constant(FOUR_FLOATS, ir.Undefined)
        for index, scalar in enumerate(scalars):
            packed = builder.insert_element(packed, scalar, _lane(index))
        return packed

    def add_product(total, factor, values):
        product = builder.fmul(factor, values, flags=("contract",))
        return product if total is None else builder.fadd(total, product, flags=("contract",))

    def dot(a, b):
        product = builder.fmul(a, b)
        low, high = (
            builder.fadd(
                builder.extract_element(product, _lane(k)),
                builder.extract_element(product, _lane(k + 1)),
            )
            for k in (0, 2)
        )
        return builder.fadd(low, high)

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
    return [
        dot(value, along_c),
        dot(slope_a, along_c),
        dot(slope_b, along_c),
        dot(value, along_c_slope),
    ]


def weighing_block(coefficients: Any, weights: Any, slopes: Any) -> Emitted:
    """Emit :func:`~eddymotion.images.kernels._weigh_block`."""
    result = types.UniTuple(types.float32, 4)
    signature = result(coefficients, types.intp, types.intp, types.intp, weights, slopes)

    def generate(context, builder, signature, arguments):
        array, offset, stride_a, stride_b, weights, slopes = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data

        def row(a, b):
            step = builder.add(
                builder.mul(stride_a, ir.Constant(stride_a.type, a)),
                builder.mul(stride_b, ir.Constant(stride_b.type, b)),
            )
            address = builder.gep(data, [builder.add(offset, step)])
            loaded = builder.load(builder.bitcast(address, FOUR_FLOATS.as_pointer()))
            loaded.align = 4
            return loaded

        results = _weigh_rows(builder, row, weights, slopes)
        return context.make_tuple(builder, signature.return_type, results)

    return signature, generate


def weighing_kept(values: Any, starts: Any, weights: Any, slopes: Any) -> Emitted:
    """Emit :func:`~eddymotion.images.compact_kernels._weigh_kept`."""
    result = types.Tuple([types.float32] * 4 + [types.int16])
    signature = result(values, starts, types.intp, types.intp, types.intp, weights, slopes)
    four = ir.VectorType(ir.IntType(16), 4)

    def generate(context, builder, signature, arguments):
        values, starts, cell, stride, c, weights, slopes = arguments
        data, where = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(signature.args, (values, starts), strict=False)
        )
        smallest: list[ir.Value] = []

        def row(a, b):
            step = builder.add(builder.mul(stride, ir.Constant(stride.type, a)),
                               ir.Constant(stride.type, b))  # fmt: skip
            start = builder.load(builder.gep(where, [builder.add(cell, step)]))
            first = builder.add(builder.sext(start, c.type), c)
            address = builder.bitcast(builder.gep(data, [first]), four.as_pointer())
            loaded = builder.load(address)
            loaded.align = 2
            smallest[:] = [_smaller(builder, loaded, *smallest)]
            return builder.sitofp(loaded, FOUR_FLOATS)

        sums = _weigh_rows(builder, row, weights, slopes)
        lanes = [builder.extract_element(smallest[0], ir.Constant(ir.IntType(32), k))
                 for k in range(4)]  # fmt: skip
        least = lanes[0]
        for lane in lanes[1:]:
            least = _smaller(builder, lane, least)
        return context.make_tuple(builder, signature.return_type, [*sums, least])

    return signature, generate


def _smaller(builder: ir.IRBuilder, one: ir.Value, other: ir.Value | None = None) -> ir.Value:
    """Emit the smaller of two integers, lane by lane."""
    if other is None:
        return one
    return builder.select(builder.icmp_signed("<", one, other), one, other)
