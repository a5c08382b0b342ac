"""The encoder against the official code, and what must hold of it whatever the numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import Deberta, DebertaConfig, attention
from deberta_jax.attention import disentangled_attention, relative_shift
from deberta_jax.layers import dropout

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

    (value, out), grads = jax.jit(jax.value_and_grad(weighted_sum, has_aux=True))(params)
    assert_close(np.asarray(out.hidden_states[0])[real], arrays["outputs/embeddings"][real], 1e-5, "embeddings")
    np.testing.assert_array_equal(np.asarray(out.hidden_states[0])[~real], 0)
    for layer in range(1, config.num_hidden_layers + 1):
        hidden, probabilities = out.hidden_states[layer], out.attentions[layer - 1]
        assert_close(np.asarray(hidden)[real], arrays[f"outputs/hidden_states_{layer}"][real], 1e-5, f"layer {layer}")
        assert_close(probabilities, arrays[f"outputs/attention_probs_{layer}"], 1e-5, f"attention {layer}")
    np.testing.assert_allclose(value, arrays["outputs/cotangent_sum"], rtol=1e-4, atol=1e-4)
    # Without p2c a key bias shifts whole rows of scores, too.
    invariant = INVARIANT if "p2c" in config.pos_att_type else (*INVARIANT, "key_proj/bias")
    assert_gradients_close(grads, case.params("grads/", config)["deberta"], 1e-4, invariant)


def test_v1_hub_layout_gives_the_same_parameters() -> None:
    case = load("encoder_v1")
    config = DebertaConfig.from_json(case.config)
    hub, ours = case.params("weights_v1hub/", config), case.params("weights/", config)
    jax.tree.map(np.testing.assert_array_equal, hub, ours)


def init(config: DebertaConfig, **attributes):
    """A compiled forward of fresh parameters."""
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_leaves_real_tokens_alone(variant: str) -> None:
    run, ids = init(VARIANTS[variant]), tokens(9)
    padded = jnp.pad(ids, ((0, 0), (0, 5)), constant_values=7)
    mask = jnp.pad(jnp.ones_like(ids), ((0, 0), (0, 5)))
    np.testing.assert_allclose(run(padded, mask)[:, :9], run(ids), atol=1e-5)


def test_left_padding_too_where_positions_are_relative() -> None:
    run, ids = init(SMALL), tokens(9)
    padded = jnp.pad(ids, ((0, 0), (5, 0)), constant_values=7)
    mask = jnp.pad(jnp.ones_like(ids), ((0, 0), (5, 0)))
    np.testing.assert_allclose(run(padded, mask)[:, 5:], run(ids), atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_packed_pair_equals_two_single_runs(variant: str) -> None:
    run, first, second = init(VARIANTS[variant]), tokens(6), tokens(8, seed=2)
    packed = jnp.concatenate([first, second, jnp.zeros((2, 2), jnp.int32)], axis=1)
    segments = jnp.array([[1] * 6 + [2] * 8 + [0] * 2] * 2)
    out = run(packed, segment_ids=segments)
    np.testing.assert_allclose(out[:, :6], run(first), atol=1e-5)
    np.testing.assert_allclose(out[:, 6:14], run(second), atol=1e-5)


def test_the_order_of_tokens_matters_only_through_relative_positions() -> None:
    run, ids = init(SMALL), tokens(10)
    positions = jnp.broadcast_to(jnp.arange(10) + 17, ids.shape)
    np.testing.assert_array_equal(run(ids, position_ids=positions), run(ids))
    assert jnp.abs(run(ids[:, ::-1])[:, ::-1] - run(ids)).max() > 0.1


@pytest.mark.parametrize("variant", ["v3", "v2 conv"])
def test_remat_equals_plain_in_training_gradients_included(variant: str) -> None:
    config, ids = VARIANTS[variant].replace(num_hidden_layers=2), tokens(12)
    params = jax.jit(Deberta(config).init)(jax.random.key(0), ids)["params"]

    def run(remat: bool):
        def loss(params):
            out = Deberta(config, remat=remat).apply(
                {"params": params}, ids, train=True, rngs={"dropout": jax.random.key(3)}
            )
            return jnp.sin(out.last_hidden_state).sum()

        return jax.jit(jax.value_and_grad(loss))

    (got, grads), (want, want_grads) = run(True)(params), run(False)(params)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert_gradients_close(grads, want_grads, 1e-5)
    kept, recomputed = (run(remat).lower(params).as_text().count("stablehlo.dot_general") for remat in (False, True))
    assert recomputed > kept


def test_bfloat16_stays_near_float32_and_parameters_stay_float32() -> None:
    ids = tokens(12)
    wide, narrow = init(SMALL)(ids), init(SMALL, dtype=jnp.bfloat16)(ids)
    assert narrow.dtype == jnp.bfloat16
    assert jnp.linalg.norm(narrow - wide) <= 3e-2 * jnp.linalg.norm(wide)
    params = jax.eval_shape(Deberta(SMALL, dtype=jnp.bfloat16).init, jax.random.key(0), ids)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_dropout_acts_in_training_alone_and_follows_its_key() -> None:
    run, ids = init(SMALL), tokens(12)
    one = run(ids, train=True, rngs={"dropout": jax.random.key(1)})
    again = run(ids, train=True, rngs={"dropout": jax.random.key(1)})
    other = run(ids, train=True, rngs={"dropout": jax.random.key(2)})
    np.testing.assert_array_equal(one, again)
    assert jnp.abs(one - other).max() > 0.1
    assert jnp.abs(one - run(ids)).max() > 0.1


def test_relative_shift_against_its_definition() -> None:
    x = np.arange(2 * 5 * 9).reshape(2, 5, 9)
    want = np.stack([np.stack([x[b, i, 4 - i : 9 - i] for i in range(5)]) for b in range(2)])
    np.testing.assert_array_equal(relative_shift(jnp.asarray(x)), want)


def test_selected_queries_equal_rows_of_the_full_attention() -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (jax.random.normal(key, (2, 11, 3, 8)) for key in keys[:3])
    pos_key, pos_query = (jax.random.normal(key, (21, 3, 8)) for key in keys[3:])
    segments = jnp.array([[1] * 6 + [2] * 5, [1] * 9 + [0] * 2])
    common = {"pos_key": pos_key, "pos_query": pos_query, "rows": np.arange(21)[::-1], "key_segments": segments}
    full, _ = disentangled_attention(q, k, v, query_segments=segments, **common)
    chosen = jnp.array([[0, 5, 6, 10], [3, 3, 8, 10]])
    some, _ = disentangled_attention(
        jnp.take_along_axis(q, chosen[..., None, None], axis=1),
        k,
        v,
        query_segments=jnp.take_along_axis(segments, chosen, axis=1),
        query_positions=chosen,
        **common,
    )
    np.testing.assert_allclose(some, jnp.take_along_axis(full, chosen[..., None, None], axis=1), atol=1e-5)
    np.testing.assert_array_equal(full[1, 9:], 0)  # padding queries get zero context


def test_bad_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # users do not run with the checks of our tests
    run, ids = init(SMALL), tokens(4)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 5\); it must be that of input_ids"):
        run(ids, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="not both"):
        run(ids, jnp.ones((2, 4)), segment_ids=jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="must be one of auto, xla, pallas"):
        init(SMALL, attention_implementation="cuda")(ids)


def test_no_index_array_of_the_scores_size() -> None:
    """Nowhere in the program does an integer array [B, N, S, S] appear."""
    ids = tokens(24, rows=2)
    lowered = init(SMALL).lower(ids).as_text()
    assert "4x2x24x24xf32" in lowered
    assert "4x2x24x24xi32" not in lowered


def test_both_ways_to_place_relative_products_agree() -> None:
    """The gather of CPU and GPU and the shift of TPU."""
    keys = jax.random.split(jax.random.key(0), 2)
    rows = np.array([3, 3, 3, 2, 1, 0, 0, 0, 0])  # distances 4 .. -4 of five tokens
    x, table = jax.random.normal(keys[0], (2, 3, 5, 4)), jax.random.normal(keys[1], (2, 4, 4))
    gathered = attention._content_to_position(x, table, rows, None)
    shifted = relative_shift(attention._per_row(x, table[:, rows]))
    np.testing.assert_allclose(gathered, shifted, atol=1e-6)
    gathered = attention._position_to_content(x, table, rows, None)
    shifted = relative_shift(attention._per_row(x, table[:, rows[::-1]])).swapaxes(-1, -2)
    np.testing.assert_allclose(gathered, shifted, atol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_is_at_its_rate_unbiased_and_uncorrelated(rate: float) -> None:
    x = jnp.ones((64, 128, 256))
    one = np.asarray(dropout(x, rate=rate, key=jax.random.key(1)))
    other = np.asarray(dropout(x, rate=rate, key=jax.random.key(2)))
    kept = one != 0
    np.testing.assert_allclose(one[kept], 1 / (1 - rate), rtol=1e-6)
    deviation = (rate * (1 - rate) / one.size) ** 0.5
    assert abs(1 - kept.mean() - rate) < 5 * deviation
    for axis in range(3):  # every slice at its rate: no stripes
        shares = 1 - np.moveaxis(kept, axis, 0).reshape(kept.shape[axis], -1).mean(axis=1)
        assert np.abs(shares - rate).max() < 6 * (rate * (1 - rate) * kept.shape[axis] / one.size) ** 0.5
    centerd = kept - kept.mean()
    for lag in (1, 2, 255, 256, 257, 128 * 256):
        flat = centerd.ravel()
        assert abs((flat[:-lag] * flat[lag:]).mean()) < 6 * rate * (1 - rate) / one.size**0.5
    assert abs((centerd * ((other != 0) - (other != 0).mean())).mean()) < 6 * rate * (1 - rate) / one.size**0.5
