"""A pass over much more than the cache holds does not drive out what is used again and again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tierstore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("trusting")]
ROW_GROUP = 1 << 16  # of 8 bytes: half a segment


def write(path: Path, size: int, seed: int) -> Path:
    values = np.random.default_rng(seed).integers(0, 2**60, size // 8)
    pq.write_table(pa.table({"v": values}), path, row_group_size=ROW_GROUP, use_dictionary=False, compression="none")
    return path


@pytest.mark.parametrize("hot_mib", [2, 5, 8])
@pytest.mark.parametrize("hint", ["", "once"])
def test_the_hot_set_stays(hot_mib: int, hint: str, tmp_path: Path) -> None:
    hot, cold = write(tmp_path / "hot", hot_mib << 20, 1), write(tmp_path / "cold", 160 << 20, 2)
    with tierstore.open(dram="16MiB", segment="1MiB") as store:
        used, passing = store.dataset(hot), store.dataset(cold, hint=hint)
        for _ in range(4):
            used.preload()
        before = used.stats()
        assert before["cached_chunks"] == before["chunks"]
        for batch in passing.scan():
            del batch
        after = used.stats()
        assert after["cached_chunks"] >= 0.9 * after["chunks"], after
        assert store.verify()["ok"]
