"""Loads, stores and read-modify-writes on shared memory, as numba intrinsics over addresses.

The one place for memory order. Every function takes an address as int64 and moves 64 (or, where named, 8 or 32) bits.
``load_*``/``store_*`` state their order; ``fetch_add``, ``exchange`` and ``compare_exchange`` are sequentially
consistent, which on x86 is what the lock prefix gives anyway. A release store names, in a ``SYNC`` comment at its call,
the acquire load that pairs with it.

Imported only where kernels are compiled.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import pmem
from .jit import SYMBOLS, TRACED, cpu_flags

TRACE_SYMBOL, GATE_SYMBOL = "tierstore_trace", "tierstore_trace_gate"
# Value of a store: what is stored; of a copied stripe, by plain or by non-temporal stores: the address it comes from.
TRACE_STORE, TRACE_COPY, TRACE_STREAM, TRACE_FLUSH, TRACE_FENCE = 1, 2, 3, 4, 5
_I64, _I32, _I8 = ir.IntType(64), ir.IntType(32), ir.IntType(8)


def trace(builder: Any, kind: int, address: Any, size: int, value: Any = None) -> None:
    """In kernels built to be observed, while the gate is open: tell of a store, flush or fence before it is done.

    value: None for flushes and fences; told instead is the address of a text that says where in the code they are.
    """
    if not TRACED:
        return
    module, kind_of = builder.module, ir.FunctionType(ir.VoidType(), [_I64] * 4)
    function = module.globals.get(TRACE_SYMBOL) or ir.Function(module, kind_of, TRACE_SYMBOL)
    gate = module.globals.get(GATE_SYMBOL) or ir.GlobalVariable(module, _I64, GATE_SYMBOL)
    gate.linkage = "external"
    if value is None:
        number = builder.function.sites = getattr(builder.function, "sites", 0) + 1
        site = f"{builder.function.name} {number}".encode() + b"\0"
        text = ir.Constant(ir.ArrayType(_I8, len(site)), bytearray(site))
        value = builder.ptrtoint(cgutils.global_constant(module, "trace_site", text), _I64)
    value = builder.zext(value, _I64) if value.type.width < 64 else value
    with builder.if_then(builder.icmp_unsigned("!=", builder.load(gate), _I64(0))):
        builder.call(function, [_I64(kind), address, _I64(size), value])


def _pointer(builder: Any, address: Any, width: Any) -> Any:
    return builder.inttoptr(address, width.as_pointer())


def _loader(width: Any, order: str) -> Any:
    @intrinsic
    def load(typingctx, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = _pointer(builder, arguments[0], width)
            value = builder.load_atomic(pointer, order, width.width // 8) if order else builder.load(pointer)
            return value if width is _I64 else builder.zext(value, _I64)

        return types.int64(types.int64), codegen

    return load


def _storer(width: Any, order: str) -> Any:
    @intrinsic
    def store(typingctx, address, value):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            pointer = _pointer(builder, arguments[0], width)
            item = arguments[1] if width is _I64 else builder.trunc(arguments[1], width)
            trace(builder, TRACE_STORE, arguments[0], width.width // 8, item)
            if order:
                builder.store_atomic(item, pointer, order, width.width // 8)
            else:
                builder.store(item, pointer)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64), codegen

    return store


load = _loader(_I64, "monotonic")
load_acquire = _loader(_I64, "acquire")
load32 = _loader(_I32, "monotonic")
load8 = _loader(_I8, "monotonic")
load16 = _loader(ir.IntType(16), "monotonic")
store = _storer(_I64, "monotonic")
store_release = _storer(_I64, "release")
store32 = _storer(_I32, "monotonic")
store8 = _storer(_I8, "monotonic")
store16 = _storer(ir.IntType(16), "monotonic")


def _read_modify_write(operation: str, width: Any) -> Any:
    @intrinsic
    def modify(typingctx, address, value):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            item = arguments[1] if width is _I64 else builder.trunc(arguments[1], width)
            old = builder.atomic_rmw(operation, _pointer(builder, arguments[0], width), item, "seq_cst")
            return old if width is _I64 else builder.zext(old, _I64)

        return types.int64(types.int64, types.int64), codegen

    return modify


fetch_add = _read_modify_write("add", _I64)
fetch_add32 = _read_modify_write("add", _I32)
exchange = _read_modify_write("xchg", _I64)


@intrinsic
def compare_exchange(typingctx, address, expected, new):  # type: ignore[no-untyped-def]
    """Store ``new`` if the word equals ``expected``; the old word either way."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        pointer = _pointer(builder, arguments[0], _I64)
        return builder.extract_value(builder.cmpxchg(pointer, arguments[1], arguments[2], "acq_rel", "acquire"), 0)

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def fence(typingctx):  # type: ignore[no-untyped-def]
    """Full fence: no load after it is done before a store ahead of it (x86 alone would allow that)."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def prefetch(typingctx, address):  # type: ignore[no-untyped-def]
    """Begin to load a line that will be read soon; any address will do."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        pointer = builder.inttoptr(arguments[0], _I8.as_pointer())
        builder.call(function, [pointer, _I32(0), _I32(3), _I32(1)])  # for reading, into all caches, data
        return context.get_dummy_value()

    return types.none(types.int64), codegen


