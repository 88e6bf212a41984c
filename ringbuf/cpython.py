"""CPython and libc functions that kernels may call, and unchecked loads. Imported only where kernels are compiled."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_P = types.int64  # a pointer; user-space addresses are below 2**47, so signed is safe and needs no casts


@intrinsic
def load(typingctx, address):  # type: ignore[no-untyped-def]
    """The 8 bytes at an address, not atomic."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), codegen


as_int = types.ExternalFunction("PyLong_AsUnsignedLongLongMask", types.int64(_P))
from_int = types.ExternalFunction("PyLong_FromLongLong", _P(types.int64))
release_gil = types.ExternalFunction("PyEval_SaveThread", _P())
acquire_gil = types.ExternalFunction("PyEval_RestoreThread", types.void(_P))
