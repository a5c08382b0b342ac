"""The encoder against the official code, and properties that hold for any parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import Deberta, DebertaConfig
from deberta_jax.kernels import kept_bytes

from ..support.golden_cases import INVARIANT, assert_close, assert_gradients_close, load
from ..support.small_models import SMALL

CASES = [
    "encoder_v1",
    "encoder_v1_bias",
    "encoder_v1_long",
    "encoder_v2_conv",
    "encoder_v3",
    "encoder_v3_holes",
    "encoder_v3_long",
    "encoder_c2p_only",
    "encoder_bert",
]


@pytest.mark.parametrize("name", CASES)
def test_golden_hidden_states_attentions_and_gradients(name: str) -> None:
    case = load(name)
    config, arrays = DebertaConfig.from_json(case.config), case.arrays
    real = arrays["inputs/input_mask"].astype(bool)
    params, model = case.params("weights/", config)["deberta"], Deberta(config)

    def weighted_sum(params):
        out = model.apply(
            {"params": params},
            arrays["inputs/input_ids"],
            arrays["inputs/input_mask"],
            token_type_ids=arrays.get("inputs/token_type_ids"),
            output_hidden_states=True,
            output_attentions=True,
        )
        return (out.last_hidden_state * arrays["inputs/cotangent"] * real[..., None]).sum(), out

    (total, out), grads = jax.jit(jax.value_and_grad(weighted_sum, has_aux=True))(params)
    assert_close(np.asarray(out.hidden_states[0])[real], arrays["outputs/embeddings"][real], 1e-5, "embeddings")
    np.testing.assert_array_equal(np.asarray(out.hidden_states[0])[~real], 0)
    for layer in range(1, config.num_hidden_layers + 1):
        hidden, probabilities = out.hidden_states[layer], out.attentions[layer - 1]
        assert_close(np.asarray(hidden)[real], arrays[f"outputs/hidden_states_{layer}"][real], 1e-5, f"layer {layer}")
        assert_close(probabilities, arrays[f"outputs/attention_probs_{layer}"], 1e-5, f"attention {layer}")
    np.testing.assert_allclose(total, arrays["outputs/cotangent_sum"], rtol=1e-4, atol=1e-4)
    # Without p2c a key bias shifts whole rows of scores, too.
    invariant = INVARIANT if "p2c" in config.pos_att_type else (*INVARIANT, "key_proj/bias")
    assert_gradients_close(grads, case.params("grads/", config)["deberta"], 1e-4, invariant)


def test_hub_layout_of_v1_gives_the_same_parameters() -> None:
    case = load("encoder_v1")
    config = DebertaConfig.from_json(case.config)
    from_hub, from_official = case.params("weights_v1hub/", config), case.params("weights/", config)
    jax.tree.map(np.testing.assert_array_equal, from_hub, from_official)


@functools.cache
def forward(config: DebertaConfig, **attributes):
    """Returns a compiled forward pass with fresh parameters."""
    model = Deberta(config, **attributes)
    params = jax.jit(Deberta(config).init)(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]

    @functools.partial(jax.jit, static_argnames="train")
    def run(*args, **kwargs) -> jax.Array:
        return model.apply({"params": params}, *args, **kwargs).last_hidden_state

    return run


def tokens(length: int, rows: int = 2, seed: int = 1) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (rows, length), 5, 60)


VARIANTS = {
    "v3": SMALL,
    "v2 conv": SMALL.replace(conv_kernel_size=3, conv_act="gelu"),
    "v1": SMALL.replace(position_buckets=-1, norm_rel_ebd="none", share_att_key=False),
    "p2c": SMALL.replace(pos_att_type="p2c"),
    "bert": SMALL.replace(relative_attention=False, pos_att_type=(), position_biased_input=True),
}


@pytest.mark.parametrize("left", [0, 5])
def test_padding_does_not_change_real_tokens(left: int) -> None:
    """Padding on the left as well: the positions are relative."""
    run, ids, padding = forward(SMALL), tokens(9), ((0, 0), (left, 5 - left))
    padded = jnp.pad(ids, padding, constant_values=7)
    hidden = run(padded, jnp.pad(jnp.ones_like(ids), padding))
    np.testing.assert_allclose(hidden[:, left : left + 9], run(ids), atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_pair_with_padding_equals_two_single_runs(variant: str) -> None:
    run, first, second = forward(VARIANTS[variant]), tokens(7), tokens(7, seed=2)
    packed = jnp.concatenate([first, second, jnp.full((2, 2), 7)], axis=1)
    segments = jnp.array([[1] * 7 + [2] * 7 + [0] * 2] * 2)
    hidden = run(packed, segment_ids=segments)
    np.testing.assert_allclose(hidden[:, :7], run(first), atol=1e-5)
    np.testing.assert_allclose(hidden[:, 7:14], run(second), atol=1e-5)


def test_order_of_tokens_matters_only_through_relative_positions() -> None:
    run, ids = forward(SMALL), tokens(9)
    positions = jnp.broadcast_to(jnp.arange(9) + 17, ids.shape)
    np.testing.assert_array_equal(run(ids, position_ids=positions), run(ids))
    assert jnp.abs(run(ids[:, ::-1])[:, ::-1] - run(ids)).max() > 0.1


@pytest.mark.parametrize("variant", ["v3", pytest.param("v2 conv", marks=pytest.mark.slow)])
def test_remat_gives_the_same_loss_and_gradients(variant: str) -> None:
    config, ids = VARIANTS[variant].replace(num_hidden_layers=2), tokens(12)
    params = jax.jit(Deberta(config).init)(jax.random.key(0), ids)["params"]

    def run(remat: bool):
        def loss(params):
            out = Deberta(config, remat=remat).apply(
                {"params": params}, ids, train=True, rngs={"dropout": jax.random.key(3)}
            )
            return jnp.sin(out.last_hidden_state).sum()

        return jax.jit(jax.value_and_grad(loss))

    (loss, grads), (plain_loss, plain_grads) = run(True)(params), run(False)(params)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    assert_gradients_close(grads, plain_grads, 1e-5)
    stored, recomputed = (run(remat).lower(params).as_text().count("stablehlo.dot_general") for remat in (False, True))
    assert recomputed > stored


def test_bfloat16_stays_near_float32_and_parameters_stay_float32() -> None:
    ids = tokens(9)
    wide, narrow = forward(SMALL)(ids), forward(SMALL, dtype=jnp.bfloat16)(ids)
    assert narrow.dtype == jnp.bfloat16
    assert jnp.linalg.norm(narrow - wide) <= 3e-2 * jnp.linalg.norm(wide)
    params = jax.eval_shape(Deberta(SMALL, dtype=jnp.bfloat16).init, jax.random.key(0), ids)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_dropout_acts_in_training_only_and_follows_its_key() -> None:
    run, ids = forward(SMALL), tokens(9)
    dropped = run(ids, train=True, rngs={"dropout": jax.random.key(1)})
    repeated = run(ids, train=True, rngs={"dropout": jax.random.key(1)})
    with_other_key = run(ids, train=True, rngs={"dropout": jax.random.key(2)})
    np.testing.assert_array_equal(dropped, repeated)
    assert jnp.abs(dropped - with_other_key).max() > 0.1
    assert jnp.abs(dropped - run(ids)).max() > 0.1


def test_bad_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # users do not run with the checks of our tests
    run, ids = forward(SMALL), tokens(4)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 5\); it must be that of input_ids"):
        run(ids, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="not both"):
        run(ids, jnp.ones((2, 4)), segment_ids=jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="must be one of auto, xla, pallas"):
        forward(SMALL, attention_implementation="cuda")(ids)


def test_program_has_no_index_array_of_the_size_of_the_scores() -> None:
    """No integer array [B, N, S, S] appears in the program."""
    ids = tokens(24, rows=2)
    lowered = forward(SMALL).lower(ids).as_text()
    assert "4x2x24x24xf32" in lowered
    assert "4x2x24x24xi32" not in lowered


def test_the_first_layers_keep_their_attention_probabilities() -> None:
    config, ids = SMALL.replace(num_hidden_layers=3), tokens(12)
    params = jax.eval_shape(Deberta(config).init, jax.random.key(0), ids)["params"]

    def residual_bytes(kept_layers: int) -> int:
        model = Deberta(config, jnp.bfloat16, attention_implementation="pallas", kept_layers=kept_layers)

        def backward(params):
            return jax.vjp(lambda params: model.apply({"params": params}, ids).last_hidden_state, params)[1]

        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(backward, params)))

    layer = kept_bytes(config, *ids.shape, dtype=jnp.bfloat16, device_kind="cpu")
    sizes = [residual_bytes(kept_layers) - residual_bytes(0) for kept_layers in (0, 1, 3, 9)]
    assert sizes == [0, layer, 3 * layer, 3 * layer]
