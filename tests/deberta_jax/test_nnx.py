"""Models wrapped for NNX: the same numbers and gradients as in Linen."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deberta_jax import (
    Deberta,
    DebertaConfig,
    DebertaForMaskedLM,
    DebertaForSequenceClassification,
    load_pretrained,
    save_pretrained,
)

from ..support.small_models import random_params

CONFIG = DebertaConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=16,
    relative_attention=True,
    pos_att_type=("c2p", "p2c"),
    position_buckets=8,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    position_biased_input=False,
    conv_kernel_size=3,
    initializer_range=0.3,
    mlm_head="bert",
)
IDS = jnp.arange(1, 21).reshape(2, 10)
MASK = jnp.ones_like(IDS).at[1, 7:].set(0)


def wrap(model) -> nnx.bridge.ToNNX:
    """Wraps a model; compiled, because otherwise `lazy_init` runs it op by op."""
    return nnx.jit(lambda: nnx.bridge.ToNNX(model, rngs=nnx.Rngs(params=0, dropout=1)).lazy_init(IDS, MASK))()


def to_nnx(model, params: dict) -> nnx.bridge.ToNNX:
    """Wraps a model with these parameters."""
    wrapped = wrap(model)
    nnx.update(wrapped, nnx.State(params))
    return wrapped


def test_outputs_equal_those_of_linen():
    model = Deberta(CONFIG)
    params = random_params(model, IDS)
    options = {"output_hidden_states": True, "output_attentions": True}
    want = jax.jit(lambda params: model.apply({"params": params}, IDS, MASK, **options))(params)
    got = nnx.jit(lambda wrapped: wrapped(IDS, MASK, **options))(to_nnx(model, params))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-6)


def test_gradients_equal_those_of_linen():
    model = DebertaForMaskedLM(CONFIG)
    params = random_params(model, IDS)

    def loss(logits: jax.Array) -> jax.Array:
        return jnp.mean(MASK[..., None] * logits**2)

    want = jax.jit(jax.grad(lambda params: loss(model.apply({"params": params}, IDS, MASK).logits)))(params)
    got = nnx.jit(nnx.grad(lambda wrapped: loss(wrapped(IDS, MASK).logits)))(to_nnx(model, params))
    got = nnx.to_pure_dict(got)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6 * largest)


def test_dropout_draws_from_the_wrapped_rngs():
    wrapped = wrap(Deberta(CONFIG))
    run = nnx.jit(lambda wrapped, train: wrapped(IDS, MASK, train=train).last_hidden_state, static_argnums=1)
    first, second = (run(wrapped, True) for _ in range(2))
    assert float(jnp.abs(first - second).max()) > 0.01
    np.testing.assert_array_equal(run(wrapped, False), run(wrapped, False))


class Tagger(nnx.Module):
    """Research code: a new NNX head on a pretrained encoder."""

    def __init__(self, encoder: nnx.bridge.ToNNX, width: int, *, rngs: nnx.Rngs):
        self.encoder = encoder
        self.out = nnx.Linear(width, 5, rngs=rngs)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        return self.out(self.encoder(input_ids, attention_mask).last_hidden_state)


def test_nnx_head_trains_on_saved_weights(tmp_path):
    saved = random_params(DebertaForSequenceClassification(CONFIG), IDS)
    save_pretrained(tmp_path, CONFIG, saved)
    config, params = load_pretrained(tmp_path)
    tagger = Tagger(to_nnx(Deberta(config), params["deberta"]), config.hidden_size, rngs=nnx.Rngs(3))
    hidden = jax.jit(Deberta(CONFIG).apply)({"params": saved["deberta"]}, IDS, MASK).last_hidden_state
    want = hidden @ tagger.out.kernel[...] + tagger.out.bias[...]
    np.testing.assert_allclose(nnx.jit(lambda module: module(IDS, MASK))(tagger), want, atol=1e-5)
    grads = nnx.to_pure_dict(nnx.jit(nnx.grad(lambda module: jnp.sum(module(IDS, MASK) ** 2)))(tagger))
    assert float(jnp.abs(grads["encoder"]["embeddings"]["word_embeddings"]["embedding"]).max()) > 0


def test_wrong_shapes_are_named_as_in_linen(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # users do not run with the checks of our tests
    wrapped = to_nnx(Deberta(CONFIG), random_params(Deberta(CONFIG), IDS))
    with pytest.raises(ValueError, match="it must be that of input_ids"):
        wrapped(IDS, MASK[:, :3])
