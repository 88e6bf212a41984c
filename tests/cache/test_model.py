"""A store against a dictionary: whatever is done in whatever order, KEEP is right and CACHE is right or missing."""

from __future__ import annotations

import os
import tempfile
import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from hypothesis.strategies import booleans, integers, sampled_from

import tierstore

KEYS = [f"key {i}" for i in range(6)]
SIZES = [0, 1, 5_000, 300_000, 1_048_000, 1_600_000]
PRESSURE = 9


class Machine(RuleBasedStateMachine):
    """``model`` holds what was put last under each key: (class is KEEP, number of the put, size, as table)."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.pmem = f"/dev/shm/tierstore-test-{uuid.uuid4().hex[:12]}"
        disk = f"{self.folder.name}:24MiB"
        self.options = {"dram": "6MiB", "pmem": f"{self.pmem}:6MiB", "disk": disk, "segment": "1MiB"}
        self.store = tierstore.open(**self.options)
        self.model: dict[str, tuple[bool, int, int, bool]] = {}
        self.count = 0

    def value(self, number: int, size: int) -> np.ndarray:
        return np.random.default_rng(number).integers(0, 256, size, "u1")

    def check(self, key: str) -> None:
        if key not in self.model:
            assert key not in self.store
            return
        keep, number, size, table = self.model[key]
        try:
            if table:
                found = self.store.get(key)["v"].to_numpy(zero_copy_only=False)
            else:
                found = np.frombuffer(self.store.get_bytes(key), "u1")
        except KeyError:
            assert not keep, f"{key} is KEEP and lost"
            del self.model[key]
            return
        assert np.array_equal(found, self.value(number, size)), f"{key} is not what was put"

    @rule(key=sampled_from(KEYS), size=sampled_from(SIZES), keep=booleans(), table=booleans())
    def put(self, key: str, size: int, keep: bool, table: bool) -> None:
        self.count += 1
        value = self.value(self.count, size)
        if table:
            self.store.put(key, pa.table({"v": value}), keep=keep)
        else:
            self.store.put_bytes(key, value, keep=keep)
        self.model[key] = (keep, self.count, size, table)
        if keep:
            self.check(key)

    @rule(key=sampled_from(KEYS))
    def get(self, key: str) -> None:
        self.check(key)

    @rule(key=sampled_from(KEYS))
    def delete(self, key: str) -> None:
        try:
            self.store.delete(key)
            assert key in self.model
        except KeyError:
            assert not self.model.get(key, (False,))[0], f"{key} is KEEP and was not found"
        self.model.pop(key, None)
        assert key not in self.store

    @rule(key=sampled_from(KEYS), tier=sampled_from(["dram", "pmem", "disk"]))
    def move(self, key: str, tier: str) -> None:
        try:
            self.store.pin(key, tier)
            assert self.store.info(key)["tiers"] == [tier] and self.store.info(key)["pinned"]
            self.check(key)
            self.store.unpin(key)
        except KeyError:
            assert not self.model.get(key, (False,))[0]

    @rule(number=integers(0, 3))
    def press(self, number: int) -> None:
        for i in range(PRESSURE):
            self.store.put_bytes(f"pressure {number} {i}", bytes(900_000))

    @rule()
    def reopen(self) -> None:
        """Memory is gone after that; what lies on disk is not."""
        for key in list(self.model):
            try:
                self.store.pin(key, "disk")
            except KeyError:
                assert not self.model.pop(key)[0], f"{key} is KEEP and was not found"
        self.store.close()
        self.store = tierstore.open(**self.options)
        for key in self.model:
            assert key in self.store, f"{key} is lost"
            self.store.unpin(key)

    @invariant()
    def verify(self) -> None:
        report = self.store.verify()
        assert report["ok"], report["problems"]

    def teardown(self) -> None:
        try:
            for key in KEYS:
                self.check(key)
            report = self.store.verify(payloads=True)
            assert report["ok"], report["problems"]
        finally:
            self.store.close()
            self.folder.cleanup()
            if os.path.exists(self.pmem):
                os.unlink(self.pmem)


@pytest.mark.slow
@pytest.mark.parametrize("examples", [15, pytest.param(400, marks=pytest.mark.soak)])
def test_the_store_behaves_like_a_dictionary(examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.ringbuf.client.LEASE_WAIT_S", 3.0)  # a run that is full fails soon
    monkeypatch.setattr("tierstore.cache.requests.MOVE_WAIT_S", 3.0)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=examples < 100,
            database=None,
            print_blob=False,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
