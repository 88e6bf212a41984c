"""Plain loads, stores and copies over addresses, for kernels that work on bulk data nobody else touches meanwhile.

Unlike those of atomic.py they carry no memory order, so the compiler may merge, reorder and vectorise them; they need no
alignment. ``getN(base, index)`` reads element ``index`` of N bits as an unsigned number, ``get_iN`` as a signed one;
``putN`` writes the low N bits. The address is formed by an index from a fixed base, which is the form that LLVM's loop
vectoriser understands.

Imported only where kernels are compiled.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I64, _I8 = ir.IntType(64), ir.IntType(8)
_LINE = ir.VectorType(_I64, 8)


def _place(builder: Any, base: Any, index: Any, width: Any) -> Any:
    return builder.gep(builder.inttoptr(base, width.as_pointer()), [index])


def _getter(bits: int, signed: bool = False) -> Any:
    width = ir.IntType(bits)

    @intrinsic
    def get(typingctx, base, index):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            value = builder.load(_place(builder, arguments[0], arguments[1], width), align=1)
            if bits == 64:
                return value
            return builder.sext(value, _I64) if signed else builder.zext(value, _I64)

        return types.int64(types.int64, types.int64), codegen

    return get


def _putter(bits: int) -> Any:
    width = ir.IntType(bits)

    @intrinsic
    def put(typingctx, base, index, value):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            item = arguments[2] if bits == 64 else builder.trunc(arguments[2], width)
            builder.store(item, _place(builder, arguments[0], arguments[1], width), align=1)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, types.int64), codegen

    return put


get8, get16, get32, get64 = _getter(8), _getter(16), _getter(32), _getter(64)
get_i8, get_i16, get_i32 = _getter(8, True), _getter(16, True), _getter(32, True)
put8, put16, put32, put64 = _putter(8), _putter(16), _putter(32), _putter(64)


def _float_getter(width: Any) -> Any:
    @intrinsic
    def get(typingctx, base, index):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            value = builder.load(_place(builder, arguments[0], arguments[1], width), align=1)
            return value if isinstance(width, ir.DoubleType) else builder.fpext(value, ir.DoubleType())

        return types.float64(types.int64, types.int64), codegen

    return get


get_float, get_double = _float_getter(ir.FloatType()), _float_getter(ir.DoubleType())


@intrinsic
def double_bits(typingctx, value):  # type: ignore[no-untyped-def]
    """The bits of a float64."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], _I64)

    return types.int64(types.float64), codegen


def _mover(count: int, width: Any) -> Any:
    """Copy one element of ``count`` words or bytes, by index on both sides."""
    kind = ir.VectorType(width, count) if count > 1 else width

    @intrinsic
    def move(typingctx, target, to, source, at):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            value = builder.load(_place(builder, arguments[2], arguments[3], kind), align=1)
            builder.store(value, _place(builder, arguments[0], arguments[1], kind), align=1)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 4), codegen

    return move


move16, move32 = _mover(2, _I64), _mover(4, _I64)


@intrinsic
def stream_line(typingctx, target, source):  # type: ignore[no-untyped-def]
    """Copy 64 bytes past the caches; target is a multiple of 64."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        value = builder.load(builder.inttoptr(arguments[1], _LINE.as_pointer()), align=1)
        written = builder.store(value, builder.inttoptr(arguments[0], _LINE.as_pointer()), align=64)
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


@intrinsic
def copy_bytes(typingctx, target, source, size):  # type: ignore[no-untyped-def]
    """memcpy."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = _I8.as_pointer()
        cgutils.raw_memcpy(
            builder,
            builder.inttoptr(arguments[0], pointer),
            builder.inttoptr(arguments[1], pointer),
            arguments[2],
            1,
        )
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), codegen


@intrinsic
def fill_bytes(typingctx, target, size, value):  # type: ignore[no-untyped-def]
    """memset."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(arguments[0], _I8.as_pointer())
        cgutils.memset(builder, pointer, arguments[1], builder.trunc(arguments[2], _I8))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), codegen


@intrinsic
def prefetch_to_write(typingctx, base):  # type: ignore[no-untyped-def]
    """Begin to load a line that will be written soon; any address will do."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        pointer = builder.inttoptr(arguments[0], _I8.as_pointer())
        builder.call(function, [pointer, i32(1), i32(3), i32(1)])  # for writing, into all caches, data
        return context.get_dummy_value()

    return types.none(types.int64), codegen