@intrinsic
def shift_right(typingctx, value, bits):  # type: ignore[no-untyped-def]
    """Logical shift right; ``>>`` on an int64 drags the sign along."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.lshr(arguments[0], arguments[1])

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def multiply_fold(typingctx, left, right):  # type: ignore[no-untyped-def]
    """High half XOR low half of the unsigned 128-bit product."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        high = builder.trunc(builder.lshr(product, wide(64)), _I64)
        return builder.xor(high, builder.trunc(product, _I64))

    return types.int64(types.int64, types.int64), codegen


def _assembly(text: str, traced: int = 0) -> Any:
    @intrinsic
    def emit(typingctx):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            if traced:
                trace(builder, traced, _I64(0), 0)
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(ir.InlineAsm(kind, text, "~{memory}", side_effect=True), [])
            return context.get_dummy_value()

        return types.none(), codegen

    return emit


def _assembly_at(text: str) -> Any:
    @intrinsic
    def emit(typingctx, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            trace(builder, TRACE_FLUSH, arguments[0], 64)
            kind = ir.FunctionType(ir.VoidType(), [_I64])
            builder.call(ir.InlineAsm(kind, text, "r,~{memory}", side_effect=True), [arguments[0]])
            return context.get_dummy_value()

        return types.none(types.int64), codegen

    return emit


def _call_at(symbol: str) -> Any:
    @intrinsic
    def emit(typingctx, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            trace(builder, TRACE_FLUSH, arguments[0], 64)
            kind = ir.FunctionType(ir.VoidType(), [_I64, _I64])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, symbol), [arguments[0], _I64(64)])
            return context.get_dummy_value()

        return types.none(types.int64), codegen

    return emit


def _flush_instruction() -> str:
    """clwb where the CPU has it, else clflushopt, else clflush (every x86-64 has it)."""
    flags = set(cpu_flags().split())
    return next(name for name in ("clwb", "clflushopt", "clflush") if name in flags or name == "clflush")


def _architecture() -> str:
    import platform

    return platform.machine()


if _architecture() in ("x86_64", "AMD64"):
    FLUSH = _flush_instruction()
    pause = _assembly("pause")
    store_fence = _assembly("sfence", TRACE_FENCE)
    flush_line = _assembly_at(f"{FLUSH} ($0)")
elif _architecture() in ("aarch64", "arm64"):
    FLUSH = "dc cvac"
    pause = _assembly("yield")
    store_fence = _assembly("dsb ish")
    flush_line = _assembly_at("dc cvac, $0")
else:  # correct everywhere: a full fence orders the stores, and without a flush nothing claims to be durable
    FLUSH = ""
    pause = _assembly("")
    store_fence = fence
    flush_line = _assembly_at("")
if pmem.FLUSH in SYMBOLS:
    flush_line = _call_at(pmem.FLUSH)
