"""Vector code for kernels: items of arrays at addresses, prefetch, and the nearest of several points for many rows.

Imported only where kernels are compiled.

The loop of ``nearest_of`` is written as vector IR because LLVM vectorises inner loops only, and there the inner loop
(over dimensions) is the one that must not be: each micro-tile of ``MICRO_ROWS`` rows keeps its distances to a group of
points in registers, so that one load of a value serves the whole group.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import cpu_flags

_I32, _I64, _F64 = ir.IntType(32), ir.IntType(64), ir.DoubleType()

# Accumulators, two value vectors and the running minimum must fit the vector registers: 32 with AVX-512, else 16.
LANES = 8 if "avx512f" in cpu_flags().split() else 4
_PAIR = 2  # vectors in flight per centroid: hides the latency of the multiply-add
MICRO_ROWS = _PAIR * LANES
_FLOATS, _INTS = ir.VectorType(_F64, LANES), ir.VectorType(_I64, LANES)


def _constant(value: int) -> Any:
    return ir.Constant(_I64, value)


def _element(builder: Any, base: Any, index: Any, kind: Any) -> Any:
    """Address of item ``index``; a GEP, since LLVM cannot see the stride in integer arithmetic."""
    return builder.gep(builder.inttoptr(base, kind.as_pointer()), [index])


def _item_loader(kind: Any, result: Any) -> Any:
    @intrinsic
    def load(typingctx, base, index):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.load(_element(builder, arguments[0], arguments[1], kind))

        return result(types.int64, types.int64), codegen

    return load


def _item_storer(kind: Any, value: Any) -> Any:
    @intrinsic
    def store(typingctx, base, index, item):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            builder.store(arguments[2], _element(builder, arguments[0], arguments[1], kind))
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, value), codegen

    return store


load_float, load_int = _item_loader(_F64, types.float64), _item_loader(_I64, types.int64)
store_float, store_int = _item_storer(_F64, types.float64), _item_storer(_I64, types.int64)


@intrinsic
def prefetch(typingctx, address):  # type: ignore[no-untyped-def]
    """Ask for the cache line at an address; never faults, so it may be past the end of a column."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep, data = (ir.Constant(_I32, value) for value in (0, 3, 1))
        builder.call(function, [builder.inttoptr(arguments[0], pointer), read, keep, data])
        return context.get_dummy_value()

    return types.none(types.int64), codegen


def _splat(builder: Any, scalar: Any, kind: Any) -> Any:
    empty = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


def _vector_at(builder: Any, base: Any, index: Any, kind: Any) -> Any:
    return builder.bitcast(_element(builder, base, index, kind.element), kind.as_pointer())


def _variables(builder: Any, start: Any) -> list[Any]:
    """One local vector variable per vector of the pair, set to ``start``; mem2reg makes them registers."""
    variables = [cgutils.alloca_once(builder, start.type) for _ in range(_PAIR)]
    for variable in variables:
        builder.store(start, variable)
    return variables


class _Nearest:
    """Emits the search for one size of group and one stride; the methods are its three loops' bodies."""

    def __init__(self, builder: Any, group: int, stride: int):
        self.builder, self.group, self.stride = builder, group, stride
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        self.fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f64")
        self.best = _variables(builder, ir.Constant(_FLOATS, [float("inf")] * LANES))
        self.labels = _variables(builder, ir.Constant(_INTS, [0] * LANES))
        self.distances = [_variables(builder, ir.Constant(_FLOATS, [0.0] * LANES)) for _ in range(group)]

    def start(self, points: Any) -> None:
        """distances[g][p] = the norm of point g."""
        builder = self.builder
        for index, pair in enumerate(self.distances):
            norm = _splat(builder, builder.load(_element(builder, points, _constant(index), _F64)), _FLOATS)
            for distance in pair:
                builder.store(norm, distance)

    def add_products(self, points: Any, tile: Any, row: Any, dimension: Any) -> None:
        """distances[g][p] += factor of point g in this dimension * tile, in registers."""
        builder = self.builder
        first = builder.add(builder.mul(dimension, _constant(self.stride)), row)
        values = [
            builder.load(_vector_at(builder, tile, builder.add(first, _constant(pair * LANES)), _FLOATS), align=8)
            for pair in range(_PAIR)
        ]
        factors = builder.mul(builder.add(dimension, _constant(1)), _constant(self.group))
        for index, pair in enumerate(self.distances):
            item = _element(builder, points, builder.add(factors, _constant(index)), _F64)
            factor = _splat(builder, builder.load(item), _FLOATS)
            for value, distance in zip(values, pair, strict=True):
                builder.store(builder.call(self.fma, [factor, value, builder.load(distance)]), distance)

    def keep_nearest(self, group_index: Any) -> None:
        """Where a distance is below the best so far, keep it and the number of its point; a tie keeps the lower."""
        builder = self.builder
        for index, pair in enumerate(self.distances):
            number = builder.add(builder.mul(group_index, _constant(self.group)), _constant(index))
            numbers = _splat(builder, number, _INTS)
            for distance, best, label in zip(pair, self.best, self.labels, strict=True):
                found, known = builder.load(distance), builder.load(best)
                less = builder.fcmp_ordered("<", found, known)
                builder.store(builder.select(less, found, known), best)
                builder.store(builder.select(less, numbers, builder.load(label)), label)

    def finish(self, labels: Any, row: Any) -> None:
        """Store the labels of the rows."""
        for pair, label in enumerate(self.labels):
            index = self.builder.add(row, _constant(pair * LANES))
            self.builder.store(self.builder.load(label), _vector_at(self.builder, labels, index, _INTS), align=8)


def nearest_of(group: int, stride: int) -> Any:
    """An intrinsic that stores the nearest point of rows [row, row + MICRO_ROWS) of a tile.

    tile:    (dimension_count, stride) <f8; labels: (stride,) <i8; row: a multiple of MICRO_ROWS.
    points:  (group_count, dimension_count + 1, group) <f8: per group the norms, then per dimension the factors; the
             distance of a row is norm + sum of factor * value.
    """

    @intrinsic
    def nearest(typingctx, tile, row, dimension_count, group_count, points, labels):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            tile, row, dimension_count, group_count, points, labels = arguments
            search = _Nearest(builder, group, stride)
            group_bytes = builder.mul(builder.add(dimension_count, _constant(1)), _constant(8 * group))
            with cgutils.for_range(builder, group_count) as groups:
                here = builder.add(points, builder.mul(groups.index, group_bytes))
                search.start(here)
                with cgutils.for_range(builder, dimension_count) as dimensions:
                    search.add_products(here, tile, row, dimensions.index)
                search.keep_nearest(groups.index)
            search.finish(labels, row)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 6), codegen

    return nearest
