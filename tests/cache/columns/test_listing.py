"""Which files a dataset has: paths, patterns, directories, lists and URLs."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tierstore
from tierstore.cache.columns.files import Listing, Version, _remote_version
from tierstore.cache.store import Store

fsspec = pytest.importorskip("fsspec")
pytestmark = pytest.mark.usefixtures("trusting")


def write(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"a": [value]}), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files whose names begin with x are not to be found."""
    root = tmp_path / "data"
    for value, name in enumerate(["a.parquet", "b.parquet", "sub/c.parquet", "z/y/d.parquet"]):
        write(root / name, value)
    for name in (".x.parquet", "_x.parquet", "_meta/x.parquet", "sub/.hidden/x.parquet"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"not a Parquet file")
    return root


def values(store: Store, *paths: object) -> list[int]:
    return store.dataset(paths[0] if len(paths) == 1 else list(paths)).to_table()["a"].to_pylist()


def test_what_is_named_is_found(store: Store, folder: Path) -> None:
    assert values(store, folder) == values(store, f"{folder}/") == [0, 1, 2, 3]
    assert values(store, folder / "b.parquet") == [1]
    assert values(store, folder / "b.parquet", folder / "a.parquet") == [1, 0]
    assert values(store, folder / "sub", folder / "a.parquet") == [2, 0]
    assert values(store, f"{folder}/*.parquet") == [0, 1]
    assert values(store, f"{folder}/**/[a-c].parquet") == [0, 1, 2]
    assert values(store, f"{folder}/?.parquet") == [0, 1]
    assert values(store, f"{folder}/*/*.parquet", folder / "a.parquet") == [2, 0]
    assert values(store, write(folder / "_y" / "_y.parquet", 6)) == values(store, f"{folder}/_y/_*.parquet") == [6]
    assert values(store, folder) == values(store, f"{folder}/**/*.parquet") == [0, 1, 2, 3]


def test_names_that_look_like_patterns(store: Store, folder: Path) -> None:
    write(folder / "a[b].parquet", 7)
    write(folder / "odd*?" / "f.parquet", 8)
    assert values(store, folder / "a[b].parquet") == [7]
    assert values(store, folder / "odd*?") == [8]


