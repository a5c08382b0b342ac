"""Tests of the loss, the predictions, the scores and the training of answers to questions."""

import dataclasses
import functools
import json
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import load_pretrained, losses
from deberta_jax.errors import UserError
from deberta_jax.models import SpanOutput
from deberta_jax.sift import span_logits
from deberta_jax.train import finetune
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.tasks.spans.questions import Answer, SpanData, SpanQuestion
from deberta_jax.train.tasks.spans.squad_metrics import normalize, squad_v2
from deberta_jax.train.tasks.spans.task import Spans, SpanTask
from deberta_jax.train.tasks.spans.windows import encode_span_questions

from ....support.configs import finetune_config
from ....support.published_archives import CONTEXT, json_lines
from ....support.span_questions import SETTINGS, random_question
from ....support.xlnet import xlnet_tokenizer

# --------------------------------------------------------------------------------------------------------------- loss


def test_the_loss_is_the_mean_cross_entropy_of_start_and_end():
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 3, 7))
    choosable = np.array([[1, 0, 1, 1, 1, 0, 0], [1, 0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]])
    ends = np.array([[2, 4], [0, 0], [3, 3]])
    expected, smoothed = [], []
    for logits, column in ((start, 0), (end, 1)):
        for row in range(3):
            chosen = logits[row][choosable[row] == 1]
            label = int(choosable[row, : ends[row, column]].sum())
            shares = np.exp(chosen) / np.exp(chosen).sum()
            expected.append(-np.log(shares[label]))
            smoothed.append(-0.9 * np.log(shares[label]) - 0.1 * np.log(shares).mean())

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(start, smoothing):
        logits = span_logits(start, jnp.asarray(end), jnp.asarray(choosable))
        return losses.span(logits, jnp.asarray(ends), jnp.asarray(choosable), smoothing=smoothing)

    for smoothing, terms in ((0.0, expected), (0.1, smoothed)):
        (total, count), gradient = jax.device_get(loss(jnp.asarray(start), smoothing))
        assert count == 6
        assert total == pytest.approx(sum(terms), rel=1e-5)
        assert np.isfinite(gradient).all()
        assert (gradient[choosable == 0] == 0).all()
        assert (gradient[choosable == 1] != 0).all()


def test_losses_of_chunks_add_up(tokenizer):
    """Gradient accumulation relies on this."""
    objective = Spans(label_smoothing=0.1)
    encoded = encode_span_questions([random_question(seed) for seed in range(4)], tokenizer, **SETTINGS)
    chunks = [encoded.batch(np.array(indices), length=40) for indices in ([0, 1], [2, 3])]
    whole = encoded.batch(np.arange(4), length=40)
    logits = np.random.default_rng(0).normal(size=(2, 4, 40)).astype(np.float32)

    def loss(batch, start, end):
        total, count = jax.jit(objective.loss)(SpanOutput(jnp.asarray(start), jnp.asarray(end)), batch)
        assert count == objective.count(batch) == 2 * len(start)
        return float(total)

    losses_of_chunks = [loss(chunk, *logits[:, 2 * n : 2 * n + 2]) for n, chunk in enumerate(chunks)]
    assert sum(losses_of_chunks) == pytest.approx(loss(whole, *logits), rel=1e-5)


# -------------------------------------------------------------------------------------------------------- predictions


def span_task(tokenizer, questions, *, no_answer, settings=SETTINGS, **options):
    """Returns a task to score on `questions`. With `no_answer`, training has a question without an answer."""
    training = (random_question(0), *([random_question(1, answered=False)] if no_answer else []))
    splits = {"train": training, "validation": tuple(questions)}
    data = SpanData("test", splits, {"train": (), "validation": ()})
    encoded = {name: encode_span_questions(split, tokenizer, **settings) for name, split in splits.items()}
    objective = Spans(n_best=5, max_answer_length=settings["max_answer_length"])
    return SpanTask(data, objective, encoded, **options)


def predict(task, logits_of):
    """Returns the predictions for the windows of validation from the start and end logits `logits_of(batch)`."""
    encoded = task.splits["validation"]
    batch = encoded.batch(np.arange(len(encoded.lengths)), length=40)
    out = SpanOutput(*map(jnp.asarray, logits_of(batch)))
    arrays = jax.device_get(jax.jit(task.objective.predict)(out, batch))
    return [{name: array[row] for name, array in arrays.items()} for row in range(len(encoded.lengths))]


def perfect(batch):
    """Returns logits with high values at the labels, and higher ones at [SEP] and padding, which cannot be chosen."""
    logits = np.where(batch["choosable"][None] == 0, 90.0, np.zeros((2, 1, 1))).astype(np.float32)
    for end in range(2):
        logits[end, np.arange(len(batch["ends"])), batch["ends"][:, end]] = 10
    return logits


