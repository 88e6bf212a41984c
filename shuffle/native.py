"""This package's compiled kernels, loaded once per process."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import numpy.typing as npt

from tierstore.ringbuf.jit import load, once

MODULES = [f"tierstore.shuffle.kernels.{name}" for name in ("hashing", "scatter", "digest", "order")]


@once
def kernels() -> SimpleNamespace:
    """The kernels as builtins; compiles them on the first call on a machine (some seconds)."""
    return load(MODULES)


def address_of(array: npt.NDArray[np.generic]) -> int:
    """Where the elements of a contiguous array lie."""
    return int(array.__array_interface__["data"][0])
