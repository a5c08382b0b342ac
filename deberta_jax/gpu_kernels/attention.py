"""Fused attention on GPUs as a differentiable function: padding, the bias, the kernels and their VJP."""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from ..attention_inputs import AttentionInputs
from ..position_scores import content_to_position, position_to_content
from ..positions import LiveRows
from .backward import backward
from .bias import Terms, position_terms
from .forward import forward
from .tile import BLOCK, Plan

_HOPPER = re.compile(r"\bG?H(20|100|200|800)\b")
_OLDEST_JAX = (0, 11)
_LARGEST_HEAD = 128
_LARGEST_BIAS = 2**28  # elements: 512 MiB
_UNSEEN = -1e30  # bias of a key that the query does not see


class _Operands(NamedTuple):
    """The arrays that have gradients, padded; a table is None without its term."""

    query: Float[Array, "B T N H"]
    key: Float[Array, "B S N H"]
    value: Float[Array, "B S N H"]
    pos_key: Float[Array, "P N H"] | None
    pos_query: Float[Array, "P N H"] | None


class _Indices(NamedTuple):
    """The integer arrays, which have no gradients.

    Attributes:
      query_segments, key_segments: padded with 0.
      query_positions: padded with 0; None if query i is at position i.
      random: two seeds, and the numbers of the first head and sequence of this device.
    """

    query_segments: Int[Array, "B T"]
    key_segments: Int[Array, "B S"]
    query_positions: Int[Array, "B T"] | None
    random: UInt32[Array, "4"]


class _Static(NamedTuple):
    """The plan of the kernels, and the rows that distances read."""

    plan: Plan
    live_rows: LiveRows | None


def unsupported(head_size: int, dtype: Any, device_kind: str) -> str | None:
    """Returns why the kernels cannot run a call on a kind of device, or None if they can."""
    if jax.__version_info__ < _OLDEST_JAX:
        return f"jax is {jax.__version__} and the GPU kernel needs {'.'.join(map(str, _OLDEST_JAX))} or newer"
    if not _HOPPER.search(device_kind):
        return f"the device is {device_kind} and the GPU kernel is made for Hopper, such as H100 and H200"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"the activations are {jnp.dtype(dtype)} and the GPU kernel takes bfloat16 or float16"
    if head_size > _LARGEST_HEAD:
        return f"the head size is {head_size} and the kernel takes at most {_LARGEST_HEAD}"
    return None


def gpu_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    inputs: AttentionInputs,
    *,
    first_sequence: Int[Array, ""] | int = 0,
    first_head: Int[Array, ""] | int = 0,
    sequences: int | None = None,
    interpret: Any = None,
) -> Float[Array, "B T N H"]:
    """Returns the context of `attention.disentangled_attention`.

    Args:
      query, key, value: of a head size and dtype that `unsupported` does not exclude.
      inputs: segments, position terms and dropout; queries may be at any positions.
      first_sequence, first_head: numbers of the first sequence and head over all devices, for the dropout mask, which
        is that of `xla_attention`.
      sequences: number of sequences over all devices (default: those of the arguments).
      interpret: parameters of Pallas' interpret mode for GPUs (default: the kernels are compiled).

    Returns:
      The context in query's dtype, exactly zero for padding queries.
    """
    batch, queries, heads, size = query.shape
    keys = key.shape[1]
    rate = 0.0 if inputs.dropout_key is None else inputs.dropout_rate
    plan = Plan(
        batch=batch,
        queries=_padded(queries),
        keys=_padded(keys),
        heads=heads,
        head_size=_padded(size),
        dtype=jnp.dtype(query.dtype),
        scale=(size * (1 + inputs.position_terms)) ** -0.5,
        dropout_rate=rate,
        whole=(heads, batch if sequences is None else sequences, queries, keys),
        interpret=interpret,
    )
    seeds = jnp.zeros(2, jnp.uint32) if inputs.dropout_key is None else jax.random.bits(inputs.dropout_key, (2,))
    place = jnp.stack([jnp.asarray(first_head, jnp.uint32), jnp.asarray(first_sequence, jnp.uint32)])
    positions = inputs.query_positions
    indices = _Indices(
        query_segments=_pad(inputs.query_segments, (0, plan.queries)),
        key_segments=_pad(inputs.key_segments, (0, plan.keys)),
        query_positions=None if positions is None else _pad(positions, (0, plan.queries)),
        random=jnp.concatenate([seeds, place]),
    )
    operands = _Operands(
        _pad(query, (0, plan.queries, 0, plan.head_size)),
        _pad(key, (0, plan.keys, 0, plan.head_size)),
        _pad(value, (0, plan.keys, 0, plan.head_size)),
        *(None if x is None else _pad(x, (0, 0, plan.head_size)) for x in (inputs.pos_key, inputs.pos_query)),
    )
    assert inputs.live_rows is None or isinstance(inputs.live_rows, LiveRows)
    context = _by_heads(_Static(plan, inputs.live_rows), indices, operands)
    return context[:, :queries, :, :size]


