"""The GPU kernels through XLA's CUDA compiler for an H100, without a GPU."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from deberta_jax.gpu_kernels import gpu_attention

from ...support.attention_cases import attention_case
from ...support.gpu_compiler import compile_for_gpu, needs_cuda_compiler

pytestmark = [
    pytest.mark.slow,
    needs_cuda_compiler,
    pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11"),
]


def compiled_gradients(length: int, size: int) -> Any:
    """Compiles the gradients of attention with dropout."""
    case = attention_case(length, size=size, dtype=jnp.bfloat16)
    inputs = case.inputs.replace(dropout_rate=0.1, dropout_key=jax.random.key(0))

    def total(query: jax.Array, key: jax.Array, value: jax.Array, pos_key: jax.Array, pos_query: jax.Array) -> Any:
        tables = inputs.replace(pos_key=pos_key, pos_query=pos_query)
        return gpu_attention(query, key, value, tables).astype(jnp.float32).sum()

    arrays = (case.query, case.key, case.value, case.inputs.pos_key, case.inputs.pos_query)
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    return compile_for_gpu(functools.partial(jax.grad(total, argnums=range(5))), *shapes, card="h100")


@pytest.mark.parametrize(("length", "size"), [(512, 64), (200, 128)])
def test_kernels_compile_for_an_h100(length: int, size: int) -> None:
    text = compiled_gradients(length, size).as_text()
    assert text.count("mosaic_gpu") >= 2  # forward and backward


def test_constants_do_not_grow_with_the_square_of_the_length() -> None:
    """A constant for each pair of tokens, in every layer, would take gigabytes to compile."""
    length = 2048
    text = compiled_gradients(length, 64).as_text()
    constants = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"\w\[([\d,]+)\]\S* constant", text)]
    assert 2 * length in constants  # the row of each distance
    assert max(constants) <= 10 * length  # in each of eight blocks
