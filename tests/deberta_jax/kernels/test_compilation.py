"""The kernels through the TPU compiler: code that runs in interpret mode may still not compile."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from deberta_jax.attention import disentangled_attention
from deberta_jax.kernels import fused_attention, unsupported
from deberta_jax.sharding import make_mesh
from deberta_jax.train.compile_ahead.tpu_compiler import CHIPS, compile_for_tpu, topology

from ...support.attention_cases import Attend, AttentionCase, attention_case
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


# Shapes whose probabilities fit into one tile, and the chips that `make test-slow` compiles for.
KEPT = {
    (128, 64, "c2p|p2c", jnp.bfloat16): ("v5e",),
    (200, 32, "p2c", jnp.bfloat16): (),
    (512, 64, "c2p|p2c", jnp.bfloat16): ("v5e", "v5p", "v6e", "tpu7x"),
    (300, 128, "c2p", jnp.float32): (),
    (512, 64, "c2p|p2c", jnp.float32): (),
}


def cases(shapes: dict[tuple, tuple[str, ...]]) -> list[Any]:
    return [
        pytest.param(kind, *shape, marks=SLOW if kind in slow_kinds else LONG)
        for shape, slow_kinds in shapes.items()
        for kind in CHIPS
    ]


@needs_libtpu
@pytest.mark.parametrize(("kind", "length", "size", "terms", "dtype"), cases(SHAPES))
def test_kernels_compile_for_every_chip(kind: str, length: int, size: int, terms: str, dtype) -> None:
    compile_kernels(kind, length, size, terms, dtype, keep_probabilities=False)


@needs_libtpu
@pytest.mark.parametrize(("kind", "length", "size", "terms", "dtype"), cases(KEPT))
def test_kernels_that_keep_probabilities_compile(kind: str, length: int, size: int, terms: str, dtype) -> None:
    compile_kernels(kind, length, size, terms, dtype, keep_probabilities=True)


@needs_libtpu
@pytest.mark.slow
def test_kernels_that_keep_probabilities_compile_on_a_mesh() -> None:
    """Sequences and heads are split by shard_map, whose forward pass hands the probabilities to the backward pass."""
    mesh = make_mesh(data=2, tensor=2, devices=topology("v5e:2x2").devices)
    case = attention_case(256, heads=4, dtype=jnp.bfloat16)

    def attend(query, key, value, inputs):
        return disentangled_attention(
            query, key, value, inputs, implementation="pallas", keep_probabilities=True
        ).context

    tokens, table = PartitionSpec("data", None, "tensor"), PartitionSpec(None, "tensor")
    specs = (tokens, tokens, tokens, table, table, tokens)
    text = compile_gradients(attend, case, [NamedSharding(mesh, spec) for spec in specs])
    assert "bf16[1,2,256,256]" in text  # the probabilities of one sequence and two heads, on each device


def compile_kernels(kind: str, length: int, size: int, terms: str, dtype, *, keep_probabilities: bool) -> None:
    """Compiles forward and backward with dropout for one device."""
    _, devices = topology(small_slice(kind))
    if unsupported(length, size, dtype, devices[0].device_kind) is not None:
        pytest.skip("the kernels do not support this length on this chip")
    case = attention_case(length, size=size, heads=4, terms=terms, dtype=dtype)
    attend = functools.partial(
        fused_attention, device_kind=devices[0].device_kind, keep_probabilities=keep_probabilities
    )
    compile_gradients(attend, case, [SingleDeviceSharding(devices[0])] * 6)


def compile_gradients(attend: Attend, case: AttentionCase, shardings: list[Any]) -> str:
    """Returns the compiled program of the context and its gradients, with dropout."""
    inputs = case.inputs.replace(dropout_rate=0.1, dropout_key=jax.random.key(0))

    def gradients(query, key, value, pos_key, pos_query, cotangent):
        def context(query, key, value, pos_key, pos_query):
            return attend(query, key, value, inputs.replace(pos_key=pos_key, pos_query=pos_query))

        out, backward = jax.vjp(context, query, key, value, pos_key, pos_query)
        return out, backward(cotangent)

    arrays = (case.query, case.key, case.value, inputs.pos_key, inputs.pos_query, case.cotangent)
    shapes = [
        None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for x, sharding in zip(arrays, shardings, strict=True)
    ]
    mesh = getattr(shardings[0], "mesh", None)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        text = compile_for_tpu(jax.jit(gradients).trace(*shapes)).as_text()
    assert "disentangled_forward" in text
    assert "disentangled_backward" in text
    return text
