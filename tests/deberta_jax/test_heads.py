"""Heads, losses and the enhanced mask decoder against the official code."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import (
    Deberta,
    DebertaConfig,
    DebertaForMaskedLM,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
    losses,
)
from deberta_jax.models import locate_tokens

from ..support.golden_cases import INVARIANT, assert_close, assert_gradients_close, load, masked_slots
from ..support.small_models import SMALL


def check(name: str, model_class, loss_of, *, invariant: tuple[str, ...] = INVARIANT, **attributes) -> None:
    """Logits, loss and every gradient of a task head."""
    case = load(name)
    config = DebertaConfig.from_json(case.config)
    model, params = model_class(config, **attributes), case.params("weights/", config)

    def mean_loss(params):
        logits = model.apply(
            {"params": params},
            case.arrays["inputs/input_ids"],
            case.arrays["inputs/input_mask"],
            position_ids=case.arrays["inputs/position_ids"],
        ).logits
        total, weight = loss_of(logits, case)
        return total / weight, logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    want, real = case.arrays["outputs/logits"], case.arrays["inputs/input_mask"].astype(bool)
    logits = np.asarray(logits).reshape(want.shape)
    if want.shape[:2] == real.shape:  # a logit a token: only real tokens mean anything
        logits, want = logits[real], want[real]
    assert_close(logits, want, 1e-4, "logits")
    np.testing.assert_allclose(loss, case.arrays["outputs/loss"], rtol=1e-4)
    assert_gradients_close(grads, case.params("grads/", config), 1e-4, invariant)


@pytest.mark.parametrize("name", ["head_seqcls", "head_seqcls_soft"])
def test_sequence_classification(name: str) -> None:
    check(
        name,
        DebertaForSequenceClassification,
        lambda out, case: losses.classification(out, case.arrays["inputs/labels"]),
    )


def test_regression() -> None:
    check(
        "head_regression",
        DebertaForSequenceClassification,
        lambda logits, case: losses.regression(logits[:, 0], case.arrays["inputs/labels"]),
    )


def test_multiple_choice() -> None:
    check(
        "head_multichoice",
        DebertaForMultipleChoice,
        lambda logits, case: losses.classification(logits, case.arrays["inputs/labels"]),
        invariant=(*INVARIANT, "classifier/bias"),
    )


def test_microsofts_ner_head() -> None:
    check(
        "head_ner",
        DebertaForTokenClassification,
        lambda logits, case: losses.classification(logits, case.arrays["inputs/labels"]),
        projection=True,
    )


def test_replaced_token_head() -> None:
    def loss_of(logits, case):
        labels, ids = case.arrays["inputs/labels"], case.arrays["inputs/input_ids"]
        replaced = (labels > 0) & (labels != ids)
        np.testing.assert_array_equal(replaced, case.arrays["outputs/rtd_labels"])
        return losses.replaced_token(logits, replaced, case.arrays["inputs/input_mask"])

    check("head_rtd", DebertaForReplacedTokenDetection, loss_of)


@pytest.mark.parametrize("name", ["mlm_emd", "mlm_bert"])
def test_masked_lm(name: str) -> None:
    """Golden logits, loss and gradients, computed at the masked positions only; the full run agrees."""
    case = load(name)
    config = DebertaConfig.from_json(case.config)
    model, params, arrays = DebertaForMaskedLM(config), case.params("weights/", config), case.arrays
    positions, labels = masked_slots(arrays["inputs/labels"])
    inputs = (arrays["inputs/input_ids"], arrays["inputs/input_mask"])

    def mean_loss(params):
        logits = model.apply(
            {"params": params}, *inputs, masked_positions=positions, position_ids=arrays["inputs/position_ids"]
        ).logits
        total, weight = losses.masked_lm(logits, labels)
        return total / weight, logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    assert_close(np.asarray(logits)[labels > 0], arrays["outputs/lm_logits"], 1e-4, "logits")
    np.testing.assert_allclose(loss, arrays["outputs/loss"], rtol=1e-4)
    invariant = INVARIANT if config.relative_attention else (*INVARIANT, "key_proj/bias")
    assert_gradients_close(grads, case.params("grads/", config), 1e-4, invariant)

    full = jax.jit(model.apply)({"params": params}, *inputs, position_ids=arrays["inputs/position_ids"]).logits
    rows = np.arange(len(labels))[:, None]
    np.testing.assert_allclose(np.asarray(full)[rows, positions][labels > 0], arrays["outputs/lm_logits"], atol=1e-4)


def test_masked_lm_in_a_packed_row_equals_single_runs() -> None:
    """Absolute positions start anew in each segment, attention stays inside."""
    model = DebertaForMaskedLM(SMALL)
    first = jax.random.randint(jax.random.key(1), (1, 6), 5, 60)
    second = jax.random.randint(jax.random.key(2), (1, 9), 5, 60)
    params = jax.jit(model.init)(jax.random.key(0), first)
    run = jax.jit(model.apply)
    packed = run(
        params,
        jnp.concatenate([first, second], axis=1),
        segment_ids=jnp.array([[1] * 6 + [2] * 9]),
        masked_positions=jnp.array([[2, 5, 6, 13]]),
    ).logits
    alone = jnp.concatenate([run(params, first).logits[:, [2, 5]], run(params, second).logits[:, [0, 7]]], axis=1)
    np.testing.assert_allclose(packed, alone, atol=2e-5)


def test_replaced_token_logits_in_a_packed_row_equal_single_runs() -> None:
    model = DebertaForReplacedTokenDetection(SMALL)
    first = jax.random.randint(jax.random.key(1), (1, 6), 5, 60)
    second = jax.random.randint(jax.random.key(2), (1, 9), 5, 60)
    params = jax.jit(model.init)(jax.random.key(0), first)
    run = jax.jit(model.apply)
    packed = run(params, jnp.concatenate([first, second], axis=1), segment_ids=jnp.array([[1] * 6 + [2] * 9])).logits
    alone = jnp.concatenate([run(params, first).logits, run(params, second).logits], axis=1)
    np.testing.assert_allclose(packed, alone, atol=2e-5)


def test_question_answering_gives_a_start_and_an_end() -> None:
    model = DebertaForQuestionAnswering(SMALL)
    ids = jnp.arange(5, 15)[None]
    params = jax.jit(model.init)(jax.random.key(0), ids)
    out = jax.jit(model.apply)(params, ids)
    hidden = Deberta(SMALL).apply({"params": params["params"]["deberta"]}, ids).last_hidden_state
    head = params["params"]["span_classifier"]
    want = hidden @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(out.start_logits, want[..., 0], atol=1e-5)
    np.testing.assert_allclose(out.end_logits, want[..., 1], atol=1e-5)


def test_losses_give_sums_that_add_up() -> None:
    logits = jax.random.normal(jax.random.key(0), (6, 5, 11))
    labels = jax.random.randint(jax.random.key(1), (6, 5), 0, 11)
    whole = losses.masked_lm(logits, labels)
    parts = [losses.masked_lm(logits[rows], labels[rows]) for rows in (slice(0, 2), slice(2, 6))]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)
    assert whole[1] == (labels > 0).sum()
    weight = jnp.array([1.0, 0.0, 1.0])
    scores, classes = logits[:3, 0], jnp.array([1, 2, -1])
    total, count = losses.classification(scores, classes, weight)
    assert count == 1
    np.testing.assert_allclose(total, -jax.nn.log_softmax(scores[0])[1], rtol=1e-6)


def test_the_three_forms_of_masked_lm() -> None:
    """One set of parameters: emd reads absolute positions, bert and legacy are the head on the last hidden state."""
    ids, positions = jax.random.randint(jax.random.key(1), (2, 9), 5, 60), jnp.array([[1, 4], [8, 2]])
    params = jax.jit(DebertaForMaskedLM(SMALL).init)(jax.random.key(0), ids)["params"]
    logits = {
        form: jax.jit(DebertaForMaskedLM(SMALL.replace(mlm_head=form)).apply)(
            {"params": params}, ids, masked_positions=positions
        ).logits
        for form in ("emd", "bert", "legacy")
    }
    hidden = Deberta(SMALL).apply({"params": params["deberta"]}, ids).last_hidden_state
    head, table = params["mlm_head"], params["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    inner = jax.nn.gelu(hidden @ head["dense"]["kernel"] + head["dense"]["bias"], approximate=False)
    inner = (inner - inner.mean(-1, keepdims=True)) / jnp.sqrt(inner.var(-1, keepdims=True) + SMALL.layer_norm_eps)
    want = inner @ table.T + head["bias"]  # the LayerNorm is fresh
    want = jnp.take_along_axis(want, positions[..., None], axis=1)
    assert_close(logits["bert"], want, 1e-5)
    np.testing.assert_array_equal(logits["legacy"], logits["bert"])
    assert np.abs(logits["emd"] - want).max() > 0.1


def test_the_decoder_projects_keys_and_values_once() -> None:
    """Both steps read them; in between only queries move. Equal to the last layer run twice, gradients included."""
    model, ids = DebertaForMaskedLM(SMALL), jax.random.randint(jax.random.key(1), (2, 9), 5, 60)
    positions = jnp.array([[1, 4], [8, 2]])
    params = jax.jit(model.init)(jax.random.key(0), ids)["params"]
    calls: list[str] = []

    def count(call, args, kwargs, context):
        calls.append(context.module.name or "")
        return call(*args, **kwargs)

    with nn.intercept_methods(count):
        jax.eval_shape(lambda: model.apply({"params": params}, ids, masked_positions=positions))
    assert calls.count("value_proj") == SMALL.num_hidden_layers

    def twice(model: DebertaForMaskedLM, ids: jax.Array) -> jax.Array:
        encoder, embeddings = model.deberta.encoder, model.deberta.embeddings
        tokens = locate_tokens(ids, None, None, None)
        embedded = embeddings(ids, tokens, None, False)
        hidden = encoder(embedded, tokens.segments, train=False, layers=SMALL.num_hidden_layers - 1)[0][-1]
        queries = hidden + embeddings.absolute_positions(tokens.positions)
        for _ in range(2):
            queries = encoder.decode(hidden, queries, tokens.segments, None, steps=1, train=False)
        logits = model.mlm_head(queries, embeddings.word_embeddings).logits()
        return jnp.take_along_axis(logits, positions[..., None], axis=1)

    def loss(params, method, **given):
        logits = model.apply({"params": params}, ids, method=method, **given)
        return jnp.sin(logits if method is twice else logits.logits).sum()

    want, want_grads = jax.jit(jax.value_and_grad(lambda params: loss(params, twice)))(params)
    got, grads = jax.jit(jax.value_and_grad(lambda params: loss(params, None, masked_positions=positions)))(params)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert_gradients_close(grads, want_grads, 1e-4)


def test_masked_lm_refuses_a_single_layer() -> None:
    model = DebertaForMaskedLM(SMALL.replace(num_hidden_layers=1))
    with pytest.raises(ValueError, match="num_hidden_layers of at least 2"):
        model.init(jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    without = DebertaForMaskedLM(SMALL.replace(num_hidden_layers=1, mlm_head="bert"))
    shapes = jax.eval_shape(without.init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    assert set(shapes) == {"deberta", "mlm_head"}
