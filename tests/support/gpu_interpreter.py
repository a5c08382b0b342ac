"""Runs the GPU kernels in Pallas' interpret mode for GPUs, which simulates shared memory, copies and barriers."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import pytest


@contextlib.contextmanager
def interpreted_gpu_kernels() -> Iterator[Any]:
    """Yields the parameters of interpret mode; skips the test where this jax has none that can run the kernels.

    The interpreter multiplies operands in shared memory only, while the kernels also have left operands in registers:
    those are stored to shared memory first.
    """
    if not hasattr(plgpu, "InterpretGPUParams"):
        pytest.skip(f"jax {jax.__version__} has no interpret mode for GPU kernels; 0.11 has")
    multiply = plgpu.wgmma

    def from_shared_memory(accumulator: Any, left: Any, right: Any) -> None:
        if hasattr(left, "at") and not isinstance(left, jax.Array):
            return multiply(accumulator, left, right)

        def store_first(memory: Any) -> None:
            memory[...] = left
            plgpu.commit_smem()
            multiply(accumulator, memory, right)

        return pl.run_scoped(store_first, plgpu.SMEM(left.shape, left.dtype))

    with mock.patch.object(plgpu, "wgmma", from_shared_memory):
        yield plgpu.InterpretGPUParams()
