"""The signal handler for reads behind the end of a mapped file that somebody truncated; installed by guard.py."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .atomic import load, store
from .guard import ENTRIES, G_ADDRESS, G_COUNT, G_ENTRIES, G_HIGH, G_MESSAGE, G_MESSAGE_BYTES, G_OLD, SYMBOL
from .jit import capi
from .records import system_call

interrupt = types.ExternalFunction("PyErr_SetInterruptEx", types.int32(types.int32))
set_action = types.ExternalFunction("sigaction", types.int32(types.int32, types.int64, types.int64))
SYS_WRITE, SYS_MMAP = 1, 9
READ_WRITE, FIXED_PRIVATE_ANONYMOUS_NORESERVE = 3, 0x4032
SI_ADDR = 16
assert ENTRIES > 0


@intrinsic
def table(typingctx):  # type: ignore[no-untyped-def]
    """The address of the table of mappings, which the loader gives the linker by name."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        module = builder.module
        found = module.globals.get(SYMBOL) or ir.GlobalVariable(module, ir.IntType(64), SYMBOL)
        found.linkage = "external"
        return builder.ptrtoint(found, ir.IntType(64))

    return types.int64(), codegen


@capi("void(int32, int64, int64)")
def on_bus_error(number, info, _context):
    """Put zeros where a mapping of ours lost its file, have Python raise, and return; for others, act as before.

    Only what is safe in a signal handler: system calls, sigaction, PyErr_SetInterruptEx (which is so by its documentation).
    """
    words, address = table(), load(info + SI_ADDR)
    for position in range(load(words + G_HIGH)):
        entry = words + G_ENTRIES + 16 * position
        start, end = load(entry), load(entry + 8)
        if start <= address and address < end:
            # All of the mapping from here on lies behind the file's end.
            page = address & ~4095
            system_call(SYS_MMAP, page, end - page, READ_WRITE, FIXED_PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
            store(words + G_ADDRESS, address)
            store(words + G_COUNT, load(words + G_COUNT) + 1)
            system_call(SYS_WRITE, 2, words + G_MESSAGE, load(words + G_MESSAGE_BYTES), 0, 0, 0)
            interrupt(number)
            return
    set_action(number, words + G_OLD, 0)  # the access is repeated, under whoever was responsible before
