# SPDX-License-Identifier: Apache-2.0
"""LLVM code of filters along rows, since compiled slices spend most of their time on bounds.

As :mod:`eddymotion.images.emission`, and imported when a kernel is compiled as well. Rows are
taken in blocks of 64 or 16 numbers side by side, and what goes from row to row stays in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from eddymotion.images.emission import Emitted, _add_product, _smaller, _spread

BLOCKS = (64, 16, 1)
"""Numbers side by side, as many as are left."""

INDEX = types.intp


def recursing_rows(flat: Any, firsts: Any, pole: float) -> Emitted:
    """Emit :func:`~eddymotion.images.kernels._recurse_rows`."""
    signature = types.void(flat, INDEX, INDEX, INDEX, INDEX, firsts)

    def generate(context, builder, signature, arguments):
        flat, start, step, n, width, firsts = arguments
        array, weights = _arrays(context, builder, signature, {0: flat, 5: firsts})
        one = _number(start, 1)
        last = builder.sub(n, one)

        def filter_block(first, lanes):
            rows = _Rows(builder, array.data, builder.add(start, first), step, lanes)
            of_pole, of_row = rows.constant(pole), rows.constant(-pole)
            state = cgutils.alloca_once_value(builder, rows.constant(0.0))

            def carry(value, to):
                rows.store(value, to)
                builder.store(value, state)

            with cgutils.for_range(builder, _length(builder, weights)) as loop:
                weight = rows.weight(weights.data, loop.index)
                added = _add_product(builder, builder.load(state), weight, rows.load(loop.index))
                builder.store(added, state)
            carry(builder.load(state), _number(start, 0))
            with cgutils.for_range_slice(builder, one, n, one, inc=True) as (i, _):
                carry(_add_product(builder, rows.load(i), of_pole, builder.load(state)), i)
            before = rows.load(builder.sub(last, one))
            end = _add_product(builder, builder.load(state), of_pole, before)
            carry(builder.fmul(end, rows.constant(pole / (pole * pole - 1.0))), last)
            with cgutils.for_range(builder, last) as loop:
                i = builder.sub(builder.sub(last, one), loop.index)
                scaled = builder.fmul(of_row, rows.load(i))
                carry(_add_product(builder, scaled, of_pole, builder.load(state)), i)

        _in_blocks(builder, width, filter_block)
        return context.get_dummy_value()

    return signature, generate


def smoothing_rows(source: Any, weights: Any, flat: Any) -> Emitted:
    """Emit :func:`~eddymotion.images.kernels._smooth_rows`."""
    signature = types.void(source, INDEX, INDEX, INDEX, INDEX, INDEX, INDEX, weights,
                           flat, INDEX, INDEX)  # fmt: skip

    def generate(context, builder, signature, arguments):
        source, at, along, n, low, high, width, weights, flat, start, step = arguments
        given, weights, array = _arrays(
            context, builder, signature, {0: source, 7: weights, 8: flat}
        )
        one = _number(at, 1)
        last, n_weights = builder.sub(n, one), _length(builder, weights)

        def smooth_block(first, lanes):
            rows = _Rows(builder, given.data, builder.add(at, first), along, lanes)
            smoothed = _Rows(builder, array.data, builder.add(start, first), step, lanes)
            total = cgutils.alloca_once(builder, rows.type)
            with cgutils.for_range_slice(builder, low, high, one, inc=True) as (i, _):
                centre = rows.weight(weights.data, _number(at, 0))
                builder.store(builder.fmul(centre, rows.load(i)), total)
                with cgutils.for_range_slice(builder, one, n_weights, one, inc=True) as (j, _):
                    before = _larger(builder, builder.sub(i, j), _number(at, 0))
                    after = _smaller(builder, builder.add(i, j), last)
                    both = builder.fadd(rows.load(before), rows.load(after))
                    weight = rows.weight(weights.data, j)
                    builder.store(_add_product(builder, builder.load(total), weight, both), total)
                smoothed.store(builder.load(total), i)

        _in_blocks(builder, width, smooth_block, again=True)
        return context.get_dummy_value()

    return signature, generate


class _Rows:
    """Some numbers of each row: how they are loaded and stored."""

    def __init__(
        self, builder: ir.IRBuilder, data: ir.Value, start: ir.Value, step: ir.Value, lanes: int
    ) -> None:
        self.builder, self.data, self.start, self.step = builder, data, start, step
        self.type = ir.VectorType(ir.FloatType(), lanes)

    def constant(self, number: float) -> ir.Constant:
        """One number in all lanes."""
        return ir.Constant(self.type, [number] * self.type.count)

    def weight(self, weights: ir.Value, index: ir.Value) -> ir.Value:
        """Emit one of some weights in all lanes."""
        weight = self.builder.load(self.builder.gep(weights, [index]))
        undefined, first = ir.Constant(self.type, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        inserted = self.builder.insert_element(undefined, weight, first)
        return _spread(self.builder, inserted, [0] * self.type.count)

    def load(self, row: ir.Value) -> ir.Value:
        """Emit what a row holds."""
        loaded = self.builder.load(self._address(row))
        loaded.align = 4
        return loaded

    def store(self, value: ir.Value, row: ir.Value) -> None:
        """Emit that a row holds a value."""
        self.builder.store(value, self._address(row)).align = 4

    def _address(self, row: ir.Value) -> ir.Value:
        offset = self.builder.add(self.start, self.builder.mul(row, self.step))
        return self.builder.bitcast(self.builder.gep(self.data, [offset]), self.type.as_pointer())


def _arrays(
    context: Any, builder: ir.IRBuilder, signature: Any, arguments: dict[int, ir.Value]
) -> list[Any]:
    """See arrays among the arguments of an intrinsic."""
    return [
        context.make_array(signature.args[place])(context, builder, value)
        for place, value in arguments.items()
    ]


def _length(builder: ir.IRBuilder, array: Any) -> ir.Value:
    return builder.extract_value(array.shape, 0)


def _number(like: ir.Value, number: int) -> ir.Constant:
    return ir.Constant(like.type, number)


def _in_blocks(
    builder: ir.IRBuilder,
    width: ir.Value,
    body: Callable[[ir.Value, int], None],
    *,
    again: bool = False,
) -> None:
    """Emit `body(first, lanes)` for blocks of rows, as wide as fit into what is left.

    Where a number may be worked on `again`, the last block overlaps the one before.
    """
    first = _number(width, 0)
    for lanes in BLOCKS[:-1]:
        stop = builder.and_(width, _number(width, -lanes))
        _repeated(builder, body, first, stop, lanes)
        first = stop
    if not again:
        _repeated(builder, body, first, width, 1)
        return
    narrow = builder.icmp_signed("<", width, _number(width, lanes))
    with builder.if_else(narrow) as (few, many):
        with few:
            _repeated(builder, body, first, width, 1)
        with many:
            last = builder.sub(width, _number(width, lanes))
            start = builder.select(builder.icmp_signed("<", first, width), last, width)
            _repeated(builder, body, start, width, lanes)


def _repeated(
    builder: ir.IRBuilder,
    body: Callable[[ir.Value, int], None],
    first: ir.Value,
    stop: ir.Value,
    lanes: int,
) -> None:
    """Emit `body(block, lanes)` for each block from `first` up to `stop`."""
    step = _number(first, lanes)
    with cgutils.for_range_slice(builder, first, stop, step, inc=True) as (block, _):
        body(block, lanes)


def _larger(builder: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    return builder.select(builder.icmp_signed(">", one, other), one, other)
