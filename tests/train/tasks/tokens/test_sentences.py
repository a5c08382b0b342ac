"""Tests of reading sentences with labels of words, from .conll files and from tables of lists."""

import json

import pytest

from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.train.tasks.tokens import task as token_labels
from deberta_jax.train.tasks.tokens.sentences import Sentence

from ....support.configs import finetune_config
from ....support.letters import Letters, task_reader

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
    """Returns a function that writes the files of a task and reads them."""
    return task_reader(tmp_path, token_labels.load, Letters(SILENT), kind="tokens", name="train.conll", max_length=16)


@pytest.mark.parametrize("name", ["train.conll", "train.txt"])
def test_conll_files(read, name):
    task = read(CONLL, name, test="John\n\nParis\n", max_length=32)
    assert task.label_names == ("O", "B-LOC", "B-PER", "I-PER")
    assert task.sentences["train"] == (Sentence(("John", "Smith", "sleeps"), (2, 3, 0)), Sentence(("Paris",), (1,)))
    assert task.splits["train"].notes == (f"2 -DOCSTART- lines skipped in {name}",)
    assert task.sentences["test"] == (Sentence(("John",), None), Sentence(("Paris",), None))
    assert not task.splits["test"].labeled
    assert (task.name, task.main_metric) == ("train", "f1")


def test_conll_columns_have_numbers(read):
    task = read(CONLL, label_column="1")
    assert task.label_names == ("NNP", "VBZ")
    assert task.main_metric == "accuracy"
    tabs = read("B-X\ta\u00a0b\r\nO\tc\r\n", text_column="1", label_column="0")
    assert tabs.sentences["train"] == (Sentence(("a\u00a0b", "c"), (1, 0)),)


def test_tables_have_lists_of_words_and_labels(read):
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}, {"tokens": ["c"], "tags": ["O"]}]
    content = "\n".join(map(json.dumps, rows))
    task = read(content, "a.jsonl", text_column="tokens", label_column="tags")
    assert task.sentences["train"] == (Sentence(("a", "b"), (0, 1)), Sentence(("c",), (0,)))


def test_parquet_files_of_hugging_face_name_their_classes(read, tmp_path):
    import pyarrow
    from pyarrow import parquet

    names = {"feature": {"names": ["O", "B-PER", "I-PER"], "_type": "ClassLabel"}, "_type": "Sequence"}
    features = {"tokens": {"feature": {"dtype": "string", "_type": "Value"}}, "ner_tags": names}
    table = pyarrow.table({"tokens": [["John", "ran"]], "ner_tags": [[1, 0]]})
    for has_names, expected in ((True, ("O", "B-PER", "I-PER")), (False, ("0", "1"))):
        metadata = {"huggingface": json.dumps({"info": {"features": features}})} if has_names else None
        parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
        config = finetune_config(
            train=str(tmp_path / "a.parquet"),
            kind="tokens",
            text_column="tokens",
            label_column="ner_tags",
        )
        task = token_labels.load(config, Letters(SILENT))
        assert task.label_names == expected
        assert task.sentences["train"] == (Sentence(("John", "ran"), (1, 0)),)


BAD_FILES = {
    "no column": ("a.conll", "a O\nb X\n", {"label_column": "3"}, r"line 1: no column '3'; the columns are '0', '1'"),
    "no labels": ("a.conll", "a\nb\n", {}, r"a\.conll, line 1: no column '-1'; the columns are '0'"),
    "ragged": ("a.conll", "a O\n\nb X Y\n", {}, r"a\.conll, line 3: 3 columns, but most lines have 2"),
    "one label": (
        "a.conll",
        "a O\nb O\n",
        {},
        r"a\.conll has only one class, 'O'; training needs at least two",
    ),
    "only marks": ("a.conll", "-DOCSTART- O\n", {}, r"a\.conll has no rows"),
    "empty": ("a.conll", "\n\n", {}, r"a\.conll is empty"),
    "no json column": ("a.jsonl", '{"words": ["a"]}', {}, r"line 1: no column 'labels'; the columns are 'words'"),
    "text": ("a.jsonl", '{"words": "a", "labels": ["O"]}', {}, r"line 1: column 'words' holds 'a', not a list"),
    "too few": ("a.jsonl", '{"words": ["a", "b"], "labels": ["O"]}', {}, r"line 1: 1 labels for 2 words"),
    "number": ("a.jsonl", '{"words": [3], "labels": ["O"]}', {}, r"line 1: column 'words' holds 3, not text"),
    "null label": ("a.jsonl", '{"words": ["a"], "labels": [null]}', {}, r"line 1: label None is not a class"),
    "table": (
        "a.tsv",
        "words\tlabels\na b\tO O\n",
        {},
        r"line 2: 'a b' is not a word; write one word with its tags per line",
    ),
    "suffix": ("a.xml", "a O\n", {}, r"unknown suffix '\.xml'; give .*\.parquet"),
    "no room": ("a.conll", "a O\nb X\n", {"max_length": 2}, r"max_length is 2; it must be at least 3"),
    "no pieces": ("a.conll", ". O\n. X\n", {}, r"none of the 2 words has a piece"),
}


@pytest.mark.parametrize(("name", "content", "settings", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named(read, name, content, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        read(content, name, **settings)
    assert "\n" not in str(caught.value)


def test_bad_rows_of_held_out_files_are_named(read):
    with pytest.raises(
        UserError,
        match=r"validation\.conll, line 3: label 'B-ORG' of word 2, 'x', is not one of the given labels: O",
    ):
        read(CONLL, validation="a O\n\nb O\nx B-ORG\n", labels=("O", "B-PER", "I-PER", "B-LOC"))
    with pytest.raises(UserError, match=r"line 2: row 1 and this one differ: give every row a label, or none"):
        read(
            '{"words": ["a", "b"], "labels": ["O", "X"]}',
            "a.jsonl",
            test='{"words": ["a"], "labels": ["O"]}\n{"words": ["b"]}',
        )


def test_missing_conll_files_are_named():
    with pytest.raises(MissingFileError, match=r"missing\.conll: no such file"):
        token_labels.load(finetune_config(train="missing.conll", kind="tokens"), Letters(SILENT))
