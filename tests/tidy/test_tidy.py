"""Conventions no linter knows, checked on the syntax trees. Every message ends with its remedy.

Each rule is a function of one source file that returns complaints; the last tests show each rule a file that breaks it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ringbuf", "cache", "shuffle", "service", "engines", "emulation")
FOLDERS = (*PACKAGES, "bench")
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60

# The ratchet: what is longer today, with the length it may not pass. Add nothing without a reason beside it; an entry
# that is no longer needed fails too. Keys: "cache/store.py" for a file, "cache/store.py::Store.put" for a function.
ALLOWED: dict[str, int] = {
    "ringbuf/operations.py": 460,  # a fifth of the file is its imports, a name a line
    "ringbuf/mutator.py": 455,
    "ringbuf/mutator.py::Mutator._build_core": 61,
    "cache/store.py": 465,
}

COMPILERS = {"njit", "jit", "cfunc"}
COMPILERS_HOME = "ringbuf/jit.py"
OPEN_WORK = re.compile(r"\b(" + "TO" + r"DO|FIX" + r"ME)\b")


class Source(NamedTuple):
    """One Python file of ours: path from the root with slashes, text, syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def folder(self) -> str:
        return self.path.partition("/")[0]

    @property
    def depth(self) -> int:
        """How many `..` would leave the package, less one: 0 in cache/, 1 in cache/policies/."""
        return self.path.count("/") - 1


def parse(path: str, text: str) -> Source:
    return Source(path, text, ast.parse(text, path))


def sources() -> list[Source]:
    """Every Python file of FOLDERS that is there; the public face beside them."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    paths += [face for face in [ROOT / "src/tierstore/__init__.py"] if face.exists()]
    return [parse(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


SOURCES = sources()


def refuse(complaints: list[str]) -> None:
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported absolutely, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def numba_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and last name of what is taken from numba, by import or as an attribute of it."""
    yield from ((line, name.rpartition(".")[2]) for line, name in imported(tree) if name.startswith("numba."))
    aliases = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name.partition(".")[0] == "numba"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            base: ast.expr = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name) and base.id in aliases:
                yield node.lineno, node.attr


def compilers_in_one_place(source: Source) -> Iterator[str]:
    for line, name in numba_names(source.tree):
        if name in COMPILERS and source.path != COMPILERS_HOME:
            yield f"{source.path}:{line}: numba's {name} outside {COMPILERS_HOME}: use the decorators of ringbuf.jit"
        if name == "intrinsic" and source.folder != "ringbuf":
            yield f"{source.path}:{line}: a numba intrinsic outside ringbuf/: move it to ringbuf/"


def own_package_is_relative(source: Source) -> Iterator[str]:
    if source.folder not in PACKAGES:
        return
    own = f"tierstore.{source.folder}"
    for line, name in imported(source.tree):
        if name == own or name.startswith(own + "."):
            yield f"{source.path}:{line}: absolute import of the own package ({name}): write it relative, `from .`"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.level > source.depth + 1:
            yield f"{source.path}:{node.lineno}: a relative import that leaves the package: write `from tierstore.…`"


def sizes_are_bounded(source: Source) -> Iterator[str]:
    for key, lines, limit in oversized(source):
        if lines > ALLOWED.get(key, limit):
            yield f"{key}: {lines} lines, at most {ALLOWED.get(key, limit)}: split it"


def oversized(source: Source) -> Iterator[tuple[str, int, int]]:
    """Key, lines and limit of the file and of each function above its limit."""
    if source.folder not in FOLDERS:
        return
    lines = len(source.text.splitlines())
    if lines > FILE_LINES_MAX:
        yield source.path, lines, FILE_LINES_MAX
    for name, node in functions(source.tree):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES_MAX:
            yield f"{source.path}::{name}", lines, FUNCTION_LINES_MAX


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield name, child
            name += "."
        yield from functions(child, name)


def public_modules_are_described(source: Source) -> Iterator[str]:
    name = source.path.rpartition("/")[2]
    if (not name.startswith("_") or name.startswith("__")) and not ast.get_docstring(source.tree):
        yield f"{source.path}: no docstring: open the module with what it is and who may use it"


def release_names_its_acquire(source: Source) -> Iterator[str]:
    lines = source.text.splitlines()
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        span = lines[node.lineno - 1 : node.end_lineno]
        if name == "store_release" and not any("# SYNC" in line for line in span):
            yield (
                f"{source.path}:{node.lineno}: store_release without a label: "
                "end the line with `# SYNC name: pairs with load_acquire in ...`"
            )


def face_is_production(source: Source) -> Iterator[str]:
    if source.path != "src/tierstore/__init__.py":
        return
    found = [*imported(source.tree)]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found += [(node.lineno, f"tierstore.{node.module or alias.name}") for alias in node.names]
    for line, name in found:
        if f"{name}.".startswith(("tierstore.emulation.", "bench.")):
            yield f"{source.path}:{line}: the public face imports {name}: load it by name where it is asked for"


