"""Tests the count of floating-point operations."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from deberta_jax import Deberta, DebertaConfig
from deberta_jax.train.compile_ahead.model_flops import (
    attention_flops,
    encoder_flops,
    layer_flops,
    masked_lm_flops,
    without_relative_terms,
)

from ...support.small_models import SMALL
from ...support.xlnet import SMALL as XLNET


def test_attention_of_v3_base() -> None:
    """Four products of 512 x 512 x 64 per head: scores, c2p, p2c, values; 512 table rows are in reach."""
    config = DebertaConfig.named("deberta-v3-base")
    assert attention_flops(config, 512) == 12 * 4 * 2 * 512 * 512 * 64
    assert attention_flops(config, 64) == 12 * 2 * 64 * 64 * (64 + 64 + 127 + 127)
    decoder = masked_lm_flops(config, 512, 77) - encoder_flops(config, 512, 11)
    keys_and_values, head = 2 * 2 * 512 * 768**2, 2 * 77 * 768 * (768 + 128100)
    assert decoder == keys_and_values + 2 * layer_flops(config, 512, 77) + head


def test_relative_terms_of_v3_base() -> None:
    """c2p and p2c are two products of 512 x 512 x 64 per head and layer."""
    config = DebertaConfig.named("deberta-v3-base")
    relative = encoder_flops(config, 512) - encoder_flops(without_relative_terms(config), 512)
    assert relative == 12 * 12 * 2 * 2 * 512 * 512 * 64


@pytest.mark.parametrize("family", ["deberta", "xlnet"])
def test_count_equals_the_products_of_a_traced_encoder(family: str) -> None:
    config = SMALL.replace(relative_attention=False, pos_att_type=(), position_buckets=-1, conv_kernel_size=0)
    shared = 0
    if family == "xlnet":
        config = DebertaConfig.from_json(XLNET)
        shared = config.num_hidden_layers * 2 * 32 * config.hidden_size**2  # the projection of positions
    ids = jnp.ones((1, 16), jnp.int32)
    params = jax.eval_shape(Deberta(config).init, jax.random.key(0), ids)
    jaxpr = jax.make_jaxpr(lambda params: Deberta(config).apply(params, ids, token_type_ids=ids).last_hidden_state)(
        params
    )

    def products(jaxpr: Any) -> int:
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                depth = [equation.invars[0].aval.shape[axis] for axis in contracted]
                total += 2 * equation.outvars[0].aval.size * int(jnp.prod(jnp.array(depth)))
            inner = [getattr(value, "jaxpr", value) for value in jax.tree.leaves(equation.params)]
            total += sum(products(value) for value in inner if hasattr(value, "eqns"))
        return total

    used, _ = dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))  # nobody reads the probabilities
    assert products(used) == encoder_flops(config, 16) + shared
