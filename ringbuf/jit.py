"""Compiled kernels: one decorator to write them, one loader to call them without importing numba.

A kernel is a small function of 64-bit integers (addresses, sizes, codes). Three decorators mark what it is:

    helper          compiled into the kernels that call it, never seen from Python
    kernel(...)     callable from Python as a builtin: ``native.name(int, ...) -> int``
    capi(...)       the raw C signature given; its body may call the CPython API (``method``) or be a plain callback

Why not the numba dispatcher: it costs 300 to 500 ns a call, a builtin made from a ``cfunc`` 40 to 140 ns.
Why not numba's own cache: its key is one file, so an edited constant in another module leaves stale machine code, and
eight cold processes compile eight times. Here the compiled objects live in a folder named by a digest of all sources,
the compiler versions and the CPU's features; they are built once, under a file lock, and are loaded through llvmlite
alone (about 50 ms) by every later process.

What is private: ``cfunc._library._get_compiled_object`` and ``cfunc._wrapper_name`` of numba. Where they are missing the
kernels still run from the memory of the compiling process (``address`` is public), only without the folder.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from . import guard, pmem

log = logging.getLogger("tierstore")

# Set only by the crash explorer: kernels are built so that an observer hears of every store, flush and fence.
TRACED = bool(os.environ.get("TIERSTORE_TRACE"))
# What kernels name that lies in this process, with its address.
SYMBOLS = {guard.SYMBOL: guard.table_address()}
if pmem.flush_address():
    SYMBOLS[pmem.FLUSH] = pmem.flush_address()
METH_FASTCALL = 0x0080
_INT = "int64"

# Filled by the decorators while a kernel module is imported; only a compiling process ever gets here.
_declared: dict[str, list[_Declared]] = {}


class _Declared:
    """One kernel as its module declared it."""

    def __init__(self, name: str, kind: str, function: Callable[..., int], arity: int, nogil: bool, signature: str):
        self.name, self.kind, self.function = name, kind, function
        self.arity, self.nogil, self.signature = arity, nogil, signature


def helper(function: Callable[..., Any]) -> Any:
    """Mark a function as compiled into its callers."""
    from numba import njit

    return njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")(function)


def kernel(nogil: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Mark a function of int64s returning int64 as callable from Python.

    nogil: release the interpreter lock around the call; costs about 55 ns, so only for copies and waits.
    """

    def mark(function: Callable[..., Any]) -> Any:
        compiled = helper(function)
        arity = function.__code__.co_argcount
        _declare(function.__module__, _Declared(function.__name__, "builtin", compiled, arity, nogil, ""))
        return compiled

    return mark


