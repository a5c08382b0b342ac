"""Tests of the scores, the records and the training of labels of words."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from seqeval import metrics as seqeval_metrics

from deberta_jax import load_pretrained, losses
from deberta_jax.errors import UserError
from deberta_jax.models import HeadOutput
from deberta_jax.train import finetune
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.tasks.sources.classes import Head
from deberta_jax.train.tasks.tokens import task as token_labels
from deberta_jax.train.tasks.tokens.sentences import Sentence
from deberta_jax.train.tasks.tokens.task import TokenLabels

from ....support.configs import finetune_config
from ....support.letters import Letters, task_reader
from ....support.small_models import TINY

TAGGED = "John B-PER\nSmith I-PER\nsleeps O\n\nParis B-LOC\n"
SILENT = " ."  # spaces and dots have no piece


@pytest.fixture
def read(tmp_path):
    """Returns a function that writes the files of a task and reads them."""
    return task_reader(tmp_path, token_labels.load, Letters(SILENT), kind="tokens", name="train.conll", max_length=16)


def predict(task, split, labels):
    """Returns the predictions of a model that gives these labels to the words of a split."""
    predictions = []
    for window in task.splits[split].windows:
        prediction = {
            "label": np.full(len(window.ids), 99, np.int32),
            "probability": np.full(len(window.ids), 0.5, np.float32),
        }
        prediction["label"][window.positions] = [labels[window.sentence][word] for word in window.words]
        predictions.append(prediction)
    return predictions


def test_the_model_has_the_head_of_transformers():
    """It is a single layer, without the pooler of classification; a model with Microsoft's head keeps it."""
    model = TokenLabels().model(TINY.replace(num_labels=3), dtype=jnp.float32, remat=False)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 8), jnp.int32))["params"]
    assert set(shapes) == {"deberta", "classifier"}
    assert shapes["classifier"]["kernel"].shape == (TINY.hidden_size, 3)
    microsoft = TokenLabels().model(TINY.replace(token_projection=True), dtype=jnp.float32, remat=False)
    shapes = jax.eval_shape(microsoft.init, jax.random.key(0), jnp.ones((2, 8), jnp.int32))["params"]
    assert set(shapes) == {"deberta", "classifier", "token_proj"}


def test_only_first_pieces_have_a_loss():
    objective = TokenLabels(label_smoothing=0.1)
    logits = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    labels = np.array([[-1, 2, -1, 0, -1], [-1, 1, -1, -1, -1]])
    out, batch = HeadOutput(jnp.asarray(logits)), {"labels": jnp.asarray(labels)}
    total, count = jax.jit(objective.loss)(out, batch)
    first = labels >= 0
    expected, _ = losses.classification(jnp.asarray(logits[first]), jnp.asarray(labels[first]), smoothing=0.1)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == objective.count(batch) == 3
    np.testing.assert_array_equal(objective.answers(out, batch).weight, first)
    predictions = jax.jit(objective.predict)(out, batch)
    np.testing.assert_array_equal(predictions["label"], logits.argmax(axis=-1))
    assert ((predictions["probability"] > 1 / 3) & (predictions["probability"] < 1)).all()


def test_a_long_sentence_is_scored_as_a_whole(read):
    words = [letter * 3 for letter in "abcdefghij"]
    lines = "\n".join(f"{word} {'B-X' if number % 3 == 0 else 'O'}" for number, word in enumerate(words))
    task = read(lines, max_length=14)
    encoded = task.splits["train"]
    assert len(encoded.windows) > 2
    assert encoded.lengths.max() <= 14
    assert encoded.notes == ("1 of 1 sentences read in several windows of 14 tokens",)
    labels = task.sentences["train"][0].labels
    assert task.score("train", predict(task, "train", [labels]))["f1"] == 1
    wrong = [1 - label for label in labels]
    assert task.score("train", predict(task, "train", [wrong]))["accuracy"] == 0
    batch = encoded.batch(np.arange(len(encoded.windows)), length=14)
    assert (batch["labels"] >= 0).sum() == len(words)


