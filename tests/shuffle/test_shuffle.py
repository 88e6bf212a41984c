"""Write, commit, read: exactly the rows of the named attempts, or an error that names the maps to run again."""

from __future__ import annotations

import json
import pickle
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import tierstore
from tests.shuffle.rows import PARTITIONS, expected, keys_left, read_all, rows_of, run_of, write
from tierstore.emulation.procs import Daemon
from tierstore.ringbuf.errors import Closed, Conflict, Expired, Full, LostMaps, NotFound
from tierstore.service.store import Store
from tierstore.shuffle.receipt import Receipt

SMALL = pa.dictionary(pa.int8(), pa.string())


def test_rows_come_back_by_partition(store: Store) -> None:
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        receipts = [write(shuffle, number) for number in range(3)]
        assert read_all(shuffle, receipts).equals(expected(range(3)))
        seen: dict[int, int] = {}
        for partition, table in shuffle.read_partitions(receipts=receipts):
            for key in pc.unique(table["k"]).to_pylist():
                assert seen.setdefault(key, partition) == partition, f"key {key} in two partitions"
            assert table.equals(shuffle.read(partition, receipts).read_all())
        assert len(seen) == 1000
        assert receipts[0].rows == 5000 and receipts[0].durability == "volatile"


def test_order_in_a_partition_is_as_written(store: Store) -> None:
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        with shuffle.writer(0) as writer:
            for start in range(0, 5000, 700):
                writer.write(rows_of(0).slice(start, 700), by=["k"])
        for _, table in shuffle.read_partitions(receipts=[writer.receipt]):
            numbers = table["n"].to_numpy()
            assert (np.diff(numbers) > 0).all()


def test_rows_go_where_they_are_told(store: Store) -> None:
    rows = pa.concat_tables([rows_of(0).slice(0, 700), rows_of(0).slice(700, 1300)])
    numbers = rows["n"].to_numpy() * 7 % PARTITIONS
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        with shuffle.writer(0) as writer:
            writer.write(rows, to=numbers)
            for wrong in (numbers[1:], numbers + PARTITIONS, numbers - 1000, numbers / 2):
                with pytest.raises(ValueError, match="to= "):
                    writer.write(rows, to=wrong)
        for partition, table in shuffle.read_partitions(receipts=[writer.receipt]):
            assert table.equals(rows.filter(pa.array(numbers == partition)))


def test_many_runs_and_segments(store: Store) -> None:
    """Four times as much as a segment holds, so that runs fill and cross segments."""
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        receipt = write(shuffle, 0, 120_000)
        assert len(shuffle_runs(store)) > 3
        assert read_all(shuffle, [receipt]).equals(expected([0], 120_000))
        assert store.verify(payloads=True)["ok"]


def shuffle_runs(store: Store) -> list[str]:
    return [key for key in keys_left(store) if key.count("/") == 5]


def test_maps_and_ranges(store: Store) -> None:
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        receipts = [write(shuffle, number) for number in range(4)]
        parts = [shuffle.read(range(2, 5), receipts, maps=maps).read_all() for maps in (range(0, 2), range(2, 4))]
        whole = shuffle.read(range(2, 5), receipts).read_all()
        assert pa.concat_tables(parts).equals(whole)
        singles = [shuffle.read(p, receipts).read_all() for p in range(2, 5)]
        assert pa.concat_tables(singles).sort_by("n").equals(whole.sort_by("n"))


def test_by_range_and_by_number(store: Store) -> None:
    bounds = pa.table({"n": [1000, 2000, 4500]})
    with store.shuffle("app", 0, 4) as shuffle:
        with shuffle.writer(0) as writer:
            writer.write(rows_of(0), by_range=bounds)
        tables = dict(shuffle.read_partitions(receipts=[writer.receipt]))
        assert [table.num_rows for table in tables.values()] == [1000, 1000, 2500, 500]
        assert tables[1]["n"].to_pylist() == list(range(1000, 2000))
        with shuffle.writer(1) as writer:
            writer.write_partition(3, rows_of(1, 10))
        assert [table.num_rows for _, table in shuffle.read_partitions(receipts=[writer.receipt])] == [0, 0, 0, 10]


