"""Which files a dataset is made of, and which version of each is there now.

A version names the bytes of a file: a snapshot the user vouches for, else the object store's ETag (or version id), else
size, modification and change time in nanoseconds, and inode. Times tell versions apart only as finely as the file
system's clock ticks, so a file is not trusted if its times were less than DISTRUST_S old when they were looked at
(DuckDB's rule); it is read through then.
"""

from __future__ import annotations

import glob
import os
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.fs as pafs

from tierstore.ringbuf.errors import ConfigError

DISTRUST_S = 10.0
# No local clock of this system ticks more slowly: what is written this long after another change has another time.
TICK_S = 0.02
_MAGIC = frozenset("*?[")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"

PathLike = str | os.PathLike[str]


def _now() -> float:
    return time.time()


@dataclass(frozen=True)
class Version:
    """One version of a file.

    changed_s: Unix time of the last change, 0 where the token alone is proof.  seen_s: when it was looked at.
    vouched: the user answers for it, so it is compared with nothing.
    """

    token: str
    size: int
    changed_s: float = 0.0
    seen_s: float = field(default_factory=_now, compare=False)
    vouched: bool = False

    def is_young(self) -> bool:
        """Whether the file could change after it was looked at without its token showing it. Stays so for this object:
        a later look has to find the same token."""
        return self.changed_s > self.seen_s - DISTRUST_S

    def is_ripe(self) -> bool:
        """Whether it is young, and another look now would find it old."""
        return self.is_young() and self.changed_s <= time.time() - DISTRUST_S


@dataclass(frozen=True)
class Source:
    """One file. path: canonical, the name in keys; inner: the name within its file system; parts: its hive values."""

    path: str
    inner: str
    filesystem: Any = field(compare=False)  # pyarrow's, or None for a local file
    remote: Any = field(compare=False, default=None)  # fsspec's, where there is one
    parts: tuple[tuple[str, str], ...] = ()

    def version(self) -> Version:
        """What is there now. Raises FileNotFoundError and the file system's other errors. Cost: one stat."""
        if self.remote is not None:
            self.remote.invalidate_cache(self.inner)  # else a listing of long ago may answer
            return _remote_version(self.remote.info(self.inner))
        status = os.stat(self.inner)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(f"{self.inner} was a file and is a directory now")
        changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
        token = f"s{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"
        return Version(token, status.st_size, changed_ns / 1e9)

    def has_changed(self, version: Version) -> bool:
        """Whether the file is another one now. Raises the file system's errors if it is gone."""
        return not version.vouched and self.version().token != version.token

    def settled_version(self) -> Version:
        """As version(), of a file whose next change will have another time. Cost: a wait of TICK_S after a change."""
        version = self.version()
        if self.remote is None and 0 <= (age := version.seen_s - version.changed_s) < TICK_S:
            time.sleep(TICK_S - age)
            version = self.version()
        return version

    def open(self) -> Any:
        """What pyarrow's Parquet reader takes: a path, or an open file."""
        return self.inner if self.filesystem is None else self.filesystem.open_input_file(self.inner)

    def open_bytes(self) -> Any:
        """An open file to seek and read in."""
        return open(self.inner, "rb") if self.filesystem is None else self.filesystem.open_input_file(self.inner)

    def arrow_filesystem(self) -> Any:
        """The file system in pyarrow's terms."""
        return self.filesystem or pafs.LocalFileSystem()


def _remote_version(info: dict[str, Any]) -> Version:
    """A version from what fsspec tells of a file: names differ between its file systems."""
    size = int(info.get("size") or 0)
    for name in ("version_id", "versionId", "VersionId", "generation", "ETag", "etag", "e_tag", "content_md5", "md5"):
        tag = info.get(name)
        if tag and not str(tag).startswith("W/"):  # a weak one names what is alike, not the same bytes
            return Version(f"e{name}-{str(tag).strip(chr(34))}-{size}", size)
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        moment = info.get(name)
        if moment is not None:
            seconds = moment.timestamp() if hasattr(moment, "timestamp") else _seconds(moment)
            return Version(f"t{size}-{moment}", size, seconds)
    return Version(f"u{size}", size, float("inf"))  # nothing tells versions apart: never trusted


def _seconds(moment: Any) -> float:
    try:
        return float(moment)
    except (TypeError, ValueError):
        return float("inf")