def test_scores_equal_those_of_seqeval_and_records_have_entities(read):
    task = read(TAGGED)
    predicted = [[2, 0, 0], [1]]
    predictions = predict(task, "train", predicted)
    names = [[task.label_names[label] for label in labels] for labels in predicted]
    expected = [["B-PER", "I-PER", "O"], ["B-LOC"]]
    figures = task.score("train", predictions)
    assert figures["accuracy"] == seqeval_metrics.accuracy_score(expected, names) == 0.75
    assert figures["f1"] == seqeval_metrics.f1_score(expected, names) == 0.5
    assert next(task.records("train", predictions)) == {
        "words": ["John", "Smith", "sleeps"],
        "labels": ["B-PER", "I-PER", "O"],
        "predictions": ["B-PER", "O", "O"],
        "probabilities": [0.5, 0.5, 0.5],
        "entities": [{"kind": "PER", "start": 0, "stop": 1, "words": ["John"]}],
    }


def test_words_without_pieces_are_predicted_as_o(read):
    task = read("a B-X\n. O\nb O\n", test="a\n.\n")
    record = next(task.records("test", predict(task, "test", [[1, 1]])))
    assert record["predictions"] == ["B-X", "O"]
    assert record["probabilities"] == [0.5, None]
    assert "labels" not in record


def test_unlabeled_and_diverged_predictions_have_no_scores(read):
    task = read(TAGGED, test="John\n")
    predictions = predict(task, "test", [[0]])
    with pytest.raises(ValueError, match="the test split has no labels to compare with"):
        task.score("test", predictions)
    predictions[0]["probability"][1] = np.nan
    with pytest.raises(UserError, match="of sentence 0 are not finite; the model has diverged"):
        list(task.records("test", predictions))


NAMES = ("O", "B-PER", "I-PER")


TAGS = {"index": [1, -100, 0], "name": ["B-PER", -100, "O"], "text": ["B-PER", "-100", "O"]}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
def test_words_with_label_minus_100_have_no_label(read, tmp_path, tags):
    """They have no loss, no place in the metrics and null in the records."""
    rows = [{"words": ["Ann", "Lee", "runs"], "labels": tags}, {"words": ["a"], "labels": [-100]}]
    if isinstance(tags[0], int):
        import pyarrow
        from pyarrow import parquet

        names = {"feature": {"names": NAMES, "_type": "ClassLabel"}, "_type": "Sequence"}
        metadata = {"huggingface": json.dumps({"info": {"features": {"labels": names}}})}
        table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(metadata)
        parquet.write_table(table, tmp_path / "a.parquet")
        task = token_labels.load(finetune_config(train=str(tmp_path / "a.parquet"), kind="tokens"), Letters(SILENT))
        assert task.label_names == NAMES
    else:
        task = read(rows, "a.jsonl")
        assert task.label_names == ("O", "B-PER")
    assert task.sentences["train"] == (Sentence(("Ann", "Lee", "runs"), (1, -1, 0)), Sentence(("a",), (-1,)))
    encoded = task.splits["train"]
    assert encoded.notes == ("2 words without a label",)
    batch = encoded.batch(np.arange(2), length=12)
    assert (batch["labels"] >= 0).sum() == 2
    assert TokenLabels().count({"labels": jnp.asarray(batch["labels"][1:])}) == 1  # not 0, by which the loss is divided
    predictions = predict(task, "train", [[1, 1, 0], [1]])
    assert set(task.score("train", predictions).values()) == {1}
    records = list(task.records("train", predictions))
    assert [record["labels"] for record in records] == [["B-PER", None, "O"], [None]]
    assert records[0]["predictions"] == ["B-PER", "B-PER", "O"]


@pytest.mark.parametrize("labels", [[-100, -100], [-1, -1], None, []])
def test_a_test_file_may_hide_its_labels(read, labels):
    words = {"words": ["a", "b"]}
    task = read([words | {"labels": ["O", "X"]}], "a.jsonl", test=[words | {"labels": labels}])
    assert not task.splits["test"].labeled