def test_opaque_bytes(store: Store) -> None:
    rng = np.random.default_rng(1)
    blobs = {p: [rng.bytes(int(rng.integers(0, 200_000))) for _ in range(8)] for p in range(PARTITIONS)}
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        with shuffle.writer(0) as writer:
            for number in range(8):
                for partition in range(PARTITIONS):
                    writer.write_bytes(partition, blobs[partition][number], records=3)
        for partition, table in shuffle.read_partitions(receipts=[writer.receipt]):
            found = b"".join(
                chunk.buffers()[1][chunk.offset : chunk.offset + len(chunk)] for chunk in table.column(0).chunks
            )
            assert found == b"".join(blobs[partition])
        assert writer.receipt.rows == 3 * 8 * PARTITIONS
        assert len(shuffle_runs(store)) > 3


def test_a_value_larger_than_a_segment(store: Store) -> None:
    huge = np.random.default_rng(2).bytes(3 << 20)
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        with shuffle.writer(0) as writer:
            writer.write(pa.table({"k": [1, 2, 3], "b": [b"x", huge, b"y"]}), by=["k"])
        table = shuffle.read(receipts=[writer.receipt]).read_all().sort_by("k")
        assert table["b"].to_pylist() == [b"x", huge, b"y"]
        with shuffle.writer(1) as writer:
            writer.write_bytes(4, huge)
        chunks = dict(shuffle.read_partitions(receipts=[writer.receipt]))[4].column(0)
        assert b"".join(bytes(c.buffers()[1])[c.offset : c.offset + len(c)] for c in chunks.chunks) == huge


def test_types(store: Store) -> None:
    """Columns of every layout, nulls, dictionaries, nesting; slices of larger batches."""
    count = 1000
    rng = np.random.default_rng(3)
    lists = pa.array([[int(i)] * (i % 4) if i % 7 else None for i in range(count)], pa.list_(pa.int16()))
    table = pa.table(
        {
            "k": pa.array(rng.integers(0, 50, count), pa.int32()),
            "flag": pa.array([None if i % 9 == 0 else bool(i % 2) for i in range(count)]),
            "large": pa.array([None if i % 11 == 0 else "é" * (i % 5) for i in range(count)], pa.large_string()),
            "word": pa.array([f"w{i % 12}" for i in range(count)]).dictionary_encode(),
            "view": pa.array([f"a longer text {i}" for i in range(count)], pa.string_view()),
            "price": pa.array([None if i % 3 == 0 else i for i in range(count)], pa.decimal128(12, 2)),
            "when": pa.array(np.arange(count), pa.timestamp("us", "Europe/Berlin")),
            "list": lists,
            "pair": pa.array([{"a": i, "b": None if i % 2 else str(i)} for i in range(count)]),
            "none": pa.nulls(count),
        }
    ).slice(13, 900)
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        with shuffle.writer(0) as writer:
            for start in range(0, 900, 250):
                writer.write(table.slice(start, 250), by=["k", "word"])
        found = shuffle.read(receipts=[writer.receipt]).read_all()
        assert found.schema.equals(table.schema)
        assert sorted(found.to_pylist(), key=lambda row: row["when"]) == table.to_pylist()


def test_dictionaries_that_grow(store: Store) -> None:
    """More entries over all batches than the indices can name: runs of their own. And many tiny batches become one run."""
    table = [
        pa.table({"k": range(100), "w": pa.array([f"{n} {i}" for i in range(100)]).dictionary_encode().cast(SMALL)})
        for n in range(6)
    ]
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        with shuffle.writer(0) as writer:
            for part in table:
                writer.write(part, by=["k"])
        found = [text for p in shuffle.read(receipts=[writer.receipt]) for text in p["w"].cast("string").to_pylist()]
        assert sorted(found) == sorted(text for part in table for text in part["w"].cast("string").to_pylist())
        with shuffle.writer(1) as writer:
            for start in range(0, 5000, 10):
                writer.write(rows_of(1).slice(start, 10), by=["k"])
        assert read_all(shuffle, [writer.receipt]).equals(expected([1]))
        assert len([key for key in shuffle_runs(store) if "/0/1/" in key]) == 1


