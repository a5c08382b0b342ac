import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.engine.optimizer import build_optimizer, decay_mask, schedule

from ...support.golden_cases import assert_close, load


@pytest.mark.parametrize(
    "name", [n.removeprefix("outputs/") for n in load("lr_schedules").arrays if n.startswith("outputs/")]
)
def test_schedules_equal_the_official_ones(name: str) -> None:
    case = load("lr_schedules")
    kind, words = name.split("/")
    total, warmup, end = (float(re.sub("[a-z]", "", word)) for word in words.split("_"))
    config = OptimizerConfig(schedule=kind, warmup=warmup, schedule_end=end)  # type: ignore[arg-type]
    multipliers = jax.vmap(schedule(config, total_steps=int(total)))(case.arrays["inputs/steps_total20"])
    np.testing.assert_allclose(multipliers, case.arrays[f"outputs/{name}"], atol=1e-6)


@pytest.mark.parametrize("variant", ["plain", "clip_schedule"])
def test_updates_and_moments_equal_xadam(variant: str) -> None:
    case = load("xadam")
    settings, options = case.config, case.config["variants"][variant]
    config = OptimizerConfig(
        learning_rate=settings["learning_rate"],
        schedule="warmup_linear" if variant == "clip_schedule" else "warmup_constant",
        warmup=options["warmup_proportion"] if variant == "clip_schedule" else 0,
        weight_decay=settings["weight_decay"],
        max_grad_norm=options["max_grad_norm"],
        decay_embedding_delta=True,
    )
    total = options["t_total"] if options["t_total"] > 0 else 100
    optimizer = build_optimizer(config, total_steps=total)

    def tree(prefix: str) -> dict:
        leaves = {"weight": "kernel", "bias": "bias", "_weight": "delta"}
        params: dict = {}
        for name, array in case.group(prefix).items():
            module, leaf = name.rsplit(".", 1)
            leaf = "scale" if module.endswith("LayerNorm") and leaf == "weight" else leaves[leaf]
            params.setdefault(module, {})[leaf] = jnp.asarray(array)
        return params

    params = tree("weights/")
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for number in range(1, 6):
        updates, state = update(tree(f"inputs/step{number}/grads/"), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        expected = tree(f"outputs/{variant}/step{number}/params/")
        jax.tree.map(lambda actual, leaf, n=number: assert_close(actual, leaf, 1e-5, f"step {n}"), params, expected)
    moments = state[1]
    jax.tree.map(
        lambda actual, leaf: assert_close(actual, leaf, 1e-5), moments.mean, tree(f"outputs/{variant}/step5/m/")
    )
    jax.tree.map(
        lambda actual, leaf: assert_close(actual, leaf, 1e-5), moments.square, tree(f"outputs/{variant}/step5/v/")
    )


def test_biases_norms_and_deltas_do_not_decay() -> None:
    params = {"dense": {"kernel": 0, "bias": 0}, "layer_norm": {"scale": 0, "bias": 0}, "word": {"delta": 0}}
    mask = {"dense": {"kernel": True, "bias": False}, "layer_norm": {"scale": False, "bias": False}}
    assert decay_mask(params) == mask | {"word": {"delta": False}}
    assert decay_mask(params, deltas=True) == mask | {"word": {"delta": True}}


def test_bias_correction_makes_the_first_step_the_learning_rate() -> None:
    config = OptimizerConfig(
        learning_rate=0.1, schedule="warmup_constant", warmup=0, weight_decay=0, max_grad_norm=0, bias_correction=True
    )
    optimizer = build_optimizer(config, total_steps=10)
    params = {"kernel": jnp.ones(3)}
    updates, _ = optimizer.update({"kernel": jnp.array([0.5, -2.0, 1.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [-0.1, 0.1, -0.1], rtol=1e-4)


def test_the_default_schedule_has_no_jump() -> None:
    config = OptimizerConfig(warmup=100)
    values = jax.vmap(schedule(config, total_steps=1000))(jnp.arange(1000))
    assert jnp.abs(jnp.diff(values)).max() < 0.0101
    assert values[100] == 1


def test_a_warmup_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup of 50 steps does not fit into 20 steps"):
        build_optimizer(OptimizerConfig(warmup=50), total_steps=20)


def test_no_steps_have_no_schedule_and_no_warmup_that_is_too_long() -> None:
    assert schedule(OptimizerConfig(warmup=50), total_steps=0)(0) == 0
    with pytest.raises(ValueError, match="total_steps is -1; it must be at least 0"):
        schedule(OptimizerConfig(), total_steps=-1)
