"""What was acknowledged as durable stays where power loss does not take it, however hot it is and whatever else needs room."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa

import tierstore
from tierstore.cache.store import Store
from tierstore.ringbuf import layout

KEYS = ("a", "b", "c", "d")


def value(number: int, size: int = 200_000) -> bytes:
    return np.random.default_rng(number).integers(0, 256, size, "u1").tobytes()


def heat(store: Store, keys: tuple[str, ...], seconds: float = 1.5) -> None:
    """Read some keys again and again, over many rounds of promotion."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for key in keys:
            store.get_bytes(key)
        time.sleep(0.01)


def durability(store: Store, keys: tuple[str, ...] = KEYS) -> set[str]:
    return {store.info(key)["durability"] for key in keys}


def marks(store: Store, key: str) -> set[int]:
    """The class bytes of an object's blocks."""
    requests = store._control.requests  # type: ignore[attr-defined]
    return {requests.header(block)[layout.R_CLASS] for block in requests._blocks(key)}


def test_hot_durable_objects_survive_the_loss_of_memory(tier_options: dict[str, str]) -> None:
    table = pa.table({"x": np.arange(300_000)})
    with tierstore.open(**tier_options) as store:
        for number, key in enumerate(KEYS):
            store.put_bytes(key, value(number), keep=True, durable=True)
        store.put("t", table, keep=True, durable=True)
        heat(store, KEYS)
        for _ in range(20):
            store.get("t")
        time.sleep(0.3)
        assert durability(store, (*KEYS, "t")) == {"durable"}
        assert store.stats()["daemon"]["promoted_bytes"] == 0
    for _ in range(2):  # the mark is found again after a start
        with tierstore.open(**tier_options) as store:
            heat(store, KEYS, 0.8)
            assert [bytes(store.get_bytes(key)) for key in KEYS] == [value(number) for number in range(4)]
            assert store.get("t").equals(table) and durability(store, (*KEYS, "t")) == {"durable"}
            assert store.verify(payloads=True)["ok"]


def test_what_was_only_demoted_goes_up_until_it_is_made_durable(tiered: Store) -> None:
    """Both lie on disk, one because it was asked for, one because it went there by itself."""
    tiered.put_bytes("kept", value(1), keep=True)
    tiered.put_bytes("cached", value(2), durable=True)
    tiered.put_bytes("asked", value(3), keep=True)
    for key in ("kept", "asked"):
        tiered.pin(key, "disk")
    assert durability(tiered, ("kept", "cached", "asked")) == {"durable"}
    for key in ("kept", "asked"):  # from here on they may go up
        tiered.unpin(key)
    assert marks(tiered, "asked") == {1}
    tiered._acknowledge("asked", True)
    assert tiered.info("asked")["tiers"] == ["disk"] and marks(tiered, "asked") == {5}
    deadline = time.monotonic() + 15
    while tiered.info("kept")["tiers"] != ["dram"] or tiered.info("cached")["tiers"] != ["dram"]:
        heat(tiered, ("kept", "cached", "asked"), 0.2)
        assert time.monotonic() < deadline, (tiered.info("kept"), tiered.info("cached"))
    assert durability(tiered, ("asked",)) == {"durable"} and bytes(tiered.get_bytes("asked")) == value(3)


def test_the_mark_stays_through_pins_and_moves_within_durable_tiers(tiered: Store) -> None:
    for number, key in enumerate(KEYS):
        tiered.put_bytes(key, value(number), keep=True, durable=True)
    tiered.pin("a", "disk")
    assert tiered.info("a")["pinned"] and marks(tiered, "a") == {7}
    tiered.unpin("a")
    assert not tiered.info("a")["pinned"] and marks(tiered, "a") == {5} and tiered.info("a")["class"] == "KEEP"
    for number in range(60):  # compaction of the disk: most of what lies beside them goes
        tiered.put_bytes(f"{number}", value(number), keep=True, durable=True)
    for number in range(60):
        tiered.delete(f"{number}")
    for number in range(100, 200):
        tiered.put_bytes(f"{number}", value(number), keep=True)
    assert durability(tiered) == {"durable"} and {mark for key in KEYS for mark in marks(tiered, key)} == {5}
    assert [bytes(tiered.get_bytes(key)) for key in KEYS] == [value(number) for number in range(4)]


def test_a_pin_in_memory_ends_durability(tiered: Store) -> None:
    """The user asked for it, and info() says so; what is durable again is asked for again."""
    tiered.put_bytes("a", value(1), keep=True, durable=True)
    tiered.pin("a", "dram")
    assert durability(tiered, ("a",)) == {"volatile"} and marks(tiered, "a") == {3}
    tiered.unpin("a")
    assert durability(tiered, ("a",)) == {"volatile"} and marks(tiered, "a") == {1}
    tiered._acknowledge("a", True)
    assert durability(tiered, ("a",)) == {"durable"} and marks(tiered, "a") == {5}


def test_no_move_in_the_background_takes_a_durable_record_to_a_volatile_tier(tiered: Store) -> None:
    tiered.put_bytes("a", value(1), keep=True, durable=True)
    requests = tiered._control.requests  # type: ignore[attr-defined]
    with requests.engine.turn:
        segment = requests._blocks("a")[0].segment
        assert requests.engine.cascade.move(segment, 0) is None
        assert requests.engine.cascade.move(segment, 0, None, False) is None
    assert durability(tiered, ("a",)) == {"durable"} and bytes(tiered.get_bytes("a")) == value(1)


def test_small_durable_objects_share_segments(tiered: Store) -> None:
    """A disk of 30 segments takes more than 30 of them, however busy the policy thread is."""
    requests = tiered._control.requests  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while tiered.stats()["tiers"]["disk"]["segments"]["unbacked"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with requests.engine.turn:  # the policy thread gets no turn
        for number in range(80):
            tiered.put_bytes(f"{number}", value(number, 100_000), keep=True, durable=True)
    assert durability(tiered, tuple(f"{number}" for number in range(80))) == {"durable"}
    assert len({requests.find_root(f"{number}").segment for number in range(80)}) < 20
