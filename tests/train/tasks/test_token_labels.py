"""Labels of words: files, windows, the entities that seqeval finds, a run that learns, and what can be wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from seqeval import metrics as seqeval_metrics
from seqeval.metrics.sequence_labeling import get_entities

from deberta_jax import load_pretrained
from deberta_jax.train import finetune
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.tasks.batches import FinetuneBatches, evaluation_batches
from deberta_jax.train.tasks.tokens import task as token_labels
from deberta_jax.train.tasks.tokens.entities import Entity, entities, entity_scores, marks_entities
from deberta_jax.train.tasks.tokens.sentences import Sentence, cut_windows, encode_sentences

from ...support.configs import changed, finetune_config
from ...support.letters import Letters, task_reader

CONLL = """\
-DOCSTART- -X- -X- O

John NNP B-NP B-PER
Smith NNP I-NP I-PER
sleeps VBZ B-VP O

-DOCSTART- -X- -X- O

Paris NNP B-NP B-LOC
"""


SILENT = " ."  # spaces and dots have no piece


@pytest.fixture
def read(tmp_path):
    """Writes the files of a task and reads them."""
    return task_reader(tmp_path, token_labels.load, Letters(SILENT), kind="tokens", name="train.conll", max_length=16)


def answered(task, split, labels):
    """What `predict` would give if the model answered the words of a split's sentences with these labels."""
    found = []
    for window in task.splits[split].windows:
        one = {
            "label": np.full(len(window.ids), 99, np.int32),
            "probability": np.full(len(window.ids), 0.5, np.float32),
        }
        one["label"][window.places] = [labels[window.sentence][word] for word in window.words]
        found.append(one)
    return found


# ------------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("name", ["train.conll", "train.txt"])
def test_conll_files(read, name):
    task = read(CONLL, name, test="John\n\nParis\n", max_length=32)
    assert task.label_names == ("O", "B-LOC", "B-PER", "I-PER")
    assert task.sentences["train"] == (Sentence(("John", "Smith", "sleeps"), (2, 3, 0)), Sentence(("Paris",), (1,)))
    assert task.splits["train"].notes == (f"2 -DOCSTART- lines skipped in {name}",)
    assert task.sentences["test"] == (Sentence(("John",), None), Sentence(("Paris",), None))
    assert not task.splits["test"].labeled
    assert (task.name, task.main_metric) == ("train", "f1")


def test_conll_columns_by_number(read):
    task = read(CONLL, label_column="1")
    assert task.label_names == ("NNP", "VBZ")
    assert task.main_metric == "accuracy"
    tabs = read("B-X\ta\u00a0b\r\nO\tc\r\n", text_column="1", label_column="0")
    assert tabs.sentences["train"] == (Sentence(("a\u00a0b", "c"), (1, 0)),)


def test_json_lines_of_lists(read):
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}, {"tokens": ["c"], "tags": ["O"]}]
    content = "\n".join(map(json.dumps, rows))
    task = read(content, "a.jsonl", text_column="tokens", label_column="tags")
    assert task.sentences["train"] == (Sentence(("a", "b"), (0, 1)), Sentence(("c",), (0,)))


def test_parquet_with_the_class_names_of_hugging_face(read, tmp_path):
    import pyarrow
    from pyarrow import parquet

    names = {"feature": {"names": ["O", "B-PER", "I-PER"], "_type": "ClassLabel"}, "_type": "Sequence"}
    features = {"tokens": {"feature": {"dtype": "string", "_type": "Value"}}, "ner_tags": names}
    table = pyarrow.table({"tokens": [["John", "ran"]], "ner_tags": [[1, 0]]})
    for told, expected in ((True, ("O", "B-PER", "I-PER")), (False, ("0", "1"))):
        metadata = {"huggingface": json.dumps({"info": {"features": features}})} if told else None
        parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
        config = finetune_config(
            output=tmp_path,
            model=tmp_path,
            train=str(tmp_path / "a.parquet"),
            kind="tokens",
            text_column="tokens",
            label_column="ner_tags",
        )
        task = token_labels.load(config, Letters(SILENT))
        assert task.label_names == expected
        assert task.sentences["train"] == (Sentence(("John", "ran"), (1, 0)),)