RULES: tuple[Callable[[Source], Iterator[str]], ...] = (
    compilers_in_one_place,
    own_package_is_relative,
    sizes_are_bounded,
    public_modules_are_described,
    release_names_its_acquire,
    face_is_production,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_sources(rule: Callable[[Source], Iterator[str]]) -> None:
    complaints = [complaint for source in SOURCES for complaint in rule(source)]
    refuse(complaints)


def test_ratchet_only_tightens() -> None:
    needed = {key for source in SOURCES for key, _, _ in oversized(source)}
    loose = [f"{key}: within the limit now, or gone: remove it from ALLOWED" for key in ALLOWED if key not in needed]
    refuse(loose)


def test_every_folder_with_code_is_a_package() -> None:
    folders = {(ROOT / source.path).parent for source in SOURCES if source.folder in PACKAGES}
    bare = [
        f"{folder.relative_to(ROOT)}: Python files but no __init__.py: add one, with a docstring"
        for folder in sorted(folders)
        if not (folder / "__init__.py").exists()
    ]
    bare += [
        f"{name}: no py.typed: add an empty one"
        for name in PACKAGES
        if (ROOT / name).is_dir() and not (ROOT / name / "py.typed").exists()
    ]
    refuse(bare)


def test_markdown_starts_with_a_title() -> None:
    untitled = [
        f"{path.relative_to(ROOT)}: does not start with `# `: make its first line a title"
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if not path.read_text(encoding="utf-8").startswith("# ")
    ]
    refuse(untitled)


def open_work(path: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if OPEN_WORK.search(line):
            yield f"{path}:{number}: open work in the tree: do it, or write it down as an issue and remove the line"


def test_no_open_work() -> None:
    kinds = {".py", ".md", ".toml", ".java", ".sh"}
    folders = (*FOLDERS, "src", "tests", "docs", "examples")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.suffix in kinds]
    paths += [ROOT / "Makefile", ROOT / ".ci/run", *sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("*.toml"))]
    complaints = [
        complaint
        for path in paths
        if path.is_file()
        for complaint in open_work(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    refuse(complaints)


BROKEN = [
    (compilers_in_one_place, "cache/x.py", "from numba import njit"),
    (compilers_in_one_place, "ringbuf/x.py", "import numba as nb\n@nb.cfunc('i8(i8)')\ndef f(x): return x"),
    (compilers_in_one_place, "bench/x.py", "from numba.core.decorators import jit"),
    (compilers_in_one_place, "cache/x.py", "import numba.extending\nf = numba.extending.intrinsic"),
    (own_package_is_relative, "cache/x.py", "from tierstore.cache.store import Store"),
    (own_package_is_relative, "cache/x.py", "def f():\n    from tierstore import cache"),
    (own_package_is_relative, "cache/x.py", "from ..ringbuf import atomic"),
    (own_package_is_relative, "cache/sub/x.py", "from ...ringbuf import atomic"),
    (sizes_are_bounded, "cache/x.py", "\n" * 401),
    (sizes_are_bounded, "cache/x.py", "class A:\n  def f(self):\n" + "    pass\n" * 60),
    (public_modules_are_described, "cache/x.py", "x = 1"),
    (public_modules_are_described, "cache/__init__.py", ""),
    (release_names_its_acquire, "ringbuf/x.py", "store_release(words, TAIL, 1)"),
    (release_names_its_acquire, "ringbuf/x.py", "atomic.store_release(words, TAIL, 1)  # later"),
    (face_is_production, "src/tierstore/__init__.py", "from tierstore.emulation import device"),
    (face_is_production, "src/tierstore/__init__.py", "from .emulation import device"),
    (face_is_production, "src/tierstore/__init__.py", "from . import emulation"),
]

SOUND = [
    (compilers_in_one_place, "ringbuf/jit.py", "from numba import njit, cfunc"),
    (compilers_in_one_place, "ringbuf/atomic.py", "from numba.extending import intrinsic"),
    (compilers_in_one_place, "cache/x.py", "import numba\nversion = numba.__version__"),
    (own_package_is_relative, "cache/x.py", "from . import store\nfrom tierstore.ringbuf import atomic"),
    (own_package_is_relative, "cache/sub/x.py", "from ..store import Store"),
    (own_package_is_relative, "cache/x.py", "import tierstore.cachet"),
    (sizes_are_bounded, "cache/x.py", "def f():\n" + "    pass\n" * 59),
    (public_modules_are_described, "cache/_x.py", "x = 1"),
    (release_names_its_acquire, "ringbuf/x.py", "store_release(w, T, 1)  # SYNC ring.tail: pairs with pop()"),
    (release_names_its_acquire, "ringbuf/x.py", "def store_release(words, index, value): ..."),
]


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN)
def test_rule_refuses(rule: Callable[[Source], Iterator[str]], path: str, text: str) -> None:
    assert list(rule(parse(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), SOUND)
def test_rule_accepts(rule: Callable[[Source], Iterator[str]], path: str, text: str) -> None:
    assert not list(rule(parse(path, text)))


def test_open_work_is_found() -> None:
    assert list(open_work("x.py", "# TO" + "DO later")) and not list(open_work("x.py", "mastodons"))