def _by_heads(static: _Static, indices: _Indices, operands: _Operands) -> Float[Array, "B T N H"]:
    """Runs as many heads at a time as keep the bias and the gradients of the scores small."""
    plan = static.plan
    fitting = max(_LARGEST_BIAS // (plan.batch * plan.queries * plan.keys), 1)
    size = max(number for number in range(1, min(fitting, plan.heads) + 1) if plan.heads % number == 0)
    static = static._replace(plan=dataclasses.replace(plan, heads=size))
    if size == plan.heads:
        return _attention(static, indices, operands)  # type: ignore[return-value]

    def attend(part: tuple[_Operands, UInt32[Array, ""]]) -> Float[Array, "B T N H"]:
        arrays, first = part
        place = indices.random + jnp.array([0, 0, 1, 0], jnp.uint32) * first
        return _attention(static, indices._replace(random=place), arrays)  # type: ignore[return-value]

    def groups(x: jax.Array) -> jax.Array:
        """Splits the axis of heads, the last but one, along a new first axis."""
        return jnp.moveaxis(x.reshape(*x.shape[:-2], -1, size, x.shape[-1]), -3, 0)

    firsts = jnp.arange(0, plan.heads, size, dtype=jnp.uint32)
    context = jax.lax.map(attend, (jax.tree.map(groups, operands), firsts))
    return jnp.moveaxis(context, 0, 2).reshape(*operands.query.shape)


def _padded(number: int) -> int:
    return -(-number // BLOCK) * BLOCK


def _pad(x: Any, sizes: tuple[int, ...]) -> jax.Array:
    """Pads the first axes with zeros to the given sizes; 0 leaves an axis as it is."""
    padding = [(0, 0)] * x.ndim
    for axis, size in enumerate(sizes):
        padding[axis] = (0, max(size - x.shape[axis], 0))
    return jnp.pad(x, padding)


def _bias(static: _Static, indices: _Indices, operands: _Operands) -> Float[Array, "N B T S"]:
    """Returns the position terms, scaled, and where a query does not see a key a number far below all scores."""
    plan, live = static
    scores = jnp.zeros((plan.heads, plan.batch, plan.queries, plan.keys), jnp.float32)
    if operands.pos_key is not None or operands.pos_query is not None:
        assert live is not None, "live_rows are needed with pos_key or pos_query"
        query, key = _heads_first(operands.query), _heads_first(operands.key)
        tables = (None if x is None else x.transpose(1, 0, 2) for x in (operands.pos_key, operands.pos_query))
        terms = Terms(query, key, *tables)
        if indices.query_positions is None:
            moved: jax.Array = position_terms(live, terms)  # type: ignore[assignment]
            scores = moved.astype(jnp.float32) * plan.scale
        else:
            # The rows of distances do not know the padding of the keys.
            key = key[:, :, : live.length]
            scores = scores[..., : live.length]
            if terms.pos_key is not None:
                scores += content_to_position(query, terms.pos_key, live, indices.query_positions)
            if terms.pos_query is not None:
                scores += position_to_content(key, terms.pos_query, live, indices.query_positions)
            scores = jnp.pad(scores * plan.scale, [(0, 0)] * 3 + [(0, plan.keys - live.length)])
    segments = indices.query_segments[:, :, None], indices.key_segments[:, None, :]
    visible = (segments[0] == segments[1]) & (segments[1] != 0)
    return jnp.where(visible[None], scores, _UNSEEN).astype(plan.dtype)


def _heads_first(x: Float[Array, "B S N H"]) -> Float[Array, "N B S H"]:
    return x.transpose(2, 0, 1, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static: _Static, indices: _Indices, operands: _Operands) -> Float[Array, "B T N H"]:
    return _attention_forward(static, indices, operands)[0]


# Compiled functions of their own: the layers of a model share one tracing and lowering of the kernels.


@functools.partial(jax.jit, static_argnums=0)
def _attention_forward(static: _Static, indices: _Indices, operands: _Operands) -> tuple[Float[Array, "B T N H"], Any]:
    bias = _bias(static, indices, operands)
    context, log_sum = forward(static.plan, *operands[:3], bias, indices.random)
    real = (indices.query_segments != 0)[:, :, None, None]
    context = jnp.where(real, context, 0)
    return context, (indices, operands, context, log_sum)


@functools.partial(jax.jit, static_argnums=0)
def _attention_backward(static: _Static, residuals: Any, cotangent: Float[Array, "B T N H"]) -> tuple[None, _Operands]:
    indices, operands, context, log_sum = residuals
    # Otherwise XLA keeps the bias of the forward pass, or computes those of all layers at once.
    operands, cotangent = jax.lax.optimization_barrier((operands, cotangent))
    plan, (query, key, value, *_) = static.plan, operands
    bias, pull_back = jax.vjp(lambda operands: _bias(static, indices, operands), operands)
    cotangent = jnp.where((indices.query_segments != 0)[:, :, None, None], cotangent, 0)
    mean = jnp.einsum("btnh,btnh->bnt", context, cotangent, preferred_element_type=jnp.float32)
    found = backward(plan, query, key, value, bias, indices.random, log_sum, cotangent, mean)
    of_terms = pull_back(found.scores)[0]

    # Heads first, as the large arrays are: XLA transposes the small ones.
    of_keys, of_values = (
        jnp.einsum("nbts,nbth->nbsh", squares, _heads_first(x), preferred_element_type=jnp.float32)
        for squares, x in ((found.scores, query), (found.probabilities, cotangent))
    )
    gradients = of_terms._replace(
        query=of_terms.query + (found.query * plan.scale).astype(plan.dtype),
        key=of_terms.key + (of_keys.transpose(1, 2, 0, 3) * plan.scale).astype(plan.dtype),
        value=of_values.transpose(1, 2, 0, 3).astype(plan.dtype),
    )
    return None, gradients


_attention.defvjp(_attention_forward, _attention_backward)