def on_token_boundaries(question, tokenizer, seed):
    """Returns the question with an answer that begins and ends at tokens."""
    rng = random.Random(seed)
    offsets = [offset for offset in tokenizer(question.context, return_offsets=True).offsets if offset is not None]
    while True:
        first = rng.randrange(len(offsets))
        last = min(len(offsets) - 1, first + rng.randrange(4))
        start, end = offsets[first][0], offsets[last][1]
        text = question.context[start:end]
        covering = [n for n, (left, right) in enumerate(offsets) if left < end and right > start]
        if text.strip() == text and text and len(covering) <= SETTINGS["max_answer_length"]:
            return dataclasses.replace(question, answers=(Answer(text, start),))


@pytest.mark.parametrize("no_answer", [True, False])
def test_perfect_logits_give_the_answers_themselves(tokenizer, no_answer):
    questions = [on_token_boundaries(random_question(seed), tokenizer, seed) for seed in range(60)]
    if no_answer:
        questions += [random_question(seed, answered=False) for seed in range(60, 70)]
    task = span_task(tokenizer, questions, no_answer=no_answer)
    assert len(task.splits["validation"].lengths) > 1.5 * len(questions)
    predictions = predict(task, perfect)
    records = list(task.records("validation", predictions))
    assert [record["id"] for record in records] == [question.id for question in questions]
    for record, question in zip(records, questions, strict=True):
        assert record["prediction_text"] == (question.answers[0].text if question.answers else "")
        assert record["answers"] == [answer.text for answer in question.answers]
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        for entry in record["n_best"]:
            if entry["text"]:
                assert question.context.startswith(entry["text"], entry["answer_start"])
        assert sum(entry["probability"] for entry in record["n_best"]) == pytest.approx(1)
        assert record["probability"] == max(entry["probability"] for entry in record["n_best"])
        assert any(entry["text"] == "" for entry in record["n_best"]) == no_answer
    figures = task.score("validation", predictions)
    # In 1.1 the F1 of a prediction without words ("…") is 0 even if it is correct.
    with_words = sum(bool(normalize(question.answers[0].text)) for question in questions if question.answers)
    assert figures["exact_match"] == 1
    assert figures["f1"] == pytest.approx(1 if no_answer else with_words / len(questions))
    assert ("NoAns_f1" in figures, "best_f1_thresh" in figures) == (no_answer, no_answer)


def test_perfect_logits_give_the_answers_of_xlnet():
    """Its context comes first, and [CLS], which means "no answer", last."""
    tokenizer = xlnet_tokenizer()
    questions = [on_token_boundaries(random_question(seed), tokenizer, seed) for seed in range(30)]
    questions += [random_question(seed, answered=False) for seed in range(60, 65)]
    task = span_task(tokenizer, questions, no_answer=True)
    assert len(task.splits["validation"].lengths) > 1.5 * len(questions)
    records = list(task.records("validation", predict(task, perfect)))
    texts = [question.answers[0].text if question.answers else "" for question in questions]
    assert [record["prediction_text"] for record in records] == texts


def test_no_answer_is_never_predicted_if_every_training_question_has_one(tokenizer):
    questions = [random_question(3), random_question(4, answered=False)]

    def nothing(batch):
        logits = np.zeros((2, *batch["input_ids"].shape), np.float32)
        logits[:, :, 0] = 50
        return logits

    task = span_task(tokenizer, questions, no_answer=False)
    records = list(task.records("validation", predict(task, nothing)))
    assert all(record["prediction_text"] == record["n_best"][0]["text"] != "" for record in records)
    assert not any("no_answer_score" in record for record in records)
    assert task.score("validation", predict(task, nothing))["NoAns_exact"] == 0
    with_no_answer = span_task(tokenizer, questions, no_answer=True)
    records = with_no_answer.records("validation", predict(with_no_answer, nothing))
    assert [record["prediction_text"] for record in records] == ["", ""]


def test_the_threshold_decides_between_a_span_and_no_answer(tokenizer):
    question = SpanQuestion("1", "who", CONTEXT, (Answer("Emma", 16),))

    def close(batch):
        logits = perfect(batch)
        logits[:, :, 0] = 11.0  # 22 against 20
        return logits

    for threshold, text in ((0.0, ""), (1.9, ""), (2.0, "Emma"), (5.0, "Emma")):
        task = span_task(tokenizer, [question], no_answer=True, null_threshold=threshold)
        (record,) = task.records("validation", predict(task, close))
        assert record["prediction_text"] == text
        assert record["null_score"] == pytest.approx(22)
        assert record["no_answer_score"] == pytest.approx(2)
        expected = float(text == "Emma")
        figures = task.score("validation", predict(task, close))
        assert figures == {
            "exact_match": expected,
            "f1": expected,
            "HasAns_exact": expected,
            "HasAns_f1": expected,
            "best_exact": 1,
            "best_exact_thresh": 2,
            "best_f1": 1,
            "best_f1_thresh": 2,
        }