class Listing:
    """The files behind what the user named, looked up again on each call."""

    def __init__(self, paths: PathLike | Sequence[PathLike]):
        several = [paths] if isinstance(paths, (str, os.PathLike)) else paths
        # Absolute, as the working directory may change.
        texts = [os.fspath(path) for path in several]
        self.paths = [text if "://" in text else os.path.join(os.getcwd(), text) for text in texts]
        self._known: dict[str, tuple[int, int, Source]] = {}  # local files by path
        if not self.paths:
            raise ConfigError("paths", [], "name at least one file, directory, pattern or URL")

    @property
    def name(self) -> str:
        """How this listing is called in tables and messages."""
        first = os.path.abspath(self.paths[0]) if "://" not in self.paths[0] else self.paths[0]
        return first if len(self.paths) == 1 else f"{first} and {len(self.paths) - 1} more"

    @property
    def patterns(self) -> list[str]:
        """The paths, those of this machine absolute."""
        return [path if "://" in path else os.path.abspath(path) for path in self.paths]

    def sources(self) -> list[Source]:
        """All files, in order of their names within each path. Raises FileNotFoundError, naming the path."""
        found: list[Source] = []
        for path in self.paths:
            some = _remote_sources(path) if "://" in path else self._local_sources(path)
            if not some:
                raise FileNotFoundError(
                    f"no Parquet file is found under {path!r}; name a file, a directory or a pattern"
                )
            found += some
        return found

    def _local_sources(self, path: str) -> list[Source]:
        if os.path.isdir(path):
            return [self._local(name, path) for name in _walk(path)]
        if os.path.exists(path) or not _MAGIC & set(path):
            return [self._local(path, path)]
        root = _root(path)
        files = filter(os.path.isfile, glob.glob(path, recursive=True))
        return [self._local(name, root) for name in _seen(files, path, root)]

    def _local(self, path: str, root: str) -> Source:
        """One file. Resolving links takes longer than all else, so it is done again only if the path leads elsewhere."""
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"there is no file {path!r}") from None
        known = self._known.get(path)
        if known is None or known[:2] != (status.st_dev, status.st_ino):
            canonical = os.path.realpath(path)
            parts = _hive_parts(os.path.relpath(os.path.abspath(path), root or "."))
            known = (status.st_dev, status.st_ino, Source(canonical, canonical, None, parts=parts))
            self._known[path] = known
        return known[2]


def _walk(root: str) -> list[str]:
    """All files below a directory but hidden ones (whose names, or whose directories' names, begin with . or _)."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        found += [os.path.join(folder, name) for name in sorted(names) if name[0] not in "._"]
    return found


def _remote_sources(url: str) -> list[Source]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ConfigError("paths", url, "URLs need fsspec: pip install 'tierstore[remote]'") from None
    filesystem, inner = url_to_fs(url)
    if "file" in _protocols(filesystem):
        return Listing(inner).sources()
    arrow = pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))
    filesystem.invalidate_cache()
    magic = _MAGIC - {"?"} if "http" in _protocols(filesystem) else _MAGIC  # there it begins a query
    if magic & set(inner):
        root = _root(inner, magic)
        names = _seen(filter(filesystem.isfile, filesystem.glob(inner)), inner, root)
    elif filesystem.isdir(inner):
        root = inner.rstrip("/")
        names = sorted(name for name in filesystem.find(inner) if not _is_hidden(name[len(root) :]))
    else:
        root, names = inner, [inner] if filesystem.exists(inner) else []
    return [
        Source(filesystem.unstrip_protocol(name), name, arrow, filesystem, _hive_parts(name[len(root) :]))
        for name in names
    ]


def _seen(names: Iterable[str], pattern: str, root: str) -> list[str]:
    """What a pattern finds but hidden files, unless it names such itself."""
    hidden = _is_hidden(pattern[len(root) :])
    return sorted(name for name in names if hidden or not _is_hidden(name[len(root) :]))


def _protocols(filesystem: Any) -> tuple[str, ...]:
    return (filesystem.protocol,) if isinstance(filesystem.protocol, str) else tuple(filesystem.protocol)


def _root(pattern: str, magic: frozenset[str] = _MAGIC) -> str:
    """The folder below which a pattern looks."""
    return pattern[: min(pattern.index(mark) for mark in magic if mark in pattern)].rpartition("/")[0]


def _is_hidden(path: str) -> bool:
    return any(part[0] in "._" for part in path.split("/") if part)


def _hive_parts(path: str) -> tuple[tuple[str, str], ...]:
    """The key=value folders of a path."""
    pairs = (part.partition("=") for part in path.split("/")[:-1])
    return tuple((key, unquote(value)) for key, mark, value in pairs if mark and key)


def partition_fields(sources: Sequence[Source]) -> dict[str, pa.Field]:
    """Names and types of the hive columns: int32 where all values fit it, int64 where they fit that, else text."""
    names = dict.fromkeys(key for source in sources for key, _ in source.parts)
    return {name: pa.field(name, _partition_type(name, sources)) for name in names}


def _partition_type(name: str, sources: Sequence[Source]) -> pa.DataType:
    values = {value for source in sources for key, value in source.parts if key == name and value != HIVE_NULL}
    try:
        numbers = [int(value) for value in values]
    except ValueError:
        return pa.string()
    if not numbers or any(str(number) != value for number, value in zip(numbers, values, strict=True)):
        return pa.string()  # 007 is a name
    for kind, limit in ((pa.int32(), 1 << 31), (pa.int64(), 1 << 63)):
        if all(-limit <= number < limit for number in numbers):
            return kind
    return pa.string()


def partition_values(source: Source, fields: dict[str, pa.Field]) -> dict[str, Any]:
    """A file's hive values in the types of the fields; None where it has none."""
    own = dict(source.parts)
    values: dict[str, Any] = {}
    for name, entry in fields.items():
        text = own.get(name)
        if text is None or text == HIVE_NULL:
            values[name] = None
        else:
            values[name] = text if pa.types.is_string(entry.type) else int(text)
    return values


def partition_expression(values: dict[str, Any]) -> Any:
    """What is known of every row of a file, for pruning."""
    known = None
    for name, value in values.items():
        term = pds.field(name).is_null() if value is None else pds.field(name) == value
        known = term if known is None else known & term
    return known
