# SPDX-License-Identifier: Apache-2.0
"""LLVM code of what the compiler leaves scalar: weighted sums of 4×4×4 coefficients.

Each function takes the types that Numba found and returns what an intrinsic does: its signature,
and what emits its code. This module is imported when a kernel is compiled, since LLVM is large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import types

Emitted = tuple[Any, Callable]

ROWS = [(a, b) for a in range(4) for b in range(4)]
"""Of the coefficients around a position."""

FOUR_FLOATS, SIXTEEN_FLOATS = (ir.VectorType(ir.FloatType(), n) for n in (4, 16))

CUBIC_TERMS = ((-1, 3, -3, 1), (3, -6, 3, 0), (-3, 0, 3, 0), (1, 4, 1, 0))
SLOPE_TERMS = ((-3, 9, -9, 3), (6, -12, 6, 0), (-3, 0, 3, 0))
"""Six times the weights of a cubic B-spline around a fraction, and their derivatives, from the
highest power on."""


def weighing_block(coefficients: Any, fraction: Any) -> Emitted:
    """Emit :func:`~eddymotion.images.kernels._weigh_block`."""
    result = types.UniTuple(types.float32, 4)
    signature = result(
        coefficients, types.intp, types.intp, types.intp, fraction, fraction, fraction
    )

    def generate(context, builder, signature, arguments):
        array, offset, stride_a, stride_b, *fractions = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data

        def row(a, b):
            address = _row_of_block(builder, data, offset, (stride_a, a), (stride_b, b))
            loaded = builder.load(builder.bitcast(address, FOUR_FLOATS.as_pointer()))
            loaded.align = 4
            return loaded

        planes = (_side_by_side(builder, [row(a, b) for b in range(4)]) for a in range(4))
        results = _weigh_planes(builder, planes, fractions)
        return context.make_tuple(builder, signature.return_type, results)

    return signature, generate


def weighing_kept(values: Any, starts: Any, fraction: Any) -> Emitted:
    """Emit :func:`~eddymotion.images.compact_kernels._weigh_kept`."""
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
            address = _row_kept(builder, data, where, (cell, stride, c), a, b)
            loaded = builder.load(builder.bitcast(address, four.as_pointer()))
            loaded.align = 2
            return loaded

        planes = [_side_by_side(builder, [row(a, b) for b in range(4)]) for a in range(4)]
        least = planes[0]
        for plane in planes[1:]:
            least = _smaller(builder, plane, least)
        numbers = (builder.sitofp(plane, SIXTEEN_FLOATS) for plane in planes)
        sums = _weigh_planes(builder, numbers, fractions)
        least = _first(builder, _folded(builder, least, _smaller))
        return context.make_tuple(builder, signature.return_type, [*sums, least])

    return signature, generate


def fetching_block(coefficients: Any) -> Emitted:
    """Emit :func:`~eddymotion.images.kernels._fetch_block`."""
    signature = types.void(coefficients, types.intp, types.intp, types.intp)

    def generate(context, builder, signature, arguments):
        array, offset, stride_a, stride_b = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        for a, b in ROWS:
            _fetch(builder, _row_of_block(builder, data, offset, (stride_a, a), (stride_b, b)))
        return context.get_dummy_value()

    return signature, generate


def fetching_kept(values: Any, starts: Any) -> Emitted:
    """Emit :func:`~eddymotion.images.compact_kernels._fetch_kept`."""
    signature = types.void(values, starts, types.intp, types.intp, types.intp)

    def generate(context, builder, signature, arguments):
        values, starts, cell, stride, c = arguments
        data, where = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(signature.args, (values, starts), strict=False)
        )
        for a, b in ROWS:
            _fetch(builder, _row_kept(builder, data, where, (cell, stride, c), a, b))
        return context.get_dummy_value()

    return signature, generate


def _row_of_block(
    builder: ir.IRBuilder, data: ir.Value, offset: ir.Value, *steps: tuple[ir.Value, int]
) -> ir.Value:
    """Emit where a row of coefficients is: so many strides from the first one."""
    for stride, n in steps:
        offset = builder.add(offset, builder.mul(stride, ir.Constant(stride.type, n)))
    return builder.gep(data, [offset])


def _row_kept(
    builder: ir.IRBuilder,
    data: ir.Value,
    where: ir.Value,
    corner: tuple[ir.Value, ir.Value, ir.Value],
    a: int,
    b: int,
) -> ir.Value:
    """Emit where a row of integers is, by where the rows start."""
    cell, stride, c = corner
    step = builder.add(builder.mul(stride, ir.Constant(stride.type, a)),
                       ir.Constant(stride.type, b))  # fmt: skip
    start = builder.load(builder.gep(where, [builder.add(cell, step)]))
    return builder.gep(data, [builder.add(builder.sext(start, c.type), c)])


def _fetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Emit that what is at an address, read soon and kept near, is asked for."""
    pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
    to_read, nearest, of_data = number(0), number(3), number(1)
    builder.call(prefetch, [builder.bitcast(address, pointer), to_read, nearest, of_data])


def _weigh_planes(
    builder: ir.IRBuilder, planes: Iterable[ir.Value], fractions: list[ir.Value]
) -> list[ir.Value]:
    """Emit the weighted sum of 4×4×4 coefficients, and its derivatives.

    With weights ``u``, ``v``, ``w`` along a, b and c the sum is ``Σ_bc v_b w_c Σ_a u_a k_abc``, of
    which the inner one takes a product for each vector of a plane.

    Parameters
    ----------
    builder
    planes
        Four vectors of sixteen, rows of four coefficients side by side.
    fractions
        How much of the cell the position has passed along a, b and c.

    Returns
    -------
    list of four values
        The sum and its derivatives along a, b and c.
    """
    (u, du), (v, dv), (w, dw) = (_cubic_weights(builder, one) for one in fractions)
    total = slope = None
    for a, plane in enumerate(planes):
        total = _add_product(builder, total, _spread(builder, u, [a] * 16), plane)
        slope = _add_product(builder, slope, _spread(builder, du, [a] * 16), plane)
    v, dv = (_spread(builder, one, [k // 4 for k in range(16)]) for one in (v, dv))
    row, row_a, row_b = (
        _folded(builder, builder.fmul(of, by), _plus, 4)
        for of, by in ((total, v), (slope, v), (total, dv))
    )
    products = [builder.fmul(of, by) for of, by in ((row, w), (row_a, w), (row_b, w), (row, dw))]
    return [_first(builder, _folded(builder, one, _plus)) for one in products]


def _cubic_weights(builder: ir.IRBuilder, fraction: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Emit the weights of four coefficients around a fraction of a cell, and their derivatives."""
    unknown, first = ir.Constant(FOUR_FLOATS, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    t = _spread(builder, builder.insert_element(unknown, fraction, first), [0] * 4)
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


def _folded(
    builder: ir.IRBuilder, vector: ir.Value, together: Callable, left: int = 1
) -> ir.Value:
    """Emit what the lanes of a vector make together, of half as many each time."""
    while (n := vector.type.count) > left:
        halves = (_spread(builder, vector, list(range(k, k + n // 2))) for k in (0, n // 2))
        vector = together(builder, *halves)
    return vector


def _first(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _plus(builder: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    return builder.fadd(one, other)


def _smaller(builder: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    """Emit the smaller of two integers, lane by lane."""
    return builder.select(builder.icmp_signed("<", one, other), one, other)