def test_names_that_are_not_text(store: Store, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.parquet")
    pq.write_table(pa.table({"a": [5]}), tmp_path / "f.parquet")
    os.rename(tmp_path / "f.parquet", path)
    assert Listing(path).sources()[0].path == os.path.realpath(path)
    assert Listing(str(tmp_path)).sources()[0].version().size > 0


def test_relative_paths(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "p=1" / "a.parquet", 9)
    monkeypatch.chdir(folder)
    assert values(store, "a.parquet") == [0]
    assert values(store, "*.parquet") == [0, 1]
    assert store.dataset("p*/*.parquet").to_table().to_pylist() == [{"a": 9, "p": 1}]
    dataset = store.dataset("a.parquet")
    monkeypatch.chdir("/")
    assert dataset.files == [str(folder / "a.parquet")]


def test_what_is_not_there_is_named(store: Store, folder: Path) -> None:
    for path in (folder / "none", f"{folder}/*.csv", folder / "a.parquet" / "b"):
        with pytest.raises(FileNotFoundError, match=str(path).replace("*", r"\*")):
            store.dataset(path)
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no Parquet file is found under"):
        store.dataset(folder / "empty")
    with pytest.raises(tierstore.ConfigError, match="name at least one"):
        store.dataset([])


def test_new_files_are_seen(store: Store, folder: Path) -> None:
    dataset = store.dataset(folder)
    assert dataset.to_table().num_rows == 4
    write(folder / "b2.parquet", 10)
    assert dataset.to_table()["a"].to_pylist() == [0, 1, 10, 2, 3]
    (folder / "a.parquet").unlink()
    assert dataset.to_table()["a"].to_pylist() == [1, 10, 2, 3]


# --- URLs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[object]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def put(memory: object, path: str, value: int) -> None:
    with memory.open(path, "wb") as file:
        pq.write_table(pa.table({"a": [value] * 100}), file)


def test_urls(store: Store, memory: object) -> None:
    for value, name in enumerate(["/in=1/b/p=1/f.parquet", "/in=1/b/p=2/f.parquet", "/in=1/b/_x/f.parquet"]):
        put(memory, name, value)
    for url in ("memory://in=1/b", "memory://in=1/b/", "memory://in=1/b/p=*/*.parquet"):
        dataset = store.dataset(url)
        assert dataset.schema.names == ["a", "p"], url  # only what is below the folder that is named
        for _ in range(2):
            table = dataset.to_table()
            assert table["a"].to_pylist() == [0] * 100 + [1] * 100 and table["p"].to_pylist() == [1] * 100 + [2] * 100
    assert store.dataset("memory://in=1/b/p=2/f.parquet").schema.names == ["a"]
    assert dataset.stats()["hits"] >= 2
    with pytest.raises(FileNotFoundError, match="memory://none"):
        store.dataset("memory://none")


def test_a_url_that_is_rewritten(store: Store, memory: object) -> None:
    put(memory, "/f.parquet", 1)
    dataset = store.dataset("memory://f.parquet")
    for value in range(1, 5):
        put(memory, "/f.parquet", value)
        for _ in range(2):
            assert dataset.to_table()["a"].to_pylist() == [value] * 100
    assert dataset.stats()["hits"] == 4


def test_listings_that_a_file_system_keeps(store: Store, memory: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of object stores do, and answer from them until they are told not to."""
    kind, kept = type(memory), {}
    info = kind.info

    def invalidate(self: object, path: str | None = None) -> None:
        kept.pop(path, None) if path else kept.clear()

    def remembered(self: object, path: str, **more: object) -> dict:
        return kept.setdefault(path, info(self, path, **more))

    monkeypatch.setattr(kind, "info", remembered)
    monkeypatch.setattr(kind, "invalidate_cache", invalidate)
    put(memory, "/b/f.parquet", 1)
    dataset = store.dataset("memory://b")
    for value in range(1, 4):
        put(memory, "/b/f.parquet", value)
        assert dataset.to_table()["a"].to_pylist() == [value] * 100
    (source,) = Listing("memory://b").sources()
    before = source.version().token
    put(memory, "/b/f.parquet", 5)
    assert source.version().token != before
    put(memory, "/b/g.parquet", 9)
    assert dataset.to_table().num_rows == 200


def test_a_file_url_is_a_path(store: Store, folder: Path) -> None:
    (here,) = Listing(f"file://{folder}/a.parquet").sources()
    assert here == Listing(folder / "a.parquet").sources()[0] and here.remote is None
    assert values(store, f"file://{folder}") == [0, 1, 2, 3]


def test_an_unknown_protocol(store: Store) -> None:
    with pytest.raises(ValueError, match="nosuch"):
        store.dataset("nosuch://a/b.parquet")


NOON = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("info", "token", "changed_s"),
    [
        ({"size": 5, "ETag": '"abc"', "LastModified": NOON}, "eETag-abc-5", 0.0),
        ({"size": 5, "version_id": "v1", "ETag": "x"}, "eversion_id-v1-5", 0.0),
        ({"size": 5, "generation": 12, "updated": "2024"}, "egeneration-12-5", 0.0),
        ({"size": 5, "ETag": 'W/"abc"', "LastModified": NOON}, f"t5-{NOON}", NOON.timestamp()),
        ({"size": 5, "mtime": 12.5}, "t5-12.5", 12.5),
        ({"size": 5, "updated": "yesterday"}, "t5-yesterday", float("inf")),
        ({"size": None}, "u0", float("inf")),
    ],
    ids=str,
)
def test_versions_of_what_file_systems_tell(info: dict, token: str, changed_s: float) -> None:
    version = _remote_version(info)
    assert (version.token, version.changed_s) == (token, changed_s)
    assert version.is_young() == (changed_s == float("inf")) and not version.is_ripe()


def test_a_version_is_as_young_as_it_was_when_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it is kept: another look may find the same token and other bytes."""
    monkeypatch.setattr("tierstore.cache.columns.files.DISTRUST_S", 10.0)
    seen = Version("t", 1, changed_s=1000.0, seen_s=1009.0)
    assert seen.is_young() and seen.is_ripe()
    assert not Version("t", 1, changed_s=1000.0, seen_s=1010.5).is_young()
    assert Version("t", 1, changed_s=1000.0, seen_s=900.0).is_young()  # from a clock ahead of ours
