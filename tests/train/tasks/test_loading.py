"""Tests that the kind of a task follows from its settings and its training source, and of the memory that it takes."""

from pathlib import Path

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.loading import load_task

from ...benchmarks.finetune_memory import CASES, measure, write_file
from ...support.configs import changed, finetune_config
from ...support.letters import Letters
from ...support.published_archives import CONTEXT, squad_file, squad_question

# Bytes that do not grow with the file: pieces of text, blocks that are not full, modules. Padded rows take 100 MB.
BUFFERS = 26 << 20


def test_a_file_without_a_kind_is_a_classification(write):
    train = write("a.tsv", "text\tlabel\na\t0\nb\t1\n")
    task = load_task(finetune_config(train=train), Letters())
    assert (task.name, task.label_names, task.main_metric) == ("a", ("0", "1"), "accuracy")
    task = load_task(finetune_config(train=train, kind="regression"), Letters())
    assert (task.label_names, task.main_metric) == ((), "pearson")


def test_a_published_file_has_the_kind_of_its_set(write, tokenizer):
    path = write("train-v2.0.json", squad_file(squad_question("a", ("Anne", 0)), context=CONTEXT))
    task = load_task(finetune_config(train=f"squad/v2.0:{path}"), tokenizer)
    assert (task.name, task.main_metric) == ("squad/v2.0", "f1")


def test_a_set_of_tensorflow_datasets_has_its_kind(fake_tfds, tokenizer):
    config = finetune_config(train="tfds:squad/v2.0", **fake_tfds)
    task = load_task(config, tokenizer)
    assert (task.name, task.main_metric, task.label_names) == ("squad/v2.0", "f1", ())
    assert set(task.splits) == {"train", "validation"}
    with pytest.raises(UserError, match="max_length 64 leaves 0 tokens for the context, beside max_question_length 64"):
        load_task(changed(config, max_length=64), tokenizer)


def test_another_kind_than_that_of_the_set_is_refused():
    config = finetune_config(train="tfds:super_glue/copa", kind="classification")
    with pytest.raises(UserError, match=r"super_glue/copa is a task of kind 'choice'; leave kind out"):
        load_task(config, Letters())


@pytest.mark.parametrize("kind", ["choice", "tokens", "span"])
def test_every_kind_refuses_a_set_of_another_kind(write, kind):
    train = {
        "choice": ("a.jsonl", '{"text": "t", "choices": ["a", "b"], "label": 0}'),
        "tokens": ("a.conll", "a O\nb X\n"),
        "span": ("a.json", squad_file(squad_question("a", ("Anne", 0)))),
    }
    config = finetune_config(train=write(*train[kind]), validation="tfds:glue/sst2", kind=kind)
    with pytest.raises(UserError, match=f"is a set of kind 'classification', which cannot be used for kind '{kind}'"):
        load_task(config, Letters())


LABELS = {
    "one": (("a",), "classification", "labels are 'a'; give at least two names, none of them blank"),
    "blank": (("a", " "), "tokens", "labels are 'a', ' '; give at least two names, none of them blank"),
    "twice": (("a", "b", "a"), "tokens", "labels name 'a' twice; give every class once"),
    "kind": (
        ("a", "b"),
        "span",
        "labels are given for kind 'span'; they name the classes of classification and of multilabel and",
    ),
}


@pytest.mark.parametrize(("labels", "kind", "message"), LABELS.values(), ids=LABELS)
def test_a_list_of_classes_that_cannot_be_used_is_named(labels, kind, message):
    with pytest.raises(UserError, match=message):
        load_task(finetune_config(labels=labels, kind=kind), Letters())


def test_the_user_may_give_the_classes(write):
    train = write("a.tsv", "text\tlabel\na\tno\nb\tyes\n")
    task = load_task(finetune_config(train=train, labels=("yes", "no", "maybe")), Letters())
    assert task.label_names == ("yes", "no", "maybe")
    assert task.splits["train"].notes == ("no example of 'maybe'",)
    tags = write("a.conll", "a O\nb B-X\n")
    task = load_task(finetune_config(train=tags, kind="tokens", labels=("B-X", "I-X", "O")), Letters())
    assert task.label_names == ("B-X", "I-X", "O")
    with pytest.raises(UserError, match=r"a\.conll, line 1: label 'B-X' of word 2, 'b', is not one of the given"):
        load_task(finetune_config(train=tags, kind="tokens", labels=("O", "B-Y")), Letters())


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in ("classification", "choice")]


@pytest.mark.parametrize("case", ["classification", "choice", *SLOW])
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of the resident memory needs Linux")
def test_a_file_takes_less_than_twice_its_size_in_memory(case, small_model, tmp_path):
    """Rows that are padded to `max_length`, or Python objects, would take 7 to 50 times the file."""
    path = tmp_path / f"train{CASES[case].suffix}"
    write_file(path, CASES[case], 8_000_000)
    measured = measure(path, CASES[case], str(small_model))
    assert measured.examples > 3000
    assert measured.peak < 2 * path.stat().st_size + BUFFERS