BAD = {
    "no column": ("a.conll", "a O\nb X\n", {"label_column": "3"}, r"line 1: no column '3'; the columns are '0', '1'"),
    "no labels": ("a.conll", "a\nb\n", {}, r"a\.conll, line 1: no column '-1'; the columns are '0'"),
    "ragged": ("a.conll", "a O\n\nb X Y\n", {}, r"a\.conll, line 3: 3 columns, but the lines before have 2"),
    "one label": ("a.conll", "a O\nb O\n", {}, r"a\.conll has only one label, 'O'; training needs at least two"),
    "only marks": ("a.conll", "-DOCSTART- O\n", {}, r"a\.conll has no rows"),
    "empty": ("a.conll", "\n\n", {}, r"a\.conll is empty"),
    "no json column": ("a.jsonl", '{"words": ["a"]}', {}, r"line 1: no column 'labels'; the columns are 'words'"),
    "text": ("a.jsonl", '{"words": "a", "labels": ["O"]}', {}, r"line 1: column 'words' holds 'a', not a list"),
    "too few": ("a.jsonl", '{"words": ["a", "b"], "labels": ["O"]}', {}, r"line 1: 1 labels for 2 words"),
    "no words": ("a.jsonl", '{"words": [], "labels": []}', {}, r"line 1: column 'words' is an empty list"),
    "blank word": ("a.jsonl", '{"words": [" "], "labels": ["O"]}', {}, r"line 1: column 'words' is empty"),
    "number": ("a.jsonl", '{"words": [3], "labels": ["O"]}', {}, r"line 1: column 'words' holds 3, not text"),
    "null label": ("a.jsonl", '{"words": ["a"], "labels": [null]}', {}, r"line 1: label None is not a class"),
    "table": ("a.tsv", "words\tlabels\na b\tO O\n", {}, r"line 2: column 'words' holds 'a b', not a list"),
    "suffix": ("a.xml", "a O\n", {}, r"unknown suffix '\.xml'; give .*\.parquet"),
    "no room": ("a.conll", "a O\nb X\n", {"max_length": 2}, r"max_length is 2; it must be at least 3"),
    "no pieces": ("a.conll", ". O\n. X\n", {}, r"none of the 2 words has a piece"),
}


