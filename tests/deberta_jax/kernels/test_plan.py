"""How a call of the kernels is planned, and what they support."""

import jax.numpy as jnp

from deberta_jax.kernels.plan import tiling, unsupported


def test_tiles_are_few_and_small() -> None:
    lengths = (1, 128, 200, 512, 513, 700, 2048, 4096)
    assert [tiling(length, jnp.float32, "cpu") for length in lengths] == [
        (128, 1), (128, 1), (256, 1), (512, 1), (384, 2), (384, 2), (512, 4), (512, 8),
    ]  # fmt: skip


def test_tiles_are_smaller_on_v4() -> None:
    assert tiling(2048, jnp.bfloat16, "TPU v4") == (256, 8)
    assert tiling(512, jnp.bfloat16, "TPU v4") == (512, 1)


def test_reason_of_an_unsupported_call() -> None:
    assert unsupported(512, 64, jnp.float16, "TPU v5p") == (
        "the dtype is float16 and the kernel takes float32 or bfloat16"
    )
    assert unsupported(2049, 64, jnp.bfloat16, "TPU v4") == (
        "there are 2049 tokens and on TPU v4 the kernel takes at most 2048 of this dtype"
    )
    assert unsupported(1025, 64, jnp.float32, "TPU v4") is not None
    assert unsupported(4096, 64, jnp.float32, "TPU v5p") is None
