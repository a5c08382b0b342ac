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
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
    losses,
)
from deberta_jax.inputs import locate_tokens

from ..support.golden_cases import INVARIANT, assert_close, assert_gradients_close, load, masked_slots
from ..support.small_models import SMALL, random_params

TWO_LAYERS = SMALL.replace(num_hidden_layers=2)


def check_head(name: str, model_class, loss_of, *, invariant: tuple[str, ...] = INVARIANT, **changes) -> None:
    """Compares logits, loss and every gradient of a task head with a golden case."""
    case = load(name)
    config = DebertaConfig.from_json(case.config).replace(**changes)
    model, params = model_class(config), case.params("weights/", config)

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
    if want.shape[:2] == real.shape:  # one logit per token: those of padding are arbitrary
        logits, want = logits[real], want[real]
    assert_close(logits, want, 1e-4, "logits")
    np.testing.assert_allclose(loss, case.arrays["outputs/loss"], rtol=1e-4)
    assert_gradients_close(grads, case.params("grads/", config), 1e-4, invariant)


@pytest.mark.parametrize("name", ["head_seqcls", "head_seqcls_soft"])
def test_sequence_classification_equals_golden(name: str) -> None:
    check_head(
        name,
        DebertaForSequenceClassification,
        lambda logits, case: losses.classification(logits, case.arrays["inputs/labels"]),
    )


def test_regression_equals_golden() -> None:
    check_head(
        "head_regression",
        DebertaForSequenceClassification,
        lambda logits, case: losses.regression(logits[:, 0], case.arrays["inputs/labels"]),
    )


def test_multiple_choice_equals_golden() -> None:
    check_head(
        "head_multichoice",
        DebertaForMultipleChoice,
        lambda logits, case: losses.classification(logits, case.arrays["inputs/labels"]),
        invariant=(*INVARIANT, "classifier/bias"),
    )


def test_microsofts_ner_head_equals_golden() -> None:
    check_head(
        "head_ner",
        DebertaForTokenClassification,
        lambda logits, case: losses.classification(logits, case.arrays["inputs/labels"]),
        token_projection=True,
    )


def test_replaced_token_head_equals_golden() -> None:
    def loss_of(logits, case):
        labels, ids = case.arrays["inputs/labels"], case.arrays["inputs/input_ids"]
        replaced = (labels > 0) & (labels != ids)
        np.testing.assert_array_equal(replaced, case.arrays["outputs/rtd_labels"])
        return losses.replaced_token(logits, replaced, case.arrays["inputs/input_mask"])

    check_head("head_rtd", DebertaForReplacedTokenDetection, loss_of)


@pytest.mark.parametrize("name", ["mlm_emd", "mlm_bert"])
def test_masked_lm_equals_golden(name: str) -> None:
    """Checks logits, loss and gradients at the masked positions, and the logits at all positions."""
    case = load(name)
    config = DebertaConfig.from_json(case.config)
    model, params, arrays = DebertaForMaskedLM(config), case.params("weights/", config), case.arrays
    positions, labels = masked_slots(arrays["inputs/labels"])
    batch = (arrays["inputs/input_ids"], arrays["inputs/input_mask"])
    options = {"position_ids": arrays["inputs/position_ids"]}

    def mean_loss(params):
        logits = model.apply({"params": params}, *batch, masked_positions=positions, **options).logits
        total, weight = losses.masked_lm(logits, labels)
        return total / weight, (logits, model.apply({"params": params}, *batch, **options).logits)

    (loss, (logits, all_logits)), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    assert_close(np.asarray(logits)[labels > 0], arrays["outputs/lm_logits"], 1e-4, "logits")
    np.testing.assert_allclose(loss, arrays["outputs/loss"], rtol=1e-4)
    invariant = INVARIANT if config.relative_attention else (*INVARIANT, "key_proj/bias")
    assert_gradients_close(grads, case.params("grads/", config), 1e-4, invariant)
    masked = np.take_along_axis(np.asarray(all_logits), positions[..., None], axis=1)[labels > 0]
    np.testing.assert_allclose(masked, arrays["outputs/lm_logits"], atol=1e-4)


def test_masked_lm_forms_share_parameters() -> None:
    """EMD reads absolute positions; bert and legacy are the head on the last hidden state."""
    ids, positions = jax.random.randint(jax.random.key(1), (2, 9), 5, 60), jnp.array([[1, 4], [8, 2]])
    params = random_params(DebertaForMaskedLM(TWO_LAYERS), ids)
    params["mlm_head"]["layer_norm"] = {"scale": np.ones(32, np.float32), "bias": np.zeros(32, np.float32)}

    @jax.jit
    def run(params):
        logits = {
            form: DebertaForMaskedLM(TWO_LAYERS.replace(mlm_head=form))
            .apply({"params": params}, ids, masked_positions=positions)
            .logits
            for form in ("emd", "bert", "legacy")
        }
        hidden = Deberta(TWO_LAYERS).apply({"params": params["deberta"]}, ids).last_hidden_state
        return logits, hidden

    logits, hidden = run(params)
    head, table = params["mlm_head"], params["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    inner = jax.nn.gelu(hidden @ head["dense"]["kernel"] + head["dense"]["bias"], approximate=False)
    inner = (inner - inner.mean(-1, keepdims=True)) / jnp.sqrt(inner.var(-1, keepdims=True) + SMALL.layer_norm_eps)
    want = jnp.take_along_axis(inner @ table.T + head["bias"], positions[..., None], axis=1)
    assert_close(logits["bert"], want, 1e-5)
    np.testing.assert_array_equal(logits["legacy"], logits["bert"])
    assert np.abs(logits["emd"] - want).max() > 0.1


def test_decoder_projects_keys_and_values_once() -> None:
    """Both decoder steps share them, and equal the last layer run twice (`mlm_emd` checks the gradients)."""
    model, ids = DebertaForMaskedLM(TWO_LAYERS), jax.random.randint(jax.random.key(1), (2, 9), 5, 60)
    positions = jnp.array([[1, 4], [8, 2]])
    params = random_params(model, ids)
    calls: list[str] = []

    def count(call, args, kwargs, context):
        calls.append(context.module.name or "")
        return call(*args, **kwargs)

    with nn.intercept_methods(count):
        jax.eval_shape(lambda: model.apply({"params": params}, ids, masked_positions=positions))
    assert calls.count("value_proj") == TWO_LAYERS.num_hidden_layers

    def run_twice(model: DebertaForMaskedLM, ids: jax.Array) -> jax.Array:
        encoder, embeddings = model.deberta.encoder, model.deberta.embeddings
        tokens = locate_tokens(ids, None, None, None)
        embedded = embeddings(ids, tokens, None, False)
        hidden = encoder(embedded, tokens.segments, train=False, layers=TWO_LAYERS.num_hidden_layers - 1)[0][-1]
        queries = hidden + embeddings.absolute_positions(tokens.positions)
        for _ in range(2):
            queries = encoder.decode(hidden, queries, tokens.segments, None, steps=1, train=False)
        logits = model.mlm_head(queries, embeddings.word_embeddings).logits()
        return jnp.take_along_axis(logits, positions[..., None], axis=1)

    @jax.jit
    def run(params):
        logits = model.apply({"params": params}, ids, masked_positions=positions).logits
        return logits, model.apply({"params": params}, ids, method=run_twice)

    logits, want = run(params)
    assert_close(logits, want, 1e-5)