def test_empty_attempts(store: Store) -> None:
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        with shuffle.writer(0, schema=rows_of(0).schema) as writer:
            pass
        found = shuffle.read(receipts=[writer.receipt]).read_all()
        assert found.num_rows == 0 and found.schema.equals(rows_of(0).schema)
        with shuffle.writer(1) as unknown:
            pass
        with pytest.raises(ValueError, match="schema="):
            shuffle.read(receipts=[unknown.receipt])
        assert shuffle.read(receipts=[unknown.receipt], schema=rows_of(0).schema).read_all().num_rows == 0
        both = [unknown.receipt, write(shuffle, 2)]
        assert read_all(shuffle, both).equals(expected([2]))


def test_nothing_is_there_before_the_commit(store: Store) -> None:
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        writer = shuffle.writer(0, "x")
        writer.write(rows_of(0, 60_000), by=["k"])
        writer.flush()
        receipt = Receipt("app", 0, 0, "x", 1, 1, 1, "volatile", shuffle.store_id, "")
        with pytest.raises(LostMaps, match="never committed") as lost:
            shuffle.read(receipts=[receipt])
        assert lost.value.maps == [0]
        writer.abort()
        assert shuffle_runs(store) == []
        with pytest.raises(Closed, match="aborted"):
            writer.write(rows_of(0), by=["k"])


def test_an_exception_drops_the_attempt(store: Store) -> None:
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        with pytest.raises(ZeroDivisionError), shuffle.writer(0) as writer:
            writer.write(rows_of(0, 60_000), by=["k"])
            1 / 0  # noqa: B018
        assert shuffle_runs(store) == []


def test_several_attempts_of_one_map(store: Store) -> None:
    """The store elects nobody: each attempt stays as it is, and readers name the one they mean."""
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        first, second = write(shuffle, 0, 5000), write(shuffle, 0, 3000)
        assert read_all(shuffle, [first]).num_rows == 5000
        assert read_all(shuffle, [second]).num_rows == 3000
        with pytest.raises(ValueError, match="several receipts of maps"):
            shuffle.read(receipts=[first, second])


def test_a_committed_attempt_cannot_change(store: Store) -> None:
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        receipt = write(shuffle, 0, attempt="x")
        again = shuffle.writer(0, "x")
        with pytest.raises(Conflict, match="committed"):
            again.write(rows_of(0, 90_000), by=["k"])
        other = shuffle.writer(0, "x")
        with pytest.raises(Conflict, match="another manifest"):
            other.close()
        with pytest.raises(Conflict, match="committed"):
            shuffle.call("shuffle_abort", app="app", shuffle=0, map_index=0, attempt="x")
        assert read_all(shuffle, [receipt]).equals(expected([0]))


def test_the_same_commit_again_is_the_same_answer(store: Store) -> None:
    import base64

    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        receipt = write(shuffle, 0, attempt="x")
        raw = base64.b64encode(bytes(store.get_bytes(receipt.name.key))).decode()
        answer = shuffle.call("shuffle_commit", **receipt.name._asdict(), manifest=raw)
        assert answer["incarnation"] == receipt.incarnation
        lost = receipt.name._replace(attempt="y")
        with pytest.raises(Conflict, match="is not here"):
            shuffle.call("shuffle_commit", **lost._asdict(), manifest=raw)


def test_a_manifest_that_is_not_what_is_held(store: Store) -> None:
    import base64

    from tierstore.shuffle.manifest import decode

    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        writer = shuffle.writer(0, "x")
        writer.write(rows_of(0), by=["k"])
        writer.flush()
        first = write(shuffle, 1)
        manifest = decode(store.get_bytes(first.name.key), "it")
        manifest.nonce = writer._nonce
        raw = base64.b64encode(manifest.encode()).decode()
        with pytest.raises(Conflict, match="not what its manifest says"):
            shuffle.call("shuffle_commit", app="app", shuffle=0, map_index=0, attempt="x", manifest=raw)
        writer.close()
        assert read_all(shuffle, [writer.receipt, first]).equals(expected([0, 1]))