def test_blank_words_are_kept_with_their_labels(write):
    """The sentences of some public sets have line ends for words, and their metrics count them."""
    words = ["Dear", "Ann", "\n\n", "I", " "]
    rows = [{"words": words, "labels": ["O", "B-N", "I-N", "O", "O"]}, {"words": [], "labels": []}]
    path = write("a.jsonl", "\n".join(map(json.dumps, rows)))
    task = token_labels.load(finetune_config(train=path, kind="tokens"), Letters(" .\n"))
    assert task.splits["train"].notes == (
        "1 empty sentences",
        "2 words without pieces, predicted as O or the first label",
    )
    tag = {name: index for index, name in enumerate(task.label_names)}
    predictions = predict(task, "train", [[tag["O"], tag["B-N"], tag["O"], tag["O"], tag["O"]], []])
    assert task.score("train", predictions) == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 0.8}
    records = list(task.records("train", predictions))
    assert records[0]["words"] == words
    assert records[0]["predictions"] == ["O", "B-N", "O", "O", "O"]
    assert records[1] == {"words": [], "labels": [], "predictions": [], "probabilities": [], "entities": []}


def test_a_tag_that_only_validation_has_is_a_class_and_one_of_the_test_is_wrong(read):
    task = read(TAGGED, validation="Ann B-MISC\n", test="Ann B-ORG\nran O\n")
    assert task.label_names == ("O", "B-LOC", "B-MISC", "B-PER", "I-PER")
    assert task.splits["validation"].notes == ("no example in training of 'B-MISC'",)
    assert task.unseen == ("B-ORG",)
    predictions = predict(task, "test", [[2, 0]])
    assert task.score("test", predictions) == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 0.5}
    assert next(task.records("test", predictions))["labels"] == ["B-ORG", "O"]


def test_tags_of_the_model_are_marked_in_any_case(read, tmp_path):
    read(TAGGED)
    config = finetune_config(train=str(tmp_path / "train.conll"), kind="tokens")
    head = Head(4, ("b-loc", "i-per", "b-per", "o"))
    task = token_labels.load(config, Letters(SILENT), head=head)
    assert (task.label_names, task.main_metric) == (head.names, "f1")
    assert task.sentences["train"][0].labels == (2, 1, 3)
    assert task.score("train", predict(task, "train", [[2, 1, 3], [0]]))["f1"] == 1


@pytest.mark.slow
def test_finetuning_learns_labels_of_words(small_model, write, tmp_path):
    """Each word has one label, so that any model that trains learns them."""
    lines = ["the O\nman B-PER\nsaw O\nher I-PER\n", "he O\nsaw O\nthe O\nman B-PER\nand O\nher I-PER\n"]
    path = write("train.conll", "\n".join(lines * 16))
    config = finetune_config(
        output=tmp_path / "run",
        model=small_model,
        kind="tokens",
        train=path,
        validation=path,
        max_length=16,
        batch_size=16,
        steps=40,
        optimizer=OptimizerConfig(learning_rate=3e-3),
    )
    results = finetune.main(config)
    assert results["validation"] == {"f1": 1, "precision": 1, "recall": 1, "accuracy": 1}
    model, params = load_pretrained(tmp_path / "run" / "model")
    assert model.label_names == ("O", "B-PER", "I-PER")
    assert params["classifier"]["kernel"].shape == (32, 3)


def test_words_of_heavier_labels_weigh_more_in_the_loss(read):
    task = read(TAGGED, class_weights=("O=0.25",), focal_gamma=1.0)
    objective = task.objective
    assert dict(zip(task.label_names, objective.class_weights, strict=True))["O"] == 0.25
    windows = len(task.splits["train"].lengths)
    batch = task.splits["train"].batch(np.arange(windows), length=20)
    logits = jnp.zeros((windows, 20, len(task.label_names)))
    total, count = objective.loss(HeadOutput(logits), batch)
    assert float(count) == float(objective.count(batch)) == 3.25
    certainty = 1 / len(task.label_names)
    assert float(total) == pytest.approx(3.25 * (1 - certainty) * -np.log(certainty), rel=1e-5)
    none = {**batch, "labels": np.full_like(batch["labels"], -100)}
    assert float(objective.count(none)) == 1
    assert read(TAGGED, class_weights=("balanced",)).objective.class_weights == (1,) * 4


def test_the_metric_is_one_of_entities_or_of_words(read):
    assert read(TAGGED, metric="recall").main_metric == "recall"
    with pytest.raises(UserError, match="'auc', which this task does not have; it has f1, precision, recall, accuracy"):
        read(TAGGED, metric="auc")
