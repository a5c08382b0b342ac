"""Small examples of attention, and a run of attention with its gradients."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from deberta_jax import DebertaConfig
from deberta_jax.attention import AttentionInputs
from deberta_jax.positions import live_rows

CONFIG = DebertaConfig.named("deberta-v3-small")


class AttentionCase(NamedTuple):
    """Arguments of attention, and a cotangent of its context."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    inputs: AttentionInputs
    cotangent: jax.Array


Attend = Callable[[jax.Array, jax.Array, jax.Array, AttentionInputs], jax.Array]


def attention_case(
    length: int,
    *,
    size: int = 64,
    heads: int = 2,
    terms: str = "c2p|p2c",
    dtype: Any = jnp.float32,
    config: DebertaConfig = CONFIG,
) -> AttentionCase:
    """Two sequences: the first is one segment, the second has three and padding at its end."""
    keys = jax.random.split(jax.random.key(length), 6)
    live = live_rows(length, config)
    tokens, table = (2, length, heads, size), (live.stop - live.start, heads, size)
    query, key, value, cotangent = (jax.random.normal(key, tokens, dtype) for key in keys[:4])
    pos_key, pos_query = (jax.random.normal(key, table, dtype) for key in keys[4:])
    segments = np.ones((2, length), np.int32)
    segments[1, length // 4 :], segments[1, length // 2 :] = 7, 2
    segments[1, length - length // 5 :] = 0
    inputs = AttentionInputs(
        query_segments=segments,
        key_segments=segments,
        pos_key=pos_key if "c2p" in terms else None,
        pos_query=pos_query if "p2c" in terms else None,
        live_rows=live,
    )
    return AttentionCase(query, key, value / 4, inputs, cotangent)


def context_and_gradients(attend: Attend, case: AttentionCase) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the context and the gradients of queries, keys, values and tables."""
    tables = {name: getattr(case.inputs, name) for name in ("pos_key", "pos_query")}
    arrays = {"query": case.query, "key": case.key, "value": case.value}
    arrays |= {name: table for name, table in tables.items() if table is not None}

    def run(arrays: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        def context(arrays: dict[str, jax.Array]) -> jax.Array:
            inputs = case.inputs.replace(**{name: arrays.get(name) for name in tables})
            return attend(arrays["query"], arrays["key"], arrays["value"], inputs)

        out, backward = jax.vjp(context, arrays)
        return out, backward(case.cotangent)[0]

    return jax.jit(run)(arrays)


@contextlib.contextmanager
def interpreted_kernels() -> Iterator[None]:
    """Runs TPU kernels in interpret mode: uninitialized memory is NaN, and a read out of bounds raises."""
    parameters = pltpu.InterpretParams(out_of_bounds_reads="raise", uninitialized_memory="nan")
    with pltpu.force_tpu_interpret_mode(parameters):
        yield


def relative_error(result: jax.Array, expected: jax.Array) -> float:
    """Norm of the difference divided by the norm of what is expected."""
    wide, expected_wide = np.asarray(result, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(wide - expected_wide) / max(np.linalg.norm(expected_wide), 1e-30))


def assert_gradients_near(gradients: dict[str, jax.Array], expected: dict[str, jax.Array], tolerance: float) -> None:
    """Asserts that every gradient has its dtype and a relative error below the tolerance.

    A gradient that is zero in exact arithmetic must be small: the weight of a single token is 1 whatever its scores.
    """
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        if jnp.abs(expected[name]).max() > 1e-6:
            assert relative_error(gradient, expected[name]) < tolerance, name
        else:
            assert jnp.abs(gradient).max() < 1e-6, name
