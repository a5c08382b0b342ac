"""The kernels through the TPU compiler: code that runs in interpret mode may still not compile."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from deberta_jax.kernels import fused_attention, unsupported
from deberta_jax.train.compile_ahead.tpu_compiler import CHIPS, compile_for_tpu, topology

from ...support.attention_cases import attention_case
from ...support.tpu_topologies import needs_libtpu, small_slice

SLOW, LONG = [pytest.mark.slow], [pytest.mark.long]
# (length, head size, terms, dtype) and the chips that `make test-slow` compiles for; the others are `long`.
SHAPES = {
    (128, 64, "c2p|p2c", jnp.bfloat16): tuple(CHIPS),
    (200, 32, "p2c", jnp.bfloat16): tuple(CHIPS),
    (512, 64, "c2p|p2c", jnp.bfloat16): ("v5e",),
    (700, 128, "c2p", jnp.float32): ("v4",),
    (2048, 64, "c2p|p2c", jnp.bfloat16): ("v4", "v6e"),
    (1024, 64, "c2p|p2c", jnp.float32): (),
    (4096, 64, "c2p|p2c", jnp.float32): (),
}


@needs_libtpu
@pytest.mark.parametrize(
    ("kind", "length", "size", "terms", "dtype"),
    [
        pytest.param(kind, *shape, marks=SLOW if kind in slow_kinds else LONG)
        for shape, slow_kinds in SHAPES.items()
        for kind in CHIPS
    ],
)
def test_kernels_compile_for_every_chip(kind: str, length: int, size: int, terms: str, dtype) -> None:
    """Compiles forward and backward with dropout."""
    _, devices = topology(small_slice(kind))
    if unsupported(length, size, dtype, devices[0].device_kind) is not None:
        pytest.skip("the kernels do not support this length on this chip")
    case = attention_case(length, size=size, heads=4, terms=terms, dtype=dtype)
    inputs = case.inputs.replace(dropout_rate=0.1, dropout_key=jax.random.key(0))
    attend = functools.partial(fused_attention, device_kind=devices[0].device_kind)

    def gradients(query, key, value, pos_key, pos_query, cotangent):
        def context(query, key, value, pos_key, pos_query):
            return attend(query, key, value, inputs.replace(pos_key=pos_key, pos_query=pos_query))

        out, backward = jax.vjp(context, query, key, value, pos_key, pos_query)
        return out, backward(cotangent)

    arrays = (case.query, case.key, case.value, inputs.pos_key, inputs.pos_query, case.cotangent)
    sharding = SingleDeviceSharding(devices[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arrays)
    text = compile_for_tpu(jax.jit(gradients).trace(*shapes)).as_text()
    assert "disentangled_forward" in text
    assert "disentangled_backward" in text
