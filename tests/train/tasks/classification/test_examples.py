"""Tests of reading the examples of classification and regression, and of every way in which a row can be bad."""

import pytest

from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.train.tasks.classification.examples import Example, load_examples
from deberta_jax.train.tasks.sources.classes import Head

from ....support.published_archives import json_lines

TSV = 'text\tlabel\nsay "hi\tyes\nbad\tno\n'


def test_a_file_is_a_task(write):
    task = load_examples(write("films.tsv", TSV))
    assert task.splits == {"train": (Example('say "hi', None, 1), Example("bad", None, 0))}
    assert (task.name, task.label_names, task.metrics) == ("films", ("no", "yes"), ("accuracy", "macro_f1"))


def test_pairs_are_read_from_two_columns(write):
    task = load_examples(write("a.csv", "text,label,pair\na,x,p\nd,y,q"), pair_column="pair")
    assert task.splits["train"] == (Example("a", "p", 0), Example("d", "q", 1))


def test_booleans_are_classes(write):
    rows = '{"question": "a", "label": true}\n{"question": "b", "label": false}'
    task = load_examples(write("a.jsonl", rows), text_column="question")
    assert task.label_names == ("false", "true")
    assert task.splits["train"] == (Example("a", None, 1), Example("b", None, 0))


def test_integer_labels_sort_as_numbers(write):
    task = load_examples(write("a.tsv", "text\tlabel\na\t10\nb\t9\nc\t-1\n"))
    assert task.label_names == ("-1", "9", "10")
    assert [example.label for example in task.splits["train"]] == [2, 1, 0]


def test_regression_has_scores_for_labels(write):
    task = load_examples(write("a.tsv", "text\tlabel\na\t2.5\nb\t-1\n"), kind="regression")
    assert (task.label_names, task.metrics) == ((), ("pearson", "spearman"))
    assert [example.label for example in task.splits["train"]] == [2.5, -1.0]
    assert all(isinstance(example.label, float) for example in task.splits["train"])


def test_validation_and_test_have_the_classes_of_training(write):
    validation = write("validation.csv", "label,text\nno,v\n")
    task = load_examples(write("a.tsv", TSV), validation=validation, test=write("test.tsv", "id\ttext\n0\tt\n"))
    assert task.splits["validation"] == (Example("v", None, 0),)
    assert task.splits["test"] == (Example("t", None, None),)  # the labels of a test set are optional
    labeled = load_examples(write("a.tsv", TSV), test=validation)
    assert labeled.splits["test"] == (Example("v", None, 0),)


def test_a_file_and_a_published_set_can_be_combined(fake_tfds, write):
    task = load_examples(
        write("a.csv", "words,class\nx,positive\ny,negative\n"),
        validation="tfds:glue/sst2@train",
        text_column="words",
        label_column="class",
        **fake_tfds,
    )
    assert task.splits["train"] == (Example("x", None, 1), Example("y", None, 0))
    assert len(task.splits["validation"]) == 3


@pytest.mark.parametrize("label", [-1, "-1", "-1.0", -100, None, "", " ", float("nan")])
def test_a_test_file_may_hide_its_labels(write, label):
    rows = [{"text": text, "label": label} for text in "ab"]
    task = load_examples(write("a.tsv", TSV), test=write("test.jsonl", json_lines(*rows)))
    assert task.splits["test"] == (Example("a", None, None), Example("b", None, None))


def test_minus_one_may_be_a_class_or_a_score(write):
    test = write("test.tsv", "text\tlabel\na\t-1\n")
    task = load_examples(write("a.tsv", "text\tlabel\na\t-1\nb\t1\n"), test=test)
    assert task.splits["test"] == (Example("a", None, 0),)
    scores = write("a.tsv", "text\tlabel\na\t-1\nb\t1\n")
    assert load_examples(scores, test=scores, kind="regression").splits["test"][0].label == -1
    hidden = load_examples(scores, test=write("t.tsv", "text\tlabel\na\t-1\nb\t-1.0\n"), kind="regression")
    assert [example.label for example in hidden.splits["test"]] == [None, None]
    assert hidden.notes["test"] == ("labels of -1 read as not published",)


def test_hidden_labels_among_others_are_named(write):
    train = write("a.tsv", TSV)
    some = write("t.tsv", "text\tlabel\na\tno\nb\t-1\n")
    with pytest.raises(UserError, match=r"t\.tsv, line 3: the label is -1, .* give every row a label, or none"):
        load_examples(train, test=some)
    with pytest.raises(UserError, match=r"t\.tsv, line 3: the label is -1, which stands for one that is not publish"):
        load_examples(train, validation=some)


def test_blank_texts_are_kept_and_noted(write):
    """pandas writes missing values as empty cells, null or NaN."""
    rows = [{"text": text, "pair": "p"} for text in ("a", "", None, float("nan"), "b")]
    train = write("a.tsv", "text\tpair\tlabel\na\t\tno\n  \tc\tyes\n")
    task = load_examples(train, test=write("t.jsonl", json_lines(*rows)), pair_column="pair")
    assert task.splits["train"] == (Example("a", "", 0), Example("  ", "c", 1))
    assert task.notes["train"] == ("2 with a blank text, the first in line 2",)
    assert [example.text for example in task.splits["test"]] == ["a", "", "", "", "b"]
    assert task.notes["test"] == ("3 with a blank text, the first in line 2",)


