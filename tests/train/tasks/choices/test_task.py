"""Tests of the loss, the scores and the training of multiple choice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import losses, sift
from deberta_jax.models import HeadOutput
from deberta_jax.sift import SiftConfig
from deberta_jax.strict_json import to_json
from deberta_jax.train import finetune
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.tasks.choices import task as choices
from deberta_jax.train.tasks.choices.task import Choice

from ....support.configs import finetune_config
from ....support.letters import Letters, task_reader
from ....support.published_archives import json_lines
from ....support.small_models import TINY

REAL = jnp.array([[1, 1, 0], [1, 1, 1]])


def test_the_model_scores_each_choice():
    model = Choice().model(TINY, dtype=jnp.float32, remat=False)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 3, 8), jnp.int32))["params"]
    assert shapes["classifier"]["kernel"].shape == (TINY.hidden_size, 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_missing_choices_have_no_loss(smoothing):
    """The loss of a question with a missing choice equals that of the question alone."""
    objective = Choice(label_smoothing=smoothing)
    logits = jax.random.normal(jax.random.key(0), (2, 3))
    batch = {"real": REAL, "labels": jnp.array([1, 2]), "input_ids": jnp.zeros((2, 3, 4), int)}

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(logits):
        return objective.loss(HeadOutput(logits), batch)

    @jax.jit
    def separate_losses(logits):
        first, _ = losses.classification(logits[:1, :2], jnp.array([1]), smoothing=smoothing)
        second, _ = losses.classification(logits[1:], jnp.array([2]), smoothing=smoothing)
        return first + second

    (total, count), gradient = loss(logits)
    np.testing.assert_allclose(total, separate_losses(logits), rtol=1e-5)
    assert count == objective.count(batch) == 2
    assert gradient[0, 2] == 0


def test_missing_choices_have_probability_zero():
    logits = np.array([[0.0, 1.0, 99.0], [3.0, 2.0, 1.0]], np.float32)
    probabilities = jax.jit(Choice().predict)(HeadOutput(logits), {"real": REAL})["probabilities"]
    assert probabilities[0, 2] == 0
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("loss", ["symmetric_kl", "kl", "mse"])
def test_sift_accepts_missing_choices(loss):
    objective, batch = Choice(), {"real": REAL}

    @jax.jit
    def adversarial_loss(clean, delta):
        answers, weight = objective.answers(HeadOutput(clean), batch)
        assert weight is None

        def perturbed(params, delta, key):
            del params, key
            return objective.answers(HeadOutput(clean + delta.sum(axis=(1, 2)).reshape(2, 3)), batch).logits

        config = SiftConfig(weight=1, loss=loss)
        return sift.adversarial_loss(perturbed, {}, answers, delta, config, key=jax.random.key(1))[0]

    total = adversarial_loss(jax.random.normal(jax.random.key(0), (2, 3)), jnp.arange(6.0).reshape(6, 1, 1) / 10)
    assert 0 < total < 10


def row(label, *, options=("x", "yy", "z"), **more):
    return {"text": "ctx", "choices": list(options), "label": label, **more}


def test_records_have_the_choices_of_each_question(tmp_path):
    read = task_reader(tmp_path, choices.load, Letters(), kind="choice", name="train.jsonl", max_length=32)
    task = read([row(2), row(0, options=("u", "v"))], test=[{"text": "t", "choices": ["a", "b"]}])
    predictions = [{"probabilities": np.array(shares)} for shares in ([0.1, 0.2, 0.7], [0.25, 0.75, 0.0])]
    assert task.score("train", predictions) == {"accuracy": 0.5}
    assert list(task.records("train", predictions))[1] == {
        "text": "ctx",
        "choices": ["u", "v"],
        "label": 0,
        "prediction": 1,
        "probabilities": [0.25, 0.75],
    }
    with pytest.raises(ValueError, match="the test split has no labels to compare with"):
        task.score("test", predictions[:1])
    assert "label" not in next(task.records("test", [{"probabilities": np.array([0.5, 0.5])}]))
    predictions[1]["probabilities"][0] = np.nan
    with pytest.raises(ValueError, match="of question 1 are not finite; the model has diverged"):
        task.score("train", predictions)


def test_records_have_null_for_the_less_probable_choices(tmp_path):
    options = tuple(f"choice {number}" for number in range(300))
    for top_k, shown in ((None, 20), (2, 2)):
        read = task_reader(tmp_path, choices.load, Letters(), kind="choice", name="a.jsonl", max_length=32)
        task = read([row(1, options=options), row(0, options=options)], top_k=top_k)
        shares = np.random.default_rng(0).dirichlet(np.ones(300), 2)
        records = list(task.records("train", [{"probabilities": of_question} for of_question in shares]))
        for record, of_question in zip(records, shares, strict=True):
            kept = {place: share for place, share in enumerate(record["probabilities"]) if share is not None}
            assert len(record["probabilities"]) == 300
            assert sorted(kept) == sorted(np.argsort(-of_question)[:shown].tolist())
            assert kept[record["prediction"]] == of_question.max()
        size = sum(len(to_json(record)) + 1 for record in records)
        assert 2 * task.record_size("train") == pytest.approx(size, rel=0.25)


@pytest.mark.slow
def test_finetuning_learns_to_choose(small_model, write, tmp_path):
    """The woman is correct in any position. Half of the questions have only two choices."""
    people = ["the woman", "the man", "a dog"]
    rows = []
    for number in range(48):
        options = people[: 2 + number % 2]
        options = options[number % len(options) :] + options[: number % len(options)]
        rows.append({"text": "Who was very happy?", "choices": options, "label": options.index("the woman")})
    path = write("rows.jsonl", json_lines(*rows))
    config = finetune_config(
        output=tmp_path / "run",
        model=small_model,
        kind="choice",
        train=path,
        validation=path,
        max_length=32,
        batch_size=16,
        steps=40,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        label_smoothing=0.1,
    )
    assert finetune.main(config)["validation"]["accuracy"] == 1


def test_the_log_loss_may_be_the_metric(tmp_path):
    read = task_reader(tmp_path, choices.load, Letters(), kind="choice", name="train.jsonl", max_length=32)
    task = read([row(2), row(0, options=("u", "v"))], metric="log_loss")
    predictions = [{"probabilities": np.array(shares)} for shares in ([0.1, 0.2, 0.7], [0.25, 0.75, 0.0])]
    figures = task.score("train", predictions)
    assert task.main_metric == "log_loss"
    assert figures == pytest.approx({"accuracy": 0.5, "log_loss": -(np.log(0.7) + np.log(0.25)) / 2})
    with pytest.raises(ValueError, match="'f1', which this task does not have; it has accuracy, log_loss"):
        read([row(2)], metric="f1")
