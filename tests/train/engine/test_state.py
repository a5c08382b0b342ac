"""The state before the first step: what creates it, and where its arrays lie."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deberta_jax import DebertaForMaskedLM
from deberta_jax.sharding import make_mesh, named_shardings
from deberta_jax.train.engine.state import TrainState, place_state
from deberta_jax.warm_start import initial_params

from ...support.compilations import compiled_programs
from ...support.small_models import SMALL

IDS = np.ones((1, 4), np.int32)
MODEL = DebertaForMaskedLM(SMALL)
OPTIMIZER = optax.adam(1e-3)


def draw(weights: dict | None) -> dict:
    return {"model": initial_params(MODEL, jax.random.key(1), IDS, weights)}


def create(params: dict) -> TrainState:
    return TrainState.create(params, {"model": OPTIMIZER.init(params["model"])}, seed=1)


@pytest.mark.parametrize("axes", [{"data": 1}, {"data": 2, "zero": 2, "fsdp": 2}])
def test_the_state_of_one_process_is_placed_and_equals_a_jitted_one(axes: dict) -> None:
    mesh = make_mesh(**axes, devices=jax.devices()[: int(np.prod(list(axes.values())))])
    placement = named_shardings(jax.eval_shape(lambda: create(draw(None))), mesh)
    with compiled_programs() as programs:
        state = place_state(draw, create, None, placement)
    assert programs.count("create") == 1  # the moments of the optimizer, which are zero
    jax.tree.map(lambda leaf, sharding: np.testing.assert_equal(leaf.sharding, sharding), state, placement)
    expected = jax.jit(lambda: create(draw(None)))()
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    again = jax.jit(lambda state: jax.tree.map(jnp.copy, state), donate_argnums=0)(state)  # as a step donates it
    jax.tree.map(np.testing.assert_array_equal, again, expected)