def test_the_null_score_is_the_minimum_over_the_windows(tokenizer):
    context = "was the man happy " * 20
    task = span_task(tokenizer, [SpanQuestion("1", "who", context, ())], no_answer=True)
    count = len(task.splits["validation"].lengths)
    assert count > 2

    def rising(batch):
        logits = np.zeros((2, *batch["input_ids"].shape), np.float32)
        logits[:, :, 0] = np.arange(count) + 3
        logits[:, 1, 12] = 1
        return logits

    (record,) = task.records("validation", predict(task, rising))
    assert record["null_score"] == 6
    assert record["no_answer_score"] == 4
    assert len({entry["text"] for entry in record["n_best"]}) == len(record["n_best"]) == 6  # 5 spans and no answer


def test_a_context_without_tokens_has_a_record_without_an_answer(tokenizer):
    task = span_task(tokenizer, [SpanQuestion("1", "who", "\u200b", ())], no_answer=False)
    predictions = predict(task, lambda batch: np.zeros((2, *batch["input_ids"].shape), np.float32))
    (record,) = task.records("validation", predictions)
    assert (record["prediction_text"], record["probability"]) == ("", 1)
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(tokenizer, value):
    task = span_task(tokenizer, [random_question(5)], no_answer=True)

    def broken(batch):
        logits = perfect(batch)
        logits[1, 0, 13] = value
        return logits

    with pytest.raises(UserError, match="the logits of window 0 are not finite; the model has diverged"):
        task.score("validation", predict(task, broken))


def test_a_split_without_answers_is_predicted_but_not_scored(tokenizer):
    task = span_task(tokenizer, [SpanQuestion("1", "who", CONTEXT, None)], no_answer=True)
    predictions = predict(task, lambda batch: np.zeros((2, *batch["input_ids"].shape), np.float32))
    assert "answers" not in next(task.records("validation", predictions))
    with pytest.raises(ValueError, match="the validation split has no labels to compare with"):
        task.score("validation", predictions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_stride": 0}, "doc_stride is 0; it must be at least 1"),
        ({"n_best": -1}, "n_best is -1; it must be at least 1"),
        ({"null_threshold": math.nan}, "null_threshold is nan; it must be a finite number"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        finetune_config(**changes)


# ----------------------------------------------------------------------------------------------------------- training


def names_in_noise(seed, count):
    """Returns questions whose answer is the only name in a context of random words, or none if it has no name."""
    rng = random.Random(seed)
    noise = ["the", "man", "was", "very", "happy", "and", "a", "good", "house"]
    rows = []
    for number in range(count):
        name = rng.choice(["Anne", "Emma", "Jane", "Mary"]) if rng.random() < 0.75 or number == 0 else None
        words = [rng.choice(noise) for _ in range(rng.randint(8, 40))]
        if name:
            words.insert(rng.randrange(len(words)), name)
        context = " ".join(words)
        answers = {"text": [name], "answer_start": [context.index(name)]} if name else {"text": [], "answer_start": []}
        rows.append({"id": f"{seed}-{number}", "question": "who was it", "context": context, "answers": answers})
    return json_lines(*rows)


def test_finetuning_learns_to_find_a_name_or_no_answer(small_model, write, tmp_path):
    config = finetune_config(
        output=tmp_path / "run",
        model=small_model,
        random_weights=True,
        kind="span",
        train=write("train.jsonl", names_in_noise(0, 96)),
        validation=write("dev.jsonl", names_in_noise(1, 48)),
        max_length=40,
        max_question_length=12,
        max_answer_length=8,
        batch_size=16,
        steps=80,
        evaluate_every=1000,
        optimizer=OptimizerConfig(learning_rate=5e-3),
    )
    results = finetune.main(config)["validation"]
    assert results["HasAns_f1"] > 0.9
    assert results["NoAns_f1"] > 0.9
    assert results["best_exact"] >= results["exact_match"] > 0.9
    lines = (tmp_path / "run" / "predictions" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["id"] for record in records] == [f"1-{number}" for number in range(48)]
    final = squad_v2([record["answers"] for record in records], [record["prediction_text"] for record in records])
    assert results == final | {name: value for name, value in results.items() if name.startswith("best")}
    saved, weights = load_pretrained(tmp_path / "run" / "model")
    assert saved.label_names == ()
    assert weights["span_classifier"]["kernel"].shape == (32, 2)


@pytest.mark.parametrize("no_answer", [False, True])
def test_the_metrics_that_may_be_named_are_those_of_the_scores(tokenizer, no_answer):
    questions = [random_question(2), random_question(3, answered=not no_answer)]
    task = span_task(tokenizer, questions, no_answer=no_answer)
    scores = task.score("validation", predict(task, perfect))
    assert set(task.metrics("validation")) == {name for name in scores if not name.endswith("_thresh")}
    assert task.main_metric == "f1"