def test_lost_maps_are_named_together(store: Store) -> None:
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        receipts = [write(shuffle, number) for number in range(5)]
        store.delete(run_of(store, receipts[1]))
        store.delete(receipts[3].name.key)
        with pytest.raises(LostMaps, match="run these maps again") as lost:
            shuffle.read(receipts=receipts)
        assert lost.value.maps == [1, 3]
        kept = [receipts[0], receipts[2], receipts[4]]
        again = [write(shuffle, 1), write(shuffle, 3)]
        assert read_all(shuffle, kept + again).equals(expected(range(5)))


def test_changed_rows_are_found(store: Store) -> None:
    import ctypes

    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        receipts = [write(shuffle, number) for number in range(2)]
        batch = store.get(run_of(store, receipts[1]))
        address = batch["v"].chunk(0).buffers()[1].address
        for segment, start in enumerate(store._session.addresses.tolist()):
            if start <= address < start + store._session.grant.segment_bytes:
                writable = int(store._session.writable[segment]) + address - start
                ctypes.c_uint8.from_address(writable + 999).value ^= 4
        with pytest.raises(LostMaps, match="rows written to partition") as lost:
            shuffle.read(receipts=receipts).read_all()
        assert lost.value.maps == [1]
        assert shuffle.read(receipts=receipts, verify=False).read_all().num_rows == 10_000
        ctypes.c_uint8.from_address(writable + 999).value ^= 4
        assert read_all(shuffle, receipts).equals(expected(range(2)))


def test_drop_and_end(store: Store) -> None:
    shuffle = store.shuffle("app", 0, PARTITIONS)
    other = store.shuffle("app", 1, PARTITIONS)
    receipt, kept = write(shuffle, 0), write(other, 0)
    table = shuffle.read(receipts=[receipt]).read_all()
    shuffle.drop()
    assert table.num_rows == 5000, "views stay valid"
    with pytest.raises(Expired, match="dropped"):
        shuffle.read(receipts=[receipt])
    with pytest.raises(Expired, match="dropped"):
        shuffle.writer(1).write(rows_of(1, 90_000), by=["k"])
    assert read_all(other, [kept]).equals(expected([0]))
    other.end_app()
    assert keys_left(store) == []
    with pytest.raises(Expired, match="ended"):
        other.read(receipts=[kept])


