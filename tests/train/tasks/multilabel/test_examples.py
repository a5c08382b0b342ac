"""The forms of the labels of a multi-label file, and what is wrong with one."""

import re
from typing import Any

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.multilabel import task as multilabel
from deberta_jax.train.tasks.sources.classes import NO_HEAD, Head

from ....support.configs import finetune_config
from ....support.letters import Letters
from ....support.published_archives import json_lines


def load(write, content: Any, *, name="train.jsonl", head=NO_HEAD, **options):
    content = content if isinstance(content, str) else json_lines(*content)
    config = finetune_config(train=write(name, content), kind="multilabel", max_length=16, **options)
    return multilabel.load(config, Letters(), head=head)


def labels_of(task, split="train"):
    return [
        None if example.labels is None else [task.label_names[index] for index in example.labels]
        for example in task.examples[split]
    ]


EXPECTED = [["a", "c"], [], ["b"]]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("t.jsonl", [{"text": "x", "labels": ["c", "a"]}, {"text": "y", "labels": []}, {"text": "", "labels": "b"}], {}),
        ("t.tsv", "text\tlabels\nx\ta|c\ny\t\nz\tb\n", {}),
        ("t.csv", 'text,labels\nx,"a, c"\ny,\nz,b\n', {}),
        ("t.csv", "text,labels\nx,a c\ny,\nz,b\n", {"label_separator": " "}),
        ("t.csv", "text,tags\nx,\"['a', 'c']\"\ny,[]\nz,\"[\"\"b\"\"]\"\n", {"label_column": "tags"}),
        ("t.csv", "text,a,b,c\nx,1,0,1\ny,0,0,0.0\nz,False,True,0\n", {"labels": ("a", "b", "c")}),
        ("t.jsonl", [{"text": text, **dict(zip("abc", row, strict=True))} for text, row in
                     (("x", (1, 0, True)), ("y", (0, 0, 0)), ("z", (False, 1.0, 0)))], {"labels": ("a", "b", "c")}),
    ],
)  # fmt: skip
def test_labels_may_have_any_form(write, name: str, content: Any, options: dict[str, Any]) -> None:
    task = load(write, content, name=name, **options)
    assert task.label_names == ("a", "b", "c")
    assert labels_of(task) == EXPECTED


def test_a_batch_has_a_row_of_0_and_1_for_each_example(write) -> None:
    task = load(write, "text\tlabels\nx\ta|c\ny\t\nz\tb\n", name="t.tsv")
    batch = task.splits["train"].batch(np.array([2, 0]), length=4)
    assert batch["labels"].tolist() == [[0, 1, 0], [1, 0, 1]]
    assert batch["labels"].dtype == np.float32
    assert task.splits["train"].notes == ("labels separated by '|'",)


def test_the_order_is_that_of_the_user_or_of_the_model(write) -> None:
    rows = [{"text": "x", "labels": ["c", "a"]}, {"text": "z", "labels": ["b"]}]
    assert load(write, rows, labels=("c", "b", "a", "d")).label_names == ("c", "b", "a", "d")
    assert load(write, rows, head=Head(4, ("B", "C", "A", "D"))).label_names == ("B", "C", "A", "D")
    assert load(write, rows).label_names == ("a", "b", "c")


def test_a_test_without_labels_is_not_labeled(write) -> None:
    rows = [{"text": "x", "labels": ["c", "a"]}, {"text": "z", "labels": []}]
    missing = write("missing.jsonl", json_lines({"text": "t"}))
    null = write("null.jsonl", json_lines({"text": "t", "labels": None}))
    blank = write("blank.tsv", "text\tlabels\nt\t\nu\t\n")
    for test in (missing, null, blank):
        task = load(write, rows, test=test)
        assert not task.splits["test"].labeled
        assert labels_of(task, "test")[0] is None
    hidden = write("hidden.csv", "text,a,c\nt,-1,-1\n")
    columns = "text,a,c\nx,1,0\ny,0,1\n"
    assert not load(write, columns, name="t.csv", test=hidden, labels=("a", "c")).splits["test"].labeled


ROWS = [{"text": "x", "labels": ["c", "a"]}, {"text": "z", "labels": ["b"]}]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("t.tsv", "text\tlabels\nx\ta|b\ny\ta,b\n", {}, "labels have '|' and ',', as in 'a|b'; give the separator as"),
        ("t.tsv", "text\tlabels\nx\ta||b\ny\tb\n", {}, "line 2: the labels 'a||b' have an empty one; write them as"),
        ("t.jsonl", ROWS, {"labels": ("a", "b")}, "line 1: label 'c' is not one of the given labels: a, b"),
        ("t.jsonl", [{"text": "x", "labels": None}], {}, "line 1: column 'labels' is null; write an empty list"),
        ("t.jsonl", [{"text": "x", "labels": {"a": 1}}], {}, "not a list of labels or a text with separators"),
        ("t.jsonl", [{"text": "x", "labels": [["a"]]}], {}, "line 1: label ['a'] is not a class name"),
        ("t.jsonl", [{"text": "x", "labels": []}], {}, "has no labels; training needs at least two classes"),
        ("t.csv", "text,labels\nx,\"['a', b]\"\n", {}, "which is not a list of names; write them as a|b"),
        ("t.csv", "text,a,b\nx,1,0\ny,0.3,1\n", {"labels": ("a", "b")}, "line 3: column 'a' holds '0.3'; a column of"),
        ("t.csv", "text,a,b\nx,1,0\ny,-1,-1\n", {"labels": ("a", "b")}, "line 3: column 'a' holds '-1'; a column of"),
        ("t.csv", "text,a,b\nx,1,0\n", {}, "no column 'labels'; the columns are 'text', 'a', 'b'; give the column of"),
        ("t.csv", "text,a\nx,1\n", {"labels": ("a", "b")}, "as --labels (not among them: 'b')"),
        ("t.csv", "text,labels\n ,a|b\n", {}, "all texts are blank"),
    ],
)
def test_labels_that_cannot_be_used_are_named(write, name, content, options, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load(write, content, name=name, **options)


def test_a_label_of_the_test_alone_is_an_error(write) -> None:
    test = write("test.jsonl", json_lines({"text": "t", "labels": ["new"]}))
    with pytest.raises(UserError, match="'new' of the held-out examples are not among the classes of training and"):
        load(write, ROWS, test=test)
