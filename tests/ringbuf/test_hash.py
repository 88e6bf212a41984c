"""The payload hash is XXH3-64 as everyone else computes it, and copying while hashing copies exactly."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import xxhash

from tierstore.ringbuf.native import batch_kernels, kernels

SIZES = [256, 320, 960, 1024, 1088, 2048, 4096, 65_536, 65_600, (1 << 20) - 64, (1 << 20) + 64]
MASK = 2**64 - 1


def buffer(size: int, seed: int = 0) -> np.ndarray:
    """``size`` random bytes on a cache line, with 64 more behind them."""
    whole = np.random.default_rng(seed).integers(0, 256, size + 192, "u1")
    start = -whole.ctypes.data % 64
    return whole[start : start + size + 64]


def digest_of(data: np.ndarray, size: int) -> int:
    state = (ctypes.c_uint64 * 16)()
    return kernels().hash_payload(data.ctypes.data, size, ctypes.addressof(state)) & MASK


@pytest.mark.parametrize("size", SIZES)
def test_the_hash_is_xxh3(size: int) -> None:
    for seed in range(5):
        data = buffer(size, seed)
        assert digest_of(data, size) == xxhash.xxh3_64_intdigest(data[:size].tobytes())


@pytest.mark.parametrize("size", [64, 128, 192, *SIZES])
def test_every_bit_counts(size: int) -> None:
    data = buffer(size)
    before = digest_of(data, size)
    for place in {0, 1, 63, size // 2, size - 1}:
        data[place] ^= 1
        assert digest_of(data, size) != before
        data[place] ^= 1
    data[size] ^= 1
    assert digest_of(data, size) == before


@pytest.mark.parametrize("size", [64, 128, *SIZES])
def test_copying_copies_exactly(size: int) -> None:
    source, target = buffer(size), buffer(size, 1)
    behind = target[size:].copy()
    state = (ctypes.c_uint64 * 16)()
    found = batch_kernels().copy_hash(target.ctypes.data, source.ctypes.data, size, ctypes.addressof(state)) & MASK
    assert (target[:size] == source[:size]).all() and (target[size:] == behind).all()
    assert found == digest_of(source, size)