def test_the_lease_ends(store: Store) -> None:
    shuffle = store.shuffle("app", 0, PARTITIONS, lease_s=1.0, renew=False)
    renewed = store.shuffle("other", 0, PARTITIONS, lease_s=1.0)
    receipt, kept = write(shuffle, 0), write(renewed, 0)
    deadline = time.monotonic() + 10
    while any("/app" in key for key in keys_left(store)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(Expired, match="lease of 1 s ended"):
        shuffle.read(receipts=[receipt])
    assert read_all(renewed, [kept]).equals(expected([0]))


def test_unknown_is_not_expired(store: Store) -> None:
    shuffle = store.shuffle("app", 0, PARTITIONS)
    nobody = Receipt("app", 0, 9, "x", 1, 1, 1, "volatile", shuffle.store_id, "")
    with pytest.raises(LostMaps, match="no such attempt"):
        shuffle.read(receipts=[nobody])
    with pytest.raises(NotFound, match="not known here"):
        shuffle.call("shuffle_touch", app="nobody")


def test_quota_presses_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.shuffle.writer.WAIT_S", 0.2)
    with store.shuffle("app", 0, PARTITIONS, quota="4MiB") as shuffle:
        first = write(shuffle, 0, 20_000)
        with pytest.raises(Full, match="quota"), shuffle.writer(1) as writer:
            writer.write(rows_of(1, 120_000), by=["k"])
        assert read_all(shuffle, [first]).num_rows == 20_000
        assert store.shuffle("free", 0, 2).partitions == 2
        usage = shuffle.call("shuffle_list")[0]
        assert usage["used_bytes"] < 4 << 20, "the aborted attempt counts no more"


def test_parameters_that_cannot_be(store: Store) -> None:
    with pytest.raises(ValueError, match="partitions"):
        store.shuffle("app", 0, 0)
    with pytest.raises(ValueError, match="lease_s"):
        store.shuffle("app", 0, 1, lease_s=0)
    with pytest.raises(ValueError, match="app"):
        store.shuffle("../app", 0, 1)
    with pytest.raises(tierstore.ConfigError, match="pool"):
        store.shuffle("app", 0, 1, pool="nobody's")
    shuffle = store.shuffle("app", 0, 4)
    with pytest.raises(Conflict, match="4 partitions, not 5"):
        store.shuffle("app", 0, 5)
    writer = shuffle.writer(0)
    with pytest.raises(ValueError, match="no column 'z'"):
        writer.write(rows_of(0), by=["z"])
    with pytest.raises(ValueError, match="either by"):
        writer.write(rows_of(0))
    with pytest.raises(ValueError, match="split points"):
        writer.write(rows_of(0), by_range=pa.table({"k": [1]}))
    with pytest.raises(ValueError, match="partition 4"):
        writer.write_partition(4, rows_of(0))
    with pytest.raises(TypeError, match="RecordBatch"):
        writer.write([1], by=["k"])
    writer.write(rows_of(0), by=["k"])
    with pytest.raises(ValueError, match="schema"):
        writer.write(rows_of(0).select(["k"]), by=["k"])
    with pytest.raises(TypeError, match="rows already"):
        writer.write_bytes(0, b"x")
    for partitions in (range(3, 5), [0, 2], range(0), -1):
        with pytest.raises(ValueError, match="partitions"):
            shuffle.read(partitions, [])


def test_receipts_travel(node: Daemon) -> None:
    """Written by one client, read by others; receipts as JSON and pickled."""
    with node.connect() as mine, node.connect() as theirs:
        receipts = [write(mine.shuffle("app", 0, PARTITIONS), number) for number in range(2)]
        sent = [
            Receipt.from_dict(json.loads(json.dumps(receipts[0].to_dict()))),
            pickle.loads(pickle.dumps(receipts[1])),
        ]
        assert read_all(theirs.shuffle("app", 0, PARTITIONS), sent).equals(expected(range(2)))
        mine.shuffle("app", 0, PARTITIONS).end_app()


def test_a_restarted_daemon_knows_its_shuffles(lasting: Daemon) -> None:
    node = lasting
    with node.connect() as store:
        shuffle = store.shuffle("app", 0, PARTITIONS, lease_s=2.0)
        receipts = [write(shuffle, number) for number in range(2)]
        half = shuffle.writer(2, "half")
        half.write(rows_of(2), by=["k"])
        half.flush()
        node.kill()
        node.start()
        half.write(rows_of(2, 7000).slice(5000), by=["k"])
        receipts.append(half.close())
        assert read_all(shuffle, receipts).num_rows == 17_000
        assert receipts[2].incarnation == receipts[0].incarnation
        found = shuffle.call("shuffle_list")[0]
        assert found["shuffles"][0]["maps"] == 3 and found["lease_s"] == 2.0
        shuffle.close()
        deadline = time.monotonic() + 20
        while keys_left(store):
            assert time.monotonic() < deadline, "the lease goes on after the restart, and ends"
            time.sleep(0.1)


@pytest.mark.parametrize("tier", ["pmem", "disk"])
def test_from_slower_tiers(tier_options: dict[str, str], tier: str) -> None:
    """More than memory holds: what was demoted is read as well."""
    if tier == "disk":
        tier_options = {name: value for name, value in tier_options.items() if name != "pmem"}
    with tierstore.open(**tier_options) as store, store.shuffle("app", 0, PARTITIONS) as shuffle:
        receipts = [write(shuffle, number, 40_000) for number in range(8)]
        tiers = {name for key in shuffle_runs(store) for name in store.info(key)["tiers"]}
        assert tier in tiers
        assert read_all(shuffle, receipts).equals(expected(range(8), 40_000))
        shuffle.end_app()
        assert keys_left(store) == []


def test_durable(tier_options: dict[str, str]) -> None:
    with tierstore.open(**tier_options) as store:
        with store.shuffle("app", 0, PARTITIONS) as shuffle, shuffle.writer(0, durable=True) as writer:
            writer.write(rows_of(0), by=["k"])
        assert writer.receipt.durability == "durable"
        for key in [writer.receipt.name.key, *shuffle_runs(store)]:
            assert store.info(key)["durability"] == "durable"