def test_classes_of_a_single_example_among_many_are_noted(write):
    rows = "".join(f"text {number}\t{'yes' if number % 2 else 'no'}\n" for number in range(40))
    assert load_examples(write("a.tsv", f"text\tlabel\n{rows}")).notes["train"] == ()
    notes = load_examples(write("a.tsv", f"text\tlabel\n{rows}more\tYse\n")).notes["train"]
    assert notes == ("only one example of 'Yse'",)


def test_the_classes_of_the_model_come_before_the_official_order(fake_tfds):
    """`tfds:glue/mnli` in another order than the official one, in capitals."""
    head = Head(3, ("CONTRADICTION", "ENTAILMENT", "NEUTRAL"))
    task = load_examples("tfds:glue/mnli", head=head, **fake_tfds)
    assert task.label_names == head.names
    labels = {example.text.removeprefix("p "): example.label for example in task.splits["train"]}
    assert labels == {"contradiction": 0, "entailment": 1, "neutral": 2}


BAD_FILES = {
    "no column": ("a.tsv", "sentence\tlabel\na\t0\n", r"line 2: no column 'text'; the columns are 'sentence', 'label'"),
    "no json key": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}', r"line 2: no column 'label'; .* 'text'"),
    "json nul": ("a.jsonl", r'{"text": "a\u0000", "label": 1}', r"line 1: column 'text' holds a NUL"),
    "half pair": ("a.jsonl", r'{"text": "a\ud800", "label": 1}', r"line 1: .*half a surrogate pair"),
    "only header": ("a.tsv", "text\tlabel\n", r"a\.tsv has no rows"),
    "number for text": ("a.jsonl", '{"text": 3, "label": 1}', r"line 1: column 'text' holds 3, not text"),
    "one class": ("a.tsv", "text\tlabel\na\tx\nb\tx\n", r"a\.tsv has only one class, 'x'; training needs at least two"),
    "no label": ("a.tsv", "text\tlabel\na\tx\nb\t\n", r"line 3: the label is empty"),
    "float label": ("a.jsonl", '{"text": "a", "label": 1.5}', r"line 1: label 1\.5 is not a class.*'regression'"),
    "null label": ("a.jsonl", '{"text": "a", "label": null}', r"line 1: label None is not a class"),
    "blank texts": ("a.tsv", "text\tlabel\n \tx\n  \ty\n", r"a\.tsv: all texts are blank; give the column"),
    "no class": ("a.jsonl", '{"text": "a", "label": -100}', r"line 1: the label is -100, which stands for no label"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_rows_are_named(write, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        load_examples(write(name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", ["nan", "inf", "1e999", "", "good", "True"])
def test_scores_must_be_finite_numbers(write, label):
    with pytest.raises(UserError, match=rf"a\.tsv, line 3: label '{label}' is not a finite number"):
        load_examples(write("a.tsv", f"text\tlabel\na\t0.5\nb\t{label}\n"), kind="regression")


def test_bad_rows_of_parquet_files_are_numbered_as_records(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"text": ["a", "b", "c"], "label": [1, 0, 1], "score": [0.5, None, 1.0]})
    parquet.write_table(table, tmp_path / "a.parquet")
    task = load_examples(tmp_path / "a.parquet")
    assert task.splits["train"] == (Example("a", None, 1), Example("b", None, 0), Example("c", None, 1))
    with pytest.raises(UserError, match=r"record 0: no column 'sentence'; the columns are 'text', 'label', 'score'"):
        load_examples(tmp_path / "a.parquet", text_column="sentence")
    with pytest.raises(UserError, match=r"record 1: label None is not a finite number"):
        load_examples(tmp_path / "a.parquet", label_column="score", kind="regression")
    parquet.write_table(table[:0], tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"none\.parquet has no rows"):
        load_examples(tmp_path / "none.parquet")


def test_bad_rows_of_held_out_files_are_named(write):
    train = write("a.tsv", TSV)
    with pytest.raises(UserError, match=r"v\.tsv, line 3: label 'perhaps' is not one of the given labels: yes, no"):
        load_examples(train, validation=write("v.tsv", "text\tlabel\na\tno\nb\tperhaps\n"), labels=("yes", "no"))
    with pytest.raises(UserError, match=r"v\.tsv, line 2: no column 'label'"):
        load_examples(train, validation=write("v.tsv", "text\nonly\n"))
    with pytest.raises(UserError, match=r"t\.jsonl, line 2: row 1 and this one differ: give every row a label"):
        load_examples(train, test=write("t.jsonl", '{"text": "a"}\n{"text": "b", "label": "no"}'))
    with pytest.raises(MissingFileError, match=r"missing\.tsv: no such file"):
        load_examples(train, validation="missing.tsv")


def test_regression_is_refused_for_a_published_classification():
    with pytest.raises(UserError, match="is a classification task"):
        load_examples("tfds:glue/sst2", kind="regression")