def capi(signature: str, method: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Mark a function with a C signature of its own: a METH_FASTCALL ``method``, or a bare callback."""

    def mark(function: Callable[..., Any]) -> Any:
        kind = "method" if method else "callback"
        _declare(function.__module__, _Declared(function.__name__, kind, function, 0, False, signature))
        return function

    return mark


def _declare(module: str, declared: _Declared) -> None:
    _declared.setdefault(module, []).append(declared)


def once(make: Callable[[], SimpleNamespace]) -> Callable[[], SimpleNamespace]:
    """Make something on the first call, however many threads call, and keep it for the life of the process.

    Not functools.cache: of two threads that call it first, one gets kernels that nobody keeps, and runs code that is freed.
    """
    made: list[SimpleNamespace] = []
    lock = threading.Lock()

    @functools.wraps(make)
    def get() -> SimpleNamespace:
        if not made:
            with lock:
                if not made:
                    made.append(make())
        return made[0]

    return get


def load(modules: list[str]) -> SimpleNamespace:
    """The kernels of these modules as a namespace of builtins (and integer addresses, for callbacks).

    Cost:    50 ms when they were built before; else a few seconds once, during which other processes wait.
    Raises:  OSError if no folder for them can be written and compiling is impossible.
    """
    folder = cache_folder(modules)
    manifest = _read_manifest(folder)
    if manifest is None:
        built = _build_once(modules, folder)
        if isinstance(built, SimpleNamespace):
            return built
        manifest = built
    return _link(folder, manifest)


def cache_folder(modules: list[str]) -> Path:
    """The folder for exactly these sources, compilers and CPU."""
    digest = hashlib.sha256()
    for path in _source_files(modules):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    digest.update(" ".join(modules).encode())
    digest.update(_toolchain().encode())
    return _cache_root() / digest.hexdigest()[:32]


def _toolchain() -> str:
    compilers = f"numba {_version('numba')} llvmlite {_version('llvmlite')} python {sys.version}"
    return f"{compilers} {cpu_flags()} {TRACED} {sorted(SYMBOLS)}"


def _version(package: str) -> str:
    """What tells a package's versions apart: the file that says so. importlib.metadata takes milliseconds to import."""
    spec = importlib.util.find_spec(package)
    file = Path(spec.origin).parent / "_version.py" if spec is not None and spec.origin else None
    if file is not None and file.exists():
        return file.read_text()
    from importlib.metadata import version

    return version(package)


def cpu_flags() -> str:
    """The CPU's feature list as the kernel reports it, '' where it does not."""
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            for line in cpuinfo:
                if line.startswith(("flags", "Features")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def _source_files(modules: list[str]) -> list[Path]:
    """All sources a kernel can depend on: this package and the packages of the kernel modules."""
    folders = {Path(__file__).resolve().parent}
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ImportError(f"no kernel module {module!r}")
        folders.add(Path(spec.origin).resolve().parent)
    files = {path for folder in folders for path in folder.glob("*.py")}
    return sorted(files)


def _cache_root() -> Path:
    """TIERSTORE_KERNEL_CACHE, else the user's cache folder, else a private folder under the system's temp."""
    named = os.environ.get("TIERSTORE_KERNEL_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or (os.path.expanduser("~/.cache") if os.environ.get("HOME") else "")
    candidates = [Path(named)] if named else []
    if home:
        candidates.append(Path(home) / "tierstore" / "kernels")
    candidates.append(Path(tempfile.gettempdir()) / f"tierstore-kernels-{os.getuid()}")
    for root in candidates:
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # Machine code is run from here: another user's folder must never be trusted.
        if os.access(root, os.W_OK) and root.stat().st_uid == os.getuid():
            return root
    raise OSError(
        f"no folder of ours to keep compiled kernels in; tried {[str(c) for c in candidates]}; "
        "set TIERSTORE_KERNEL_CACHE to one you own"
    )


def _read_manifest(folder: Path) -> list[dict[str, Any]] | None:
    try:
        return list(json.loads((folder / "manifest.json").read_text()))
    except (OSError, ValueError):
        return None


def _build_once(modules: list[str], folder: Path) -> list[dict[str, Any]] | SimpleNamespace:
    """Compile under the lock of the cache root; who waited finds the result."""
    with open(folder.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        manifest = _read_manifest(folder)
        if manifest is None:
            log.info("compiling %s; this happens once on a machine and takes some seconds", ", ".join(modules))
            return _compile(modules, folder)
        return manifest


def _compile(modules: list[str], folder: Path) -> list[dict[str, Any]] | SimpleNamespace:
    import llvmlite.binding as llvm

    llvm.initialize_native_asmparser()  # without it the first inline assembly aborts the process
    _add_symbols(llvm)
    for module in modules:
        importlib.import_module(module)
    manifest, objects, resident = [], {}, SimpleNamespace(_alive=[])
    for declared in (d for module in modules for d in _declared.get(module, [])):
        compiled = _compile_one(declared)
        name = declared.name
        setattr(resident, name, _expose(name, declared.kind, compiled.address, resident._alive))
        resident._alive.append(compiled)
        try:
            objects[name] = compiled._library._get_compiled_object()
            manifest.append({"name": name, "kind": declared.kind, "symbol": compiled._wrapper_name})
        except AttributeError:  # a numba without the private names: run from this process's memory
            return _finish_resident(modules, resident)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    for name, code in objects.items():
        (temporary / f"{name}.o").write_bytes(code)
    (temporary / "manifest.json").write_text(json.dumps(manifest))
    try:
        os.rename(temporary, folder)
    except OSError:  # a folder without a manifest: left by a crash in an older layout
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    return manifest


def _finish_resident(modules: list[str], resident: SimpleNamespace) -> SimpleNamespace:
    for declared in (d for module in modules for d in _declared.get(module, [])):
        if not hasattr(resident, declared.name):
            compiled = _compile_one(declared)
            resident._alive.append(compiled)
            setattr(resident, declared.name, _expose(declared.name, declared.kind, compiled.address, resident._alive))
    return resident


def _compile_one(declared: _Declared) -> Any:
    from numba import cfunc

    if declared.kind == "builtin":
        return cfunc(f"{_INT}({_INT},{_INT},{_INT})", error_model="numpy")(_wrapper(declared))
    return cfunc(declared.signature, error_model="numpy")(declared.function)


def _wrapper(declared: _Declared) -> Callable[..., int]:
    """A METH_FASTCALL body that unpacks int64s, calls, and packs the result."""
    from . import cpython

    arguments = [f"as_int(load(args + {8 * i}))" for i in range(declared.arity)]
    names = [f"a{i}" for i in range(declared.arity)]
    lines = ["def wrapper(self, args, count):"]
    lines += [f"    {name} = {value}" for name, value in zip(names, arguments, strict=True)]
    if declared.nogil:
        lines += ["    thread = release_gil()", f"    result = body({', '.join(names)})", "    acquire_gil(thread)"]
    else:
        lines += [f"    result = body({', '.join(names)})"]
    lines += ["    return from_int(result)"]
    scope: dict[str, Any] = {
        "as_int": cpython.as_int,
        "from_int": cpython.from_int,
        "load": cpython.load,
        "body": declared.function,
        "release_gil": cpython.release_gil,
        "acquire_gil": cpython.acquire_gil,
    }
    exec("\n".join(lines), scope)
    wrapper: Callable[..., int] = scope["wrapper"]
    wrapper.__name__ = declared.name
    return wrapper


class _MethodDef(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


def _expose(name: str, kind: str, address: int, alive: list[Any]) -> Any:
    if kind == "callback":
        return address
    definition = _MethodDef(name.encode(), address, METH_FASTCALL, None)
    alive.append(definition)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return make(ctypes.addressof(definition), None, None)


# Symbols of numba's runtime that objects name on error paths, which kernels never take (they do not raise); one that the
# linker cannot find would leave every address of the object zero.
_RUNTIME = {
    "numba_gil_ensure": "PyGILState_Ensure",
    "numba_gil_release": "PyGILState_Release",
    "numba_unpickle": "Py_FatalError",
    "numba_do_raise": "Py_FatalError",
    "numba_runtime_build_excinfo_struct": "Py_FatalError",
    "NRT_Free": "Py_FatalError",
    "NRT_Allocate": "Py_FatalError",
    "NRT_incref": "Py_FatalError",
    "NRT_decref": "Py_FatalError",
}


def _add_symbols(llvm: Any) -> None:
    for symbol, address in SYMBOLS.items():
        llvm.add_symbol(symbol, address)


def _link(folder: Path, manifest: list[dict[str, Any]]) -> SimpleNamespace:
    """Load ready objects through llvmlite's linker; numba is not imported."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for symbol, target in _RUNTIME.items():
        llvm.add_symbol(symbol, ctypes.cast(getattr(ctypes.pythonapi, target), ctypes.c_void_p).value)
    _add_symbols(llvm)
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    for entry in manifest:
        engine.add_object_file(llvm.ObjectFileRef.from_data((folder / f"{entry['name']}.o").read_bytes()))
    engine.finalize_object()
    namespace = SimpleNamespace(_alive=[engine, machine])
    for entry in manifest:
        address = engine.get_function_address(entry["symbol"])
        setattr(namespace, entry["name"], _expose(entry["name"], entry["kind"], address, namespace._alive))
    return namespace


def kernels(modules: list[str]) -> Iterator[str]:
    """The names in a set of kernel modules, without compiling; for tests."""
    for module in modules:
        importlib.import_module(module)
        yield from (declared.name for declared in _declared.get(module, []))
