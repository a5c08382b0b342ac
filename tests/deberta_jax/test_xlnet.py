"""XLNet's encoder and its models (`tests/convert/test_xlnet_names.py` has its parity with transformers)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deberta_jax import Deberta, DebertaConfig, models
from deberta_jax.errors import UserError
from deberta_jax.sharding import make_mesh, named_shardings, place_batch
from deberta_jax.sift import perturbation
from deberta_jax.xlnet import LayerInputs, Queries, sinusoids, xlnet_attention

from ..support.golden_cases import assert_close
from ..support.small_models import random_params
from ..support.xlnet import SMALL, padded_batch

CONFIG = DebertaConfig.from_json({**SMALL, "n_layer": 1, "initializer_range": 0.3})
KEY = jax.random.key(0)


def params_of(model: Any) -> dict[str, Any]:
    return random_params(model, np.ones((1, 4), np.int32))


def test_scores_are_the_sums_of_the_papers_terms() -> None:
    rng, (B, S, N, H) = np.random.default_rng(0), (2, 5, 2, 4)
    content, position, segment, key, value = rng.normal(size=(5, B, S, N, H)).astype(np.float32)
    position_keys, type_keys = rng.normal(size=(2 * S, N, H)), rng.normal(size=(2, N, H))
    types = np.array([[0, 0, 1, 1, 2], [0, 0, 0, 2, 3]])
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    inputs = LayerInputs(jnp.asarray(mask), jnp.asarray(types), jnp.zeros((2 * S, N * H)))
    arrays = (jnp.asarray(array, jnp.float32) for array in (key, value, position_keys, type_keys))
    out = xlnet_attention(Queries(*map(jnp.asarray, (content, position, segment))), *arrays, inputs)
    want = np.zeros((B, N, S, S))
    for b, n, i in np.ndindex(B, N, S):
        scores = np.full(S, -np.inf)
        for j in np.flatnonzero(mask[b]):
            kind = int(types[b, i] != types[b, j])
            terms = content[b, i, n] @ key[b, j, n] + position[b, i, n] @ position_keys[S - 1 - (i - j), n]
            scores[j] = (terms + segment[b, i, n] @ type_keys[kind, n]) / np.sqrt(H)
        if mask[b, i]:
            want[b, n, i] = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert_close(out.probabilities, want, 1e-5)
    assert_close(out.context, np.einsum("bnts,bsnh->btnh", want, value), 1e-5)
    assert not np.asarray(out.context)[1, 0].any()


def test_sinusoids_are_exact_over_long_distances() -> None:
    table = np.asarray(sinusoids(1500, 8))
    distance = np.arange(1499, -1501, -1)[:, None] / 10000 ** (np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(table, np.concatenate([np.sin(distance), np.cos(distance)], axis=1), atol=2e-4)


def test_padding_on_either_side_changes_nothing() -> None:
    model = models.DebertaForSequenceClassification(CONFIG)
    params = params_of(model)
    rng = np.random.default_rng(1)
    ids, types = rng.integers(9, 90, (1, 9)), np.repeat([[0, 1, 2]], [4, 4, 1], axis=1)
    left, right = ((0, 0), (4, 0)), ((0, 0), (0, 4))
    plain = {"input_ids": ids, "token_type_ids": types}
    calls = [plain] + [
        {
            "input_ids": np.pad(ids, side, constant_values=10**6),  # not looked up
            "token_type_ids": np.pad(types, side, constant_values=3),
            "attention_mask": np.pad(np.ones_like(ids), side),
        }
        for side in (left, right)
    ]
    run = jax.jit(lambda params: [model.apply({"params": params}, output_hidden_states=True, **call) for call in calls])
    alone, on_left, on_right = run(params)
    for out in (on_left, on_right):
        assert_close(out.logits, alone.logits, 1e-5)
    assert_close(on_left.hidden_states[-1][:, 4:], alone.hidden_states[-1], 1e-5)
    assert_close(on_right.hidden_states[-1][:, :9], alone.hidden_states[-1], 1e-5)


def test_types_count_only_as_equal_or_different() -> None:
    model = Deberta(CONFIG)
    params = params_of(model)
    ids, types = np.random.default_rng(1).integers(9, 90, (1, 9)), np.repeat([[0, 1]], [4, 5], axis=1)
    variants = [None, np.full((1, 9), 2), types, 7 - types]
    run = jax.jit(
        lambda params: [
            model.apply({"params": params}, ids, token_type_ids=variant).last_hidden_state for variant in variants
        ]
    )
    none, same, pair, swapped = run(params)
    assert_close(same, none, 1e-5)
    np.testing.assert_array_equal(swapped, pair)
    assert np.abs(pair - none).max() > 0.01


def test_a_packed_row_equals_single_runs_and_classifies_its_last_segment() -> None:
    model = models.DebertaForSequenceClassification(CONFIG)
    params = params_of(model)
    ids = np.random.default_rng(0).integers(9, 90, (1, 20))
    segments = np.repeat([[1, 2, 0]], [8, 10, 2], axis=1)
    run = jax.jit(
        lambda params: [
            model.apply({"params": params}, output_hidden_states=True, **call)
            for call in ({"input_ids": ids, "segment_ids": segments}, {"input_ids": ids[:, 8:18]})
        ]
    )
    packed, single = run(params)
    assert_close(packed.hidden_states[-1][:, 8:18], single.hidden_states[-1], 1e-5)
    assert_close(packed.logits, single.logits, 1e-5)


def test_remat_and_a_mesh_change_nothing() -> None:
    batch = {name: np.tile(array, (4, 1))[:8] for name, array in padded_batch(12).items()}
    model = models.DebertaForQuestionAnswering(CONFIG.replace(vocab_size=96))
    params = params_of(model)

    def loss(params: Any, batch: Any, remat: bool = False) -> jax.Array:
        out = model.clone(remat=remat).apply({"params": params}, **batch)
        return (out.start_logits**2 + out.end_logits).sum() / 100  # type: ignore[union-attr]

    gradient = jax.jit(jax.grad(loss), static_argnums=2)
    want = gradient(params, batch, False)
    remat = gradient(params, batch, True)
    mesh = make_mesh(fsdp=2, tensor=4)
    placed = jax.device_put(params, named_shardings(params, mesh))
    sharded = gradient(placed, place_batch(batch, mesh), False)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(want))
    for other in (remat, sharded):
        jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, atol=1e-5 * largest), other, want)


def test_dropout_and_bfloat16() -> None:
    batch, model = padded_batch(12), models.DebertaForTokenClassification(CONFIG)
    params = params_of(model)

    @jax.jit
    def run(params: Any) -> tuple[jax.Array, ...]:
        variables = {"params": params}
        plain = model.apply(variables, **batch).logits  # type: ignore[union-attr]
        first, second = (
            model.apply(variables, **batch, train=True, rngs={"dropout": jax.random.key(seed)}).logits  # type: ignore[union-attr]
            for seed in (0, 1)
        )
        half = model.clone(dtype=jnp.bfloat16).apply(variables, **batch).logits  # type: ignore[union-attr]
        return plain, first, second, half

    plain, first, second, half = map(np.asarray, run(params))
    assert np.abs(first - plain).max() > 0.01
    assert np.abs(first - second).max() > 0.01
    assert half.dtype == np.float32  # logits
    real = batch["attention_mask"].astype(bool)
    assert_close(half[real], plain[real], 0.05)


def test_what_xlnet_has_not_is_refused_by_name() -> None:
    ids = np.ones((1, 4), np.int32)
    with pytest.raises(UserError, match="'pallas'; for XLNet it must be one of auto, xla, because the fused kernels"):
        Deberta(CONFIG, attention_implementation="pallas").init(KEY, ids)
    with pytest.raises(UserError, match="model_type is 'xlnet', which has no head for masked tokens"):
        models.DebertaForMaskedLM(CONFIG).init(KEY, ids)
    with pytest.raises(UserError, match="model_type is 'xlnet', which has no head for replaced tokens"):
        models.DebertaForReplacedTokenDetection(CONFIG).init(KEY, ids)
    model = models.DebertaForTokenClassification(CONFIG)
    with pytest.raises(UserError, match="SiFT perturbs normalized embeddings, which XLNet does not have"):
        model.apply({"params": params_of(model), **perturbation(np.zeros((1, 4, 32), np.float32))}, ids)
    params = params_of(Deberta(CONFIG))
    params["encoder"]["layer_0"]["attention"]["rel_bias"] = np.zeros(3)
    with pytest.raises(UserError, match="encoder/layer_0/attention/rel_bias, which XLNetAttention does not read"):
        Deberta(CONFIG).apply({"params": params}, ids)
    with pytest.raises(UserError, match=r"input_ids has 99 at \[0, 1\]"):
        Deberta(CONFIG).apply({"params": params_of(Deberta(CONFIG))}, np.array([[9, 99]]))


def test_it_learns_a_toy_task() -> None:
    """Learns whether the first text of a pair has a token that the second has, too."""
    model = models.DebertaForSequenceClassification(CONFIG.replace(initializer_range=0.1))
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    ids = rng.integers(9, 50, (64, 8))
    ids[:, 1] = np.where(labels == 1, 60, 70)
    ids[:, -1] = 3
    types = np.repeat([[0, 1, 2]], [4, 3, 1], axis=1).repeat(64, axis=0)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(state: Any, _: Any) -> Any:
        params, moments = state

        def loss(params: Any) -> jax.Array:
            logits = model.apply({"params": params}, ids, token_type_ids=types).logits  # type: ignore[union-attr]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), value

    params = params_of(model)
    _, losses = jax.lax.scan(step, (params, optimizer.init(params)), length=40)
    assert losses[0] > 0.6
    assert losses[-1] < 0.1


def test_batch_and_length_may_be_variables_of_jax_export() -> None:
    model = models.DebertaForSequenceClassification(CONFIG)
    params = params_of(model)

    @jax.jit
    def logits(params: Any, *arrays: Any) -> jax.Array:
        ids, mask, types = arrays
        return model.apply({"params": params}, ids, mask, token_type_ids=types).logits  # type: ignore[union-attr]

    argument = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, length"), jnp.int32)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    program = jax.export.export(logits)(shapes, argument, argument, argument)
    for length in (1, 12):
        batch = padded_batch(length).values()
        assert_close(program.call(params, *batch), logits(params, *batch), 1e-6)
