"""Adam's moments in bfloat16: unbiased, the same after a restart and on a mesh."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.random import element_bits
from deberta_jax.sharding import make_mesh, named_shardings
from deberta_jax.train.checkpoints.checkpointer import Checkpointer
from deberta_jax.train.checkpoints.storage_faults import CheckpointError
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.engine.narrow_moments import round_stochastically
from deberta_jax.train.engine.optimizer import apply_gradients, build_optimizer, optimizer_identity

from ...support.checkpoint_states import abstract

WIDE = OptimizerConfig(learning_rate=1e-2, schedule="warmup_constant", warmup=0, max_grad_norm=0)
NARROW = dataclasses.replace(WIDE, moment_dtype="bfloat16")


def bits(shape: tuple[int, ...]) -> jax.Array:
    return element_bits(shape, jnp.uint32(1), jnp.uint32(2))


def test_rounding_at_random_is_exact_on_average_and_ends_at_a_neighbor() -> None:
    spacing = 2.0**-7  # of bfloat16 from 1 to 2
    for share in (0.0, 0.25, 0.9):
        x = jnp.full((40_000,), 1 + share * spacing, jnp.float32)
        rounded = round_stochastically(x, bits(x.shape)).astype(jnp.float32)
        assert set(np.unique(rounded)) <= {1, 1 + spacing}
        error = 5 * spacing * np.sqrt(share * (1 - share) / x.size)
        assert abs(float(rounded.mean()) - float(x[0])) <= error + 1e-7


def test_rounding_at_random_keeps_what_bfloat16_has_and_what_is_not_finite() -> None:
    exact = jnp.array([0.0, -0.0, 1.5, -(2.0**-20), 3e38, jnp.inf, -jnp.inf, jnp.nan]).astype(jnp.bfloat16)
    wide = exact.astype(jnp.float32)
    np.testing.assert_array_equal(round_stochastically(wide, bits(exact.shape)).astype(jnp.float32), wide)
    nan = jax.lax.bitcast_convert_type(jnp.full((1000,), 0x7FFFFFFF, jnp.uint32), jnp.float32)
    assert jnp.isnan(round_stochastically(nan, bits(nan.shape))).all()


def second_moments(config: OptimizerConfig, *, steps: int) -> tuple[jax.Array, jax.Array]:
    """Returns the second moments after equal gradients of 1, and the last updates."""
    optimizer = build_optimizer(config, total_steps=10 * steps)
    params = {"kernel": jnp.zeros((16, 64))}
    grads = jax.tree.map(jnp.ones_like, params)

    def step(_: Any, carry: tuple) -> tuple:
        return optimizer.update(grads, carry[1], params)

    updates, state = jax.jit(lambda: jax.lax.fori_loop(0, steps, step, (grads, optimizer.init(params))))()
    moments = state[1] if config.moment_dtype == "float32" else state[1].moments
    return (moments.nu if config.bias_correction else moments.square)["kernel"], updates["kernel"]


@pytest.mark.parametrize("bias_correction", [False, True])
def test_moments_follow_float32_where_rounding_to_nearest_would_stand_still(bias_correction: bool) -> None:
    """After 1,000 steps the second moment is 0.63; its steps are below half of the spacing of bfloat16 from 0.25 on."""
    wide, narrow = (dataclasses.replace(config, bias_correction=bias_correction) for config in (WIDE, NARROW))
    exact, exact_updates = second_moments(wide, steps=1000)
    rounded, updates = second_moments(narrow, steps=1000)
    assert rounded.dtype == jnp.bfloat16
    assert updates.dtype == jnp.float32
    np.testing.assert_allclose(exact, 1 - 0.999**1000, rtol=1e-4)
    mean = rounded.astype(jnp.float32).mean()
    np.testing.assert_allclose(mean, exact.mean(), rtol=2e-3)
    np.testing.assert_allclose(updates.mean(), exact_updates.mean(), rtol=2e-3)
    assert len(np.unique(rounded)) > 1  # every element has its own bits


def test_moments_take_half_of_the_memory() -> None:
    params = {"kernel": jnp.zeros((16, 64)), "bias": jnp.zeros(64)}
    sizes = [
        sum(leaf.nbytes for leaf in jax.tree.leaves(build_optimizer(config, total_steps=1).init(params)) if leaf.ndim)
        for config in (WIDE, NARROW)
    ]
    assert sizes[1] == sizes[0] // 2


def test_a_run_that_resumes_equals_one_that_never_stopped_and_needs_the_same_dtype(tmp_path: Path) -> None:
    optimizer = build_optimizer(NARROW, total_steps=10)
    params = {"kernel": jnp.ones((16, 64))}

    @jax.jit
    def step(number: int, state: Any) -> Any:
        grads = {"kernel": jax.random.normal(jax.random.key(number), (16, 64))}
        return apply_gradients(optimizer, grads, state[1], state[0])[:2]

    def folder(config: OptimizerConfig) -> Checkpointer:
        return Checkpointer(tmp_path, keep=1, identity={"optimizer": optimizer_identity(config)})

    states: list[Any] = [(params, optimizer.init(params))]
    for number in range(4):
        states.append(step(number, states[-1]))
    with folder(NARROW) as checkpointer:
        checkpointer.save(2, states[2], {})
    with folder(NARROW) as checkpointer:
        restored = checkpointer.restore(abstract(states[0]))
    assert restored is not None
    assert {leaf.dtype for leaf in jax.tree.leaves(restored.state[1][1].moments)} == {jnp.dtype(jnp.bfloat16)}
    jax.tree.map(np.testing.assert_array_equal, step(3, step(2, restored.state)), states[4])
    with (
        folder(WIDE) as checkpointer,
        pytest.raises(CheckpointError, match=r'optimizer.moment_dtype is "bfloat16" there'),
    ):
        checkpointer.restore(abstract(states[0]))


def test_a_mesh_rounds_as_one_device() -> None:
    """The bits depend on an element's position in the whole array, however it is split."""
    optimizer = build_optimizer(NARROW, total_steps=10)
    keys = jax.random.split(jax.random.key(0), 3)
    path = ("deberta", "embeddings", "word_embeddings")

    def tree(key: jax.Array) -> dict:
        leaves: Any = {"embedding": jax.random.normal(key, (64, 16))}
        for name in reversed(path):
            leaves = {name: leaves}
        return leaves

    params = tree(keys[0])
    step = jax.jit(lambda grads, state, params: apply_gradients(optimizer, grads, state, params)[:2])

    def run(params: dict, state: Any) -> Any:
        for key in keys[1:]:
            params, state = step(tree(key), state, params)
        return params, state

    want = run(params, optimizer.init(params))
    mesh = make_mesh(data=1, zero=2, fsdp=2, tensor=2)
    placed = {"params": params, "opt_state": optimizer.init(params)}
    placed = jax.device_put(placed, named_shardings(placed, mesh))
    with jax.set_mesh(mesh):
        got = run(placed["params"], placed["opt_state"])
    square = got[1][1].moments.square
    for name in path:
        square = square[name]
    assert square["embedding"].addressable_shards[0].data.size == 64 * 16 // 8
    for actual, leaf in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(actual, leaf)
