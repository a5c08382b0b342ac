"""Tests that the step compiled ahead of time is the step of a run, and the checks of its settings."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.compile_ahead.step_program import StepConfig, build
from deberta_jax.train.configs import MeshConfig

from ...support.small_models import SMALL


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "small.json"
    path.write_text(json.dumps(SMALL.replace(num_hidden_layers=2).to_json()))
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        {"task": "finetune", "num_labels": 1, "vocab_size": 128},
        {"accumulation": 2, "remat": True},
        pytest.param({"task": "mlm"}, marks=pytest.mark.slow),
    ],
)
def test_step_takes_the_described_arguments_and_returns_the_same_state(model: str, options: dict[str, Any]) -> None:
    """Only traces the step, as a run does before it compiles it."""
    config = StepConfig(model=model, global_batch=16, sequence_length=16, dtype="float32", **options)
    program = build(config, jax.devices())
    with jax.set_mesh(program.mesh):
        state, metrics = jax.eval_shape(program.step, program.state, program.batch)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), program.state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == shapes
    assert all(value.shape == () for value in metrics.values())
    assert program.flops > program.relative_flops > 0


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"task": "finetune", "num_labels": 3}, marks=pytest.mark.slow),
        pytest.param({"accumulation": 2, "remat": True}, marks=pytest.mark.long),
        pytest.param({"task": "mlm"}, marks=pytest.mark.long),
    ],
)
def test_step_runs_on_arrays_of_the_described_shapes(model: str, options: dict[str, Any]) -> None:
    config = StepConfig(model=model, global_batch=16, sequence_length=16, dtype="float32", **options)
    program = build(config, jax.devices())

    def zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    state, metrics = program.step(jax.tree.map(zeros, program.state), jax.tree.map(zeros, program.batch))
    assert int(state.step) == 1
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), program.state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state) == described
    assert all(bool(jnp.isfinite(value)) for value in metrics.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 12}, r"global_batch 12 is not divisible by the mesh axis data of size 8; .* multiple of 8"),
        (
            {"global_batch": 12, "mesh": MeshConfig(fsdp=2)},
            r"global_batch / data 3 is not divisible by the mesh axis fsdp of size 2; .* 8",
        ),
        ({"global_batch": 15, "accumulation": 2}, r"global_batch 15 is not divisible by accumulation of size 2; .* 16"),
        ({"global_batch": 8, "mesh": MeshConfig(fsdp=3)}, "fsdp 3 .* 8 devices"),
    ],
)
def test_what_does_not_divide_the_batch_is_named(model: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(StepConfig(model=model, **options), jax.devices())


@pytest.mark.parametrize("name", ["global_batch", "sequence_length", "accumulation", "num_labels"])
def test_counts_below_one_are_errors(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 0; it must be at least 1"):
        StepConfig(**{name: 0})
