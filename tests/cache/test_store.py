"""The store's promises to its users, one by one, on an embedded store in memory."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

import tierstore
from tierstore.cache.keys import check_key
from tierstore.cache.store import Store

MIB = 1 << 20
TABLE = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]}, metadata={"k": "v"})


def wait_for(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def live_bytes(store: Store) -> int:
    return sum(tier["live_bytes"] for tier in store.stats()["tiers"].values())


def test_put_and_get(store: Store) -> None:
    assert store.put("k", TABLE) == "volatile"
    assert store.get("k").equals(TABLE, check_metadata=True)
    assert store.get("k", columns=["b"]).equals(TABLE.select(["b"]))
    assert store.get("k", columns=["b", "a"]).column_names == ["b", "a"]
    assert store.get("k", columns=[]).num_columns == 0
    with pytest.raises(KeyError, match="nope"):
        store.get("k", columns=["nope"])


def test_a_missing_key_is_a_key_error(store: Store) -> None:
    for call in (store.get, store.get_bytes, store.delete, store.info, store.pin, store.unpin):
        with pytest.raises(KeyError, match="absent"):
            call("absent")
        with pytest.raises(tierstore.NotFound):
            call("absent")
    assert "absent" not in store and store.get_many(["absent"]) == [None]


def test_bytes(store: Store) -> None:
    for number, value in enumerate(
        (b"abc", bytearray(b"abc"), memoryview(b"abc"), np.array([1, 2], "u2"), pa.py_buffer(b"abc"))
    ):
        assert store.put_bytes(f"k{number}", value) == "volatile"
        found = store.get_bytes(f"k{number}")
        assert isinstance(found, memoryview) and found.readonly and bytes(found) == bytes(memoryview(value).cast("B"))
    with pytest.raises(TypeError):
        store.get_bytes("k0")[0] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        store.put_bytes("k", "text")  # type: ignore[arg-type]
    assert "k" not in store


def test_many(store: Store) -> None:
    items = {f"key/{i}": bytes([i % 256]) * (i * 7 % 5000) for i in range(2000)}
    store.put_many(items)
    store.put_many((key, value) for key, value in [("key/0", b"again"), ("key/0", b"and again")])
    items["key/0"] = b"and again"
    keys = [*items, "absent"]
    found = store.get_many(keys)
    assert found.pop() is None
    assert {key: bytes(view) for key, view in zip(items, found) if view is not None} == items
    store.put_many([])
    assert store.get_many([]) == []


def test_many_with_one_bad_item_keeps_the_others_before_it(store: Store) -> None:
    with pytest.raises(tierstore.InvalidKey):
        store.put_many([("a", b"1"), ("", b"2"), ("b", b"3")])
    assert store.keys() == ["a"]
    with pytest.raises(TypeError):
        store.put_many([("c", b"1"), ("d", 5), ("e", b"3")])
    assert store.keys() == ["a", "c"]


def test_bytes_and_tables_are_told_apart(store: Store) -> None:
    store.put("table", TABLE)
    store.put_bytes("bytes", b"abc")
    with pytest.raises(tierstore.TierstoreError, match="get_bytes"):
        store.get("bytes")
    for call in (lambda: store.get_bytes("table"), lambda: store.get_many(["bytes", "table"])):
        with pytest.raises(tierstore.TierstoreError, match=r"get\(\)"):
            call()
    with pytest.raises(TypeError, match="put_bytes"):
        store.put("k", b"bytes")  # type: ignore[arg-type]


def test_overwriting_frees_the_old_blocks(store: Store) -> None:
    store.put_bytes("k", b"x" * 100_000)
    once = live_bytes(store)
    for number in range(200):  # 20 MB in all, more than fits with the other
        store.put_bytes("k", bytes([number]) * 100_000, keep=True)
    assert live_bytes(store) == once and bytes(store.get_bytes("k")) == bytes([199]) * 100_000
    store.put("k", pa.table({"x": np.arange(400_000)}))  # several blocks
    store.put("k", TABLE)
    assert store.get("k").equals(TABLE) and store.keys() == ["k"] and store.verify()["blocks"] == 1
    store.delete("k")
    assert live_bytes(store) == 0 and store.keys() == []


def test_writer(store: Store) -> None:
    with store.writer("k", TABLE.schema, keep=True) as writer:
        writer.write(TABLE)
        assert "k" not in store
        writer.write(TABLE.to_batches()[0])
        writer.write(TABLE.slice(0, 0))
    assert store.get("k").equals(pa.concat_tables([TABLE, TABLE])) and store.info("k")["class"] == "KEEP"
    with store.writer("empty", TABLE.schema):
        pass
    assert store.get("empty").equals(TABLE.slice(0, 0), check_metadata=True)


def test_a_writer_that_raises_leaves_what_was_there(store: Store) -> None:
    store.put("k", TABLE)
    big = pa.table({"a": np.arange(300_000), "b": pa.nulls(300_000, pa.string())})
    with pytest.raises(ZeroDivisionError):
        with store.writer("k", TABLE.schema) as writer:
            writer.write(big.cast(TABLE.schema))
            raise ZeroDivisionError
    with pytest.raises(ValueError, match="schema"):
        with store.writer("new", TABLE.schema) as writer:
            writer.write(pa.table({"other": [1]}))
    assert store.get("k").equals(TABLE) and store.keys() == ["k"]


def test_two_writers_at_once(store: Store) -> None:
    with store.writer("a", TABLE.schema) as one, store.writer("b", TABLE.schema) as two:
        for _ in range(3):
            one.write(TABLE)
            two.write(TABLE)
        store.put_bytes("c", b"between")
    assert store.get("a").equals(store.get("b")) and store.get("a").num_rows == 9


def test_keys(store: Store) -> None:
    names = ["b/2", "a", "b/1", "ö/𝄞", "b"]
    for name in names:
        store.put_bytes(name, name.encode())
    store.put("big", pa.table({"x": np.arange(500_000)}))
    assert store.keys() == sorted([*names, "big"]) and store.keys("b/") == ["b/1", "b/2"]
    assert store.keys("none") == [] and store.keys("ö") == ["ö/𝄞"]


def test_info(store: Store) -> None:
    store.put("big", pa.table({"x": np.arange(500_000)}), keep=True, ttl=100)
    found = store.info("big")
    assert found["class"] == "KEEP" and found["kind"] == "table" and found["rows"] == 500_000
    assert found["tiers"] == ["dram"] and found["durability"] == "volatile" and found["blocks"] > 3
    assert found["bytes"] >= 4_000_000 and found["pool"] == "default" and not found["pinned"]
    assert 90 < found["expires_unix_s"] - time.time() <= 100


def test_time_to_live(store: Store) -> None:
    store.put_bytes("soon", b"x", ttl=0.05)
    store.put("later", TABLE, ttl=1000)
    store.put_bytes("kept", b"x", ttl=0.05, keep=True)
    assert "soon" in store
    wait_for(lambda: "soon" not in store and "kept" not in store)
    assert store.keys() == ["later"] and store.get_many(["soon"]) == [None]
    with pytest.raises(KeyError):
        store.get_bytes("kept")
    store.put_bytes("soon", b"again")
    assert bytes(store.get_bytes("soon")) == b"again"


@pytest.mark.parametrize("ttl", [0, -1, float("nan")])
def test_a_bad_time_to_live_is_refused(ttl: float, store: Store) -> None:
    for put in (lambda: store.put("k", TABLE, ttl=ttl), lambda: store.put_bytes("k", b"", ttl=ttl)):
        with pytest.raises(ValueError, match="ttl"):
            put()
    assert "k" not in store


def test_an_endless_time_to_live(store: Store) -> None:
    for ttl in (1e9, 1e300, float("inf")):
        store.put_bytes("k", b"x", ttl=ttl)
        assert bytes(store.get_bytes("k")) == b"x"


@pytest.mark.parametrize("key", ["", "k" * 4097, "k" * 100_000, "\ud800", 5, b"k", None])
def test_a_bad_key_is_refused(key, store: Store) -> None:
    for call in (
        lambda: store.put(key, TABLE),
        lambda: store.put_bytes(key, b"x"),
        lambda: store.put_many([(key, b"x")]),
        lambda: store.writer(key, TABLE.schema).__enter__(),
        lambda: store.pin(key),
        lambda: store.get_many([key]) if not isinstance(key, str) or key == "\ud800" else check_key(key),
        lambda: key in store if not isinstance(key, str) or key == "\ud800" else check_key(key),
    ):
        with pytest.raises(tierstore.InvalidKey):
            call()
    for call in (
        lambda: store.get(key),
        lambda: store.get_bytes(key),
        lambda: store.delete(key),
        lambda: store.info(key),
    ):
        with pytest.raises((tierstore.InvalidKey, tierstore.NotFound)):
            call()
    assert store.keys() == []


def test_the_longest_keys(store: Store) -> None:
    keys = ["k" * 4096, "k" * 4095, "ä" * 2048, "\0", "a\0b", "a\0c", " "]
    store.put_many([(key, str(number).encode()) for number, key in enumerate(keys)])
    store.put("t" * 4096, pa.table({"x": np.arange(400_000)}))
    assert [bytes(view or b"") for view in store.get_many(keys)] == [
        str(number).encode() for number in range(len(keys))
    ]
    assert store.get("t" * 4096).num_rows == 400_000


def test_an_unknown_pool_is_refused(store: Store) -> None:
    with pytest.raises(tierstore.ConfigError, match="default"):
        store.put("k", TABLE, pool="nobody")


def test_an_unknown_tier_is_refused(store: Store) -> None:
    store.put("k", TABLE)
    with pytest.raises(tierstore.ConfigError, match="dram"):
        store.pin("k", "pmem")
    with pytest.raises(tierstore.ConfigError, match="durable|disk"):
        store.put("k", TABLE, durable=True)


def test_pools_keep_to_their_quota() -> None:
    with tierstore.open(dram="32MiB", segment="1MiB", pools={"small": "4MiB"}) as store:
        store.put_bytes("keep", b"k" * 500_000, keep=True)
        for number in range(60):
            store.put_bytes(f"{number}", bytes([number]) * 250_000, pool="small")
        pools = store.stats()["pools"]
        assert pools["small"]["used_bytes"] <= pools["small"]["quota_bytes"] == 4 * MIB
        assert "59" in store and "0" not in store and "keep" in store
        assert store.info("59")["pool"] == "small"
        assert store.verify(payloads=True)["ok"]


@pytest.mark.slow
def test_pins(store: Store) -> None:
    store.put_bytes("pinned", b"p" * 100_000)
    store.pin("pinned")
    assert store.info("pinned")["pinned"] and store.info("pinned")["class"] == "CACHE"
    for number in range(80):
        store.put_bytes(f"{number}", b"x" * 900_000)
    assert bytes(store.get_bytes("pinned")) == b"p" * 100_000
    store.pin("pinned")  # again
    store.unpin("pinned")
    assert not store.info("pinned")["pinned"]
    store.delete("pinned")


@pytest.mark.slow
def test_cache_is_evicted_and_keep_is_not(store: Store) -> None:
    for number in range(10):
        store.put_bytes(f"keep/{number}", bytes([number]) * 900_000, keep=True)
        store.put_bytes(f"cache/{number}", bytes([number]) * 900_000)
    for number in range(100):
        store.put_bytes(f"more/{number}", b"x" * 900_000)
    assert len(store.keys("keep/")) == 10 and len(store.keys("cache/")) < 10
    assert all(bytes(store.get_bytes(f"keep/{n}")) == bytes([n]) * 900_000 for n in range(10))


def test_views_outlive_everything() -> None:
    store = tierstore.open(dram="8MiB", segment="1MiB")
    numbers = np.arange(60_000)
    store.put("t", pa.table({"x": numbers}))
    store.put_bytes("b", b"view" * 1000)
    table, view = store.get("t"), store.get_bytes("b")
    store.delete("t")
    store.put_bytes("b", b"other" * 1000)
    for number in range(40):
        store.put_bytes(f"{number}", b"x" * 300_000)
    assert len(store.keys()) < 40
    assert table["x"].to_numpy().sum() == numbers.sum() and bytes(view) == b"view" * 1000
    assert store.verify(payloads=True)["ok"]
    store.close()
    assert (table["x"].to_numpy() == numbers).all()
    del store
    gc.collect()
    assert (table["x"].to_numpy() == numbers).all() and bytes(view) == b"view" * 1000


def test_a_closed_store_refuses_everything() -> None:
    store = tierstore.open(dram="8MiB", segment="1MiB")
    store.put_bytes("k", b"x")
    writer = store.writer("w", TABLE.schema)
    entered = writer.__enter__()
    entered.write(TABLE)
    store.close()
    store.close()
    for call in (
        lambda: store.put("k", TABLE),
        lambda: store.put_bytes("k", b"x"),
        lambda: store.put_many({"k": b"x"}),
        lambda: store.get("k"),
        lambda: store.get_bytes("k"),
        lambda: store.get_many(["k"]),
        lambda: "k" in store,
        store.keys,
        lambda: store.info("k"),
        lambda: store.delete("k"),
        lambda: store.pin("k"),
        lambda: store.unpin("k"),
        store.stats,
        store.verify,
        lambda: store.writer("k", TABLE.schema).__enter__(),
        lambda: writer.__exit__(None, None, None),
    ):
        with pytest.raises(tierstore.Closed, match="open or connect again"):
            call()


def test_many_threads_on_one_store(store: Store) -> None:
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for number in range(60):
                key = f"{thread}/{number % 7}"
                value = f"{thread} {number} ".encode() * (number * 50)
                store.put_bytes(key, value, keep=True)
                assert bytes(store.get_bytes(key)) == value
                store.put(key, pa.table({"n": [thread] * number}))
                assert store.get(key)["n"].to_pylist() == [thread] * number
                store.delete(key)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert store.keys() == []


def test_counters(store: Store) -> None:
    store.put_bytes("k", b"x" * 1000)
    store.get_bytes("k")
    "absent" in store  # noqa: B015
    store.get_many(["k", "absent"])
    stats = store.stats()
    assert stats["clients"]["hits"] == 2 and stats["clients"]["misses"] == 1
    assert stats["clients"]["dram_bytes_read"] == 2000 and 0.6 < stats["hit_rate"] < 0.7
    assert stats["daemon"]["published"] == 1 and 30 * MIB < stats["tiers"]["dram"]["capacity_bytes"] <= 32 * MIB


def test_foreign_shapes_are_refused(store: Store) -> None:
    for wrong in ({"a": [1]}, [1], pa.array([1]), None):
        with pytest.raises(TypeError, match="Table"):
            store.put("k", wrong)  # type: ignore[arg-type]
    assert store.keys() == []


def test_an_object_that_lost_a_block_is_gone_as_a_whole(store: Store) -> None:
    for number in range(40):  # of three blocks each, into 32 MiB of memory
        store.put(f"{number}", pa.table({"x": np.full(350_000, number)}))
    found = 0
    for number in range(40):
        try:
            assert store.get(f"{number}")["x"].to_numpy()[-1] == number
            found += 1
        except KeyError:
            assert f"{number}" not in store and f"{number}" not in store.keys()
    assert 0 < found < 40