@pytest.mark.parametrize(("name", "content", "settings", "message"), BAD.values(), ids=BAD)
def test_bad_files(read, name, content, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(content, name, **settings)
    assert "\n" not in str(caught.value)


def test_bad_held_out_files(read, tmp_path):
    with pytest.raises(
        ValueError, match=r"validation\.conll, line 3: label 'B-ORG' of word 2, 'x', is not one of training: O, B-LOC"
    ):
        read(CONLL, validation="a O\n\nb O\nx B-ORG\n")
    with pytest.raises(ValueError, match=r"line 2: row 1 and this one differ: give every row labels, or none"):
        read(
            '{"words": ["a", "b"], "labels": ["O", "X"]}',
            "a.jsonl",
            test='{"words": ["a"], "labels": ["O"]}\n{"words": ["b"]}',
        )
    config = finetune_config(output=tmp_path, model=tmp_path, train="missing.conll", kind="tokens")
    with pytest.raises(FileNotFoundError, match=r"missing\.conll: no such file"):
        token_labels.load(config, Letters(SILENT))
    with pytest.raises(ValueError, match=r"is a set of kind 'classification', which does not go with kind 'tokens'"):
        token_labels.load(changed(config, train="tfds:glue/sst2"), Letters(SILENT))


# ---------------------------------------------------------------------------------------------------------- windows


def test_a_label_stands_on_the_first_piece_of_its_word():
    encoded = encode_sentences([Sentence(("ab", ".", "c"), (1, 2, 3))], Letters(SILENT), max_length=8)
    batch = encoded.batch(np.array([0]), length=8)
    assert batch["input_ids"].tolist() == [[1, ord("a"), ord("b"), ord("c"), 2, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-1, 1, -1, 3, -1, -1, -1, -1]]
    assert batch["token_type_ids"].sum() == 0
    assert {array.dtype.name for array in batch.values()} == {"int32"}
    assert encoded.lengths.tolist() == [5]
    assert encoded.notes == ("1 words without pieces, answered by O or the first label",)


def test_every_word_is_answered_once_with_words_around_it():
    rng = np.random.default_rng(0)
    for _ in range(300):
        budget = int(rng.integers(1, 30))
        sizes = rng.integers(1, budget + 1, rng.integers(0, 60)).tolist()
        windows = list(cut_windows(sizes, budget))
        assert [word for _, answered in windows for word in answered] == list(range(len(sizes)))
        for read, answered in windows:
            assert sum(sizes[word] for word in read) <= budget
            assert set(answered) <= set(read)
            assert answered
    read, answered = list(cut_windows([1] * 100, 20))[1]
    assert (answered.start - read.start, read.stop - answered.stop) == (5, 5)
    assert list(cut_windows([1] * 20, 20)) == [(range(20), range(20))]


def test_a_long_sentence_is_read_in_windows_and_scored_whole(read):
    words = [letter * 3 for letter in "abcdefghij"]
    lines = "\n".join(f"{word} {'B-X' if number % 3 == 0 else 'O'}" for number, word in enumerate(words))
    task = read(lines, max_length=14)
    encoded = task.splits["train"]
    assert len(encoded.windows) > 2
    assert encoded.lengths.max() <= 14
    assert encoded.notes == ("1 of 1 sentences read in several windows of 14 tokens",)
    labels = task.sentences["train"][0].labels
    assert task.score("train", answered(task, "train", [labels]))["f1"] == 1
    wrong = [1 - label for label in labels]
    assert task.score("train", answered(task, "train", [wrong]))["accuracy"] == 0
    batch = encoded.batch(np.arange(len(encoded.windows)), length=14)
    assert (batch["labels"] >= 0).sum() == len(words)


def test_words_longer_than_a_row_and_empty_sentences_are_noted():
    sentences = [Sentence(("abcdefgh", "i"), (0, 1)), Sentence((), ())]
    encoded = encode_sentences(sentences, Letters(SILENT), max_length=6, notes=("read",))
    assert encoded.notes == (
        "read",
        "1 of 2 sentences read in several windows of 6 tokens",
        "1 empty sentences",
        "1 words cut to 4 pieces",
    )
    assert [window.words.tolist() for window in encoded.windows] == [[0], [1]]


def test_words_have_a_space_in_front_but_for_the_first():
    class Spaces(Letters):
        def encode_batch(self, texts):
            self.texts = list(texts)
            return super().encode_batch(texts)

    tokenizer = Spaces()
    encode_sentences([Sentence(("a", "b"), (0, 1)), Sentence(("c",), (0,))], tokenizer, max_length=8)
    assert tokenizer.texts == ["a", " b", "c"]


def test_pieces_are_those_of_the_whole_sentence(small_model):
    """SentencePiece never joins pieces across a space."""
    from deberta_jax import Tokenizer

    tokenizer = Tokenizer.from_folder(small_model)
    words = ("The", "man", "was", "not", "very", "happy,", "said", "he")
    encoded = encode_sentences([Sentence(words, (0,) * len(words))], tokenizer, max_length=64)
    assert encoded.windows[0].ids.tolist() == tokenizer(" ".join(words)).input_ids


# ---------------------------------------------------------------------------------------------------------- metrics

TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC", "X-Y"))]


def random_tags(rng, tags=TAGS):
    return [rng.choice(tags, rng.integers(1, 9)).tolist() for _ in range(40)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("seed", range(20))
def test_entities_and_scores_are_those_of_seqeval(seed):
    rng = np.random.default_rng(seed)
    truth = random_tags(rng)
    predicted = [[tag if rng.random() < 0.7 else str(rng.choice(TAGS)) for tag in sentence] for sentence in truth]
    for sentence in truth:
        assert list(entities(sentence)) == [
            Entity(kind, start, stop + 1) for kind, start, stop in get_entities(sentence)
        ]
    assert entity_scores(predicted, truth) == pytest.approx(
        {
            "f1": seqeval_metrics.f1_score(truth, predicted),
            "precision": seqeval_metrics.precision_score(truth, predicted),
            "recall": seqeval_metrics.recall_score(truth, predicted),
        }
    )


def test_scores_of_nothing_are_zero():
    assert entity_scores([["O"]], [["O"]]) == {"f1": 0, "precision": 0, "recall": 0}
    assert entity_scores([["B-X"]], [["O"]])["precision"] == 0
    with pytest.raises(ValueError, match="2 predicted tags for a sentence of 1 words"):
        entity_scores([["O", "O"]], [["O"]])


def test_bilou_means_what_iobes_does():
    assert list(entities(["B-X", "I-X", "L-X", "U-Y", "O"])) == [Entity("X", 0, 3), Entity("Y", 3, 4)]


@pytest.mark.parametrize(
    ("tags", "marks"),
    [
        (["O", "B-X"], True),
        (["I-X"], True),
        (["O"], False),
        (["NN", "O"], False),
        (["B-X", "NN"], False),
        (["B-"], False),
    ],
)
def test_which_labels_mark_entities(tags, marks):
    assert marks_entities(tags) is marks


def test_accuracy_is_that_of_seqeval_and_records_say_what_was_found(read):
    task = read(CONLL)
    predicted = [[2, 0, 0], [1]]
    found = answered(task, "train", predicted)
    names = [[task.label_names[label] for label in labels] for labels in predicted]
    truth = [["B-PER", "I-PER", "O"], ["B-LOC"]]
    figures = task.score("train", found)
    assert figures["accuracy"] == seqeval_metrics.accuracy_score(truth, names) == 0.75
    assert figures["f1"] == seqeval_metrics.f1_score(truth, names) == 0.5
    assert next(task.records("train", found)) == {
        "words": ["John", "Smith", "sleeps"],
        "labels": ["B-PER", "I-PER", "O"],
        "predictions": ["B-PER", "O", "O"],
        "probabilities": [0.5, 0.5, 0.5],
        "entities": [{"kind": "PER", "start": 0, "stop": 1, "words": ["John"]}],
    }


def test_words_without_pieces_are_answered_with_o(read):
    task = read("a B-X\n. O\nb O\n", test="a\n.\n")
    record = next(task.records("test", answered(task, "test", [[1, 1]])))
    assert record["predictions"] == ["B-X", "O"]
    assert record["probabilities"] == [0.5, None]
    assert "labels" not in record


def test_answers_that_cannot_be_scored(read):
    task = read(CONLL, test="John\n")
    found = answered(task, "test", [[0]])
    with pytest.raises(ValueError, match="the test split has no labels"):
        task.score("test", found)
    found[0]["probability"][1] = np.nan
    with pytest.raises(ValueError, match="of sentence 0 are not finite; the model has diverged"):
        list(task.records("test", found))


# ------------------------------------------------------------------------------------------------------------- runs


def test_batches_of_windows():
    sentences = [Sentence(tuple("abc"[: 1 + number % 3]), tuple([0, 1, 0][: 1 + number % 3])) for number in range(7)]
    encoded = encode_sentences(sentences, Letters(SILENT), max_length=8)
    batch = next(FinetuneBatches(encoded, batch_size=4, max_length=8, seed=0))
    assert batch["labels"].shape == batch["input_ids"].shape == (4, 8)
    seen = [numbers for numbers, _ in evaluation_batches(encoded, batch_size=4, max_length=8)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(7))


def test_finetuning_learns_labels_of_words(small_model: Path, tmp_path: Path):
    """The man is a person: any model that trains at all tells these words apart."""
    lines = ["the O\nman B-PER\nsaw O\nher I-PER\n", "he O\nsaw O\nthe O\nman B-PER\nand O\nher I-PER\n"]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.conll").write_text("\n".join(lines * 16))
    config = finetune_config(
        output=tmp_path / "run",
        model=small_model,
        kind="tokens",
        train=str(tmp_path / "train.conll"),
        validation=str(tmp_path / "dev.conll"),
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
