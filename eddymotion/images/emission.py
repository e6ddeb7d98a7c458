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

FOUR_FLOATS, SIXTEEN_FLOATS = (ir.VectorType(ir.FloatType(), n) for n in (4, 16))

CUBIC_TERMS = ((-1, 3, -3, 1), (3, -6, 3, 0), (-3, 0, 3, 0), (1, 4, 1, 0))
SLOPE_TERMS = ((-3, 9, -9, 3), (6, -12, 6, 0), (-3, 0, 3, 0))
"""Six times the weights of a cubic B-spline around a fraction, and their derivatives, from the
highest power on."""


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


def weighing_kept(values: Any, starts: Any, fraction: Any) -> Emitted:
    """Emit :func:`~eddymotion.images.compact_kernels._weigh_kept`.

    Four rows are one vector: with weights ``u``, ``v``, ``w`` along a, b and c the sum is
    ``Σ_bc v_b w_c Σ_a u_a k_abc``, of which the inner one takes a product for each vector.
    """
    result = types.Tuple([types.float32] * 4 + [types.int16])
    signature = result(
        values, starts, types.intp, types.intp, types.intp, fraction, fraction, fraction
    )
    four = ir.VectorType(ir.IntType(16), 4)

    def generate(context, builder, signature, arguments):
        values, starts, cell, stride, c, *fractions = arguments
        data, where = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(signature.args, (values, starts), strict=False)
        )

        def row(a, b):
            step = builder.add(builder.mul(stride, ir.Constant(stride.type, a)),
                               ir.Constant(stride.type, b))  # fmt: skip
            start = builder.load(builder.gep(where, [builder.add(cell, step)]))
            first = builder.add(builder.sext(start, c.type), c)
            address = builder.bitcast(builder.gep(data, [first]), four.as_pointer())
            loaded = builder.load(address)
            loaded.align = 2
            return loaded

        (u, du), (v, dv), (w, dw) = (_cubic_weights(builder, one) for one in fractions)
        total = slope = least = None
        for a in range(4):
            rows = _side_by_side(builder, [row(a, b) for b in range(4)])
            least = _smaller(builder, rows, least)
            numbers = builder.sitofp(rows, SIXTEEN_FLOATS)
            total = _add_product(builder, total, _spread(builder, u, [a] * 16), numbers)
            slope = _add_product(builder, slope, _spread(builder, du, [a] * 16), numbers)
        along_b, along_c = [k // 4 for k in range(16)], [k % 4 for k in range(16)]
        v, dv = (_spread(builder, one, along_b) for one in (v, dv))
        w, dw = (_spread(builder, one, along_c) for one in (w, dw))
        both = builder.fmul(v, w)
        products = [
            builder.fmul(total, both),
            builder.fmul(slope, both),
            builder.fmul(total, builder.fmul(dv, w)),
            builder.fmul(total, builder.fmul(v, dw)),
        ]
        sums = [_folded(builder, one, _plus) for one in products]
        least = _folded(builder, least, _smaller)
        return context.make_tuple(builder, signature.return_type, [*sums, least])

    return signature, generate


def _cubic_weights(builder: ir.IRBuilder, fraction: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Emit the weights of four coefficients around a fraction of a cell, and their derivatives."""
    t = _spread(builder, builder.insert_element(ir.Constant(FOUR_FLOATS, ir.Undefined), fraction,
                                                _lane(0)), [0] * 4)  # fmt: skip
    weights, slopes = (
        [ir.Constant(FOUR_FLOATS, [k / 6 for k in one]) for one in terms]
        for terms in (CUBIC_TERMS, SLOPE_TERMS)
    )
    return _polynomial(builder, weights, t), _polynomial(builder, slopes, t)


def _polynomial(builder: ir.IRBuilder, terms: list[ir.Constant], t: ir.Value) -> ir.Value:
    """Emit a polynomial, its terms from the highest power on."""
    total = terms[0]
    for term in terms[1:]:
        total = _add_product(builder, term, total, t)
    return total


def _add_product(
    builder: ir.IRBuilder, total: ir.Value | None, factor: ir.Value, values: ir.Value
) -> ir.Value:
    product = builder.fmul(factor, values, flags=("contract",))
    return product if total is None else builder.fadd(total, product, flags=("contract",))


def _spread(builder: ir.IRBuilder, four: ir.Value, lanes: list[int]) -> ir.Value:
    """Emit a vector of some lanes of another."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(four, ir.Constant(four.type, ir.Undefined), mask)


def _side_by_side(builder: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Emit one vector of two or more, whose number is a power of two."""
    while len(parts) > 1:
        n = 2 * parts[0].type.count
        mask = ir.Constant(ir.VectorType(ir.IntType(32), n), list(range(n)))
        parts = [
            builder.shuffle_vector(one, other, mask)
            for one, other in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _folded(builder: ir.IRBuilder, vector: ir.Value, together: Callable) -> ir.Value:
    """Emit what the lanes of a vector make together: of half as many each time."""
    while (n := vector.type.count) > 1:
        halves = (_spread(builder, vector, list(range(k, k + n // 2))) for k in (0, n // 2))
        vector = together(builder, *halves)
    return builder.extract_element(vector, _lane(0))


def _plus(builder: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    return builder.fadd(one, other)


def _smaller(builder: ir.IRBuilder, one: ir.Value, other: ir.Value | None = None) -> ir.Value:
    """Emit the smaller of two integers, lane by lane."""
    if other is None:
        return one
    return builder.select(builder.icmp_signed("<", one, other), one, other)
