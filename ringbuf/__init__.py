"""Shared memory, atomics, kernels, segment rings, pins and the index. Knows numpy and numba, nothing of columns."""
