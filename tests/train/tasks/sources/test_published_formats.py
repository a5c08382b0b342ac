"""Tests that published sets give the same examples from tensorflow_datasets and from their files."""

import dataclasses
import json

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.choices.questions import ChoiceQuestion
from deberta_jax.train.tasks.classification.examples import Example, load_examples
from deberta_jax.train.tasks.loading import load_task
from deberta_jax.train.tasks.tokens.sentences import Sentence

from ....support.configs import finetune_config
from ....support.letters import Letters
from ....support.published_archives import ANLI, BOOLQ, CONLL, COPA, COPA_CAUSE, MULTIRC, RACE, RECORD, WIC, XNLI
from ....support.published_archives import json_lines as lines

NLI = ("contradiction", "neutral", "entailment")
RECORD_EXAMPLES = tuple(
    Example(RECORD["passage"]["text"], f"A river, {entity}, flows", label, "5/9", entity)
    for entity, label in (("France", 0), ("Paris", 0), ("the Rhine", 1))
)


def load(train, **settings):
    return load_task(finetune_config(train=train, **settings), Letters())


# ---------------------------------------------------------------------------------------------- tensorflow_datasets


def test_sst2(fake_tfds):
    task = load_examples("tfds:glue/sst2", test="tfds:glue/sst2", **fake_tfds)
    assert (task.name, task.label_names, task.metrics) == ("glue/sst2", ("negative", "positive"), ("accuracy",))
    expected = {Example('a "good film', None, 1), Example("bad", None, 0), Example("café", None, 1)}
    assert set(task.splits["train"]) == expected
    assert task.splits["validation"] == (Example("fair", None, 1),)
    assert task.splits["test"] == (Example("hidden", None, None),)


def test_mnli_has_the_official_order_of_classes(fake_tfds):
    """tensorflow_datasets numbers entailment 0, whereas the official DeBERTa tasks number contradiction 0."""
    task = load_examples("tfds:glue/mnli", test="tfds:glue/mnli@test_mismatched", **fake_tfds)
    assert task.label_names == NLI
    expected = {Example(f"p {name}", f"h {name}", label) for label, name in enumerate(NLI)}
    assert set(task.splits["train"]) == expected
    assert set(task.splits["validation"]) == expected
    assert task.splits["validation_mismatched"] == (Example("other p", "other h", 1),)
    assert task.splits["test"] == (Example("v", "w", None),)


def test_mrpc(fake_tfds):
    task = load_examples("tfds:glue/mrpc", **fake_tfds)
    assert set(task.splits["train"]) == {Example("a", "same a", 1), Example("b", "c", 0)}
    assert task.splits["validation"] == (Example("d", "same d", 1),)
    assert task.metrics == ("accuracy", "f1")


def test_stsb_is_a_regression_and_may_have_empty_texts(fake_tfds):
    task = load_examples("tfds:glue/stsb", test="tfds:glue/stsb", **fake_tfds)
    assert (task.metrics, task.label_names) == (("pearson", "spearman"), ())
    assert set(task.splits["train"]) == {Example("a", "b", 4.5), Example("c", "", 0.0)}
    assert task.splits["test"] == (Example("e", "f", None),)


def test_boolq(fake_tfds):
    task = load_examples("tfds:super_glue/boolq", test="tfds:super_glue/boolq", **fake_tfds)
    assert task.label_names == ("false", "true")
    assert set(task.splits["train"]) == {Example("It is.", "is it", 1), Example("It is.", "is it", 0)}
    assert task.splits["test"] == (Example("It is.", "is it", None),)


def test_copa(fake_tfds):
    task = load("tfds:super_glue/copa", test="tfds:super_glue/copa", **fake_tfds)
    assert (task.name, task.label_names, task.main_metric) == ("super_glue/copa", (), "accuracy")
    effect = ChoiceQuestion("It rained.", "so", ("I got wet.", "I ate."), 0)
    cause = ChoiceQuestion("It rained.", "because", ("I ate.", "Clouds came."), 1)
    assert set(task.questions["train"]) == {effect, cause}
    assert task.questions["test"] == (dataclasses.replace(effect, label=None),)
    assert set(task.splits) == {"train", "validation", "test"}


def test_answers_of_multirc_are_grouped_by_question(fake_tfds):
    task = load_examples("tfds:super_glue/multirc", test="tfds:super_glue/multirc", **fake_tfds)
    expected = {Example("A text.", "Who ? he", 1, "3/7"), Example("A text.", "Who ? she", 0, "3/7")}
    assert set(task.splits["train"]) == expected
    assert task.metrics == ("f1", "exact_match")
    assert {example.label for example in task.splits["test"]} == {None}


def test_entities_fill_the_gap_of_record(fake_tfds):
    task = load_examples("tfds:super_glue/record", test="tfds:super_glue/record", **fake_tfds)
    assert task.splits["train"] == task.splits["validation"] == RECORD_EXAMPLES
    assert (task.label_names, task.metrics) == (("false", "true"), ("answer_f1", "answer_exact_match"))
    assert task.splits["test"] == tuple(dataclasses.replace(example, label=None) for example in RECORD_EXAMPLES)


def test_wic_marks_the_word(fake_tfds):
    task = load_examples("tfds:super_glue/wic", **fake_tfds)
    texts = ('bank: By the "banks".', 'bank: A "bank", a bank.')
    assert set(task.splits["train"]) == {Example(*texts, 0), Example(*texts, 1)}


def test_anli_has_the_official_order_of_classes(fake_tfds):
    task = load_examples("tfds:anli/r1", test="tfds:anli/r1", **fake_tfds)
    assert task.label_names == NLI
    for split in ("train", "validation", "test"):
        assert set(task.splits[split]) == {Example("a", "b", 0), Example("a", "b", 2)}


def test_a_language_of_xnli(fake_tfds, write):
    train = write("a.tsv", "text\tpair\tlabel\na\tb\tneutral\na\tb\tentailment\n")
    xnli = {"validation": "tfds:xnli/de", "test": "tfds:xnli/zh"}
    task = load_examples(train, **xnli, pair_column="pair", **fake_tfds)
    assert set(task.splits["validation"]) == {Example("p de", "h de", 0), Example("p de", "h de", 1)}
    assert {example.text for example in task.splits["test"]} == {"p zh"}
    with pytest.raises(UserError, match=r"tfds:xnli/de has no split 'train'; there are .*validation"):
        load_examples("tfds:xnli/de", **fake_tfds)


def test_race_joins_high_and_middle(fake_tfds):
    task = load("tfds:race/high", test="tfds:race/high", **fake_tfds)
    first = ChoiceQuestion("high train", "Q1 ?", ("a", "b", "c", "d"), 1)
    second = ChoiceQuestion("high train", "It is _ .", ("e", "f", "g", "h"), 0)
    assert task.questions["train"] == (first, second)
    assert task.questions["validation"][0].context == "high dev"
    assert task.questions["test"][0].context == "high test"
    both = load("tfds:race", **fake_tfds)
    assert {question.context for question in both.questions["train"]} == {"high train", "middle train"}
    assert len(both.questions["train"]) == 4


def test_conll2003_has_no_checksum_and_is_read_from_the_manual_folder(fake_tfds):
    task = load("tfds:conll2003", test="tfds:conll2003", **fake_tfds)
    assert task.label_names == ("O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
    assert task.sentences["train"][:2] == (Sentence(("EU", "runs"), (5, 0)), Sentence(("Paris",), (7,)))
    assert set(task.sentences) == {"train", "validation", "test"}
    # tensorflow_datasets makes an empty sentence of the empty line at the end of a file.
    assert task.sentences["train"][2:] == (Sentence((), ()),)
    assert task.splits["train"].notes == ("1 empty sentences",)


# -------------------------------------------------------------------------------------------------- published files


@pytest.mark.parametrize("name", ["high", "high.txt", "high.jsonl"])
def test_race_is_a_folder_or_its_files_in_one(tmp_path, name):
    """The 27,933 files end without a line end, so that their concatenation has several objects per line."""
    contents = [json.dumps({**RACE, "article": f"Article {number}."}) for number in range(3)]
    path = tmp_path / name
    if path.suffix:
        path.write_text("".join(contents), encoding="utf-8")
    else:
        path.mkdir()
        for number, content in enumerate(contents):
            (path / f"{number}.txt").write_text(content, encoding="utf-8")
    task = load(f"race/high:{path}")
    assert [question.context for question in task.questions["train"]] == [f"Article {n}." for n in (0, 0, 1, 1, 2, 2)]
    assert [question.label for question in task.questions["train"]] == [1, 0] * 3
    assert ("3 files read" in task.splits["train"].notes) == (not path.suffix)


def test_published_files_of_classification(write):
    def read(name, *rows, file="a.jsonl"):
        return load_examples(f"{name}:" + write(file, rows[0] if isinstance(rows[0], str) else lines(*rows)))

    boolq = read("super_glue/boolq", BOOLQ, {**BOOLQ, "label": False})
    assert boolq.splits["train"] == (Example("It is.", "is it", 1), Example("It is.", "is it", 0))
    assert (boolq.name, boolq.label_names) == ("super_glue/boolq", ("false", "true"))
    assert read("super_glue/multirc", MULTIRC).splits["train"][0] == Example("A text.", "Who ? he", 1, "3/7")
    assert read("super_glue/record", RECORD).splits["train"] == RECORD_EXAMPLES
    wic = read("super_glue/wic", WIC, {**WIC, "label": True})
    assert wic.splits["train"][0] == Example('bank: By the "banks".', 'bank: A "bank", a bank.', 0)
    anli = read("anli/r1", ANLI, {**ANLI, "label": "n"})
    assert [example.label for example in anli.splits["train"]] == [0, 1]
    xnli = read("xnli/de", XNLI, file="xnli.dev.tsv")
    assert xnli.splits["train"] == (Example("p de", "h de", 2), Example("p de", "h de", 1))


def test_published_files_of_other_kinds(write):
    copa = load("super_glue/copa:" + write("copa.jsonl", lines(COPA, COPA_CAUSE)))
    assert copa.questions["train"][1] == ChoiceQuestion("It rained.", "because", ("I ate.", "Clouds came."), 1)
    race = load("race/high:" + write("race.jsonl", lines(RACE)))
    assert [question.label for question in race.questions["train"]] == [1, 0]
    conll = load("conll2003:" + write("train.txt", CONLL))
    assert conll.sentences["train"] == (Sentence(("EU", "runs"), (5, 0)), Sentence(("Paris",), (7,)))
    assert conll.splits["train"].notes == ("1 -DOCSTART- lines skipped in train.txt",)


def passage_of_record(**entity):
    return {**RECORD, "passage": {"text": "a", "entities": [entity]}}


BAD_RECORDS = {
    "odd question": (
        "super_glue/copa",
        {**COPA, "question": "why"},
        r"column 'question' holds 'why'; it must be cause or",
    ),
    "no gap": ("super_glue/record", {**RECORD, "qas": [{"idx": 1, "query": "Who ?"}]}, r".* has no @placeholder"),
    "no end": ("super_glue/record", passage_of_record(start=0), r"no column 'end'; the columns are 'start'"),
    "end in words": ("super_glue/record", passage_of_record(start=0, end="x"), r"column 'end' holds 'x', not a whole"),
    "no question": ("super_glue/copa", {"premise": "a"}, r"no column 'question'; the columns are 'premise'"),
    "number": ("super_glue/copa", {**COPA, "premise": 3}, r"column 'premise' holds 3, not text"),
    "far end": ("super_glue/wic", {**WIC, "end1": 99}, r"characters 7 to 99 are not in sentence1, which has 13"),
    "fraction": (
        "super_glue/wic",
        {**WIC, "start1": 0.5},
        r"column 'start1' holds 0\.5, not a whole number",
    ),
    "no questions": ("super_glue/multirc", {"idx": 1, "passage": {"text": "a"}}, r"no column 'questions'"),
    "text for passage": (
        "super_glue/multirc",
        {"idx": 1, "passage": "a"},
        r"column 'passage' holds 'a', not an object",
    ),
    "texts for questions": (
        "super_glue/multirc",
        {"idx": 1, "passage": {"text": "a", "questions": ["b"]}},
        r"column 'questions' holds 'b', not an object",
    ),
    "text for lists": ("race/high", {**RACE, "options": "abc"}, r"column 'options' holds 'abc', not a list"),
}


@pytest.mark.parametrize(("name", "row", "message"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_published_files_of_another_form_are_named(write, name, row, message):
    with pytest.raises(UserError, match=rf"a\.jsonl, line 1: {message}"):
        load(f"{name}:" + write("a.jsonl", lines(row)))


def test_an_unknown_class_of_a_published_file_is_named(write):
    rows = lines(ANLI, {**ANLI, "label": "x"})
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: label 'x' is not a class of training: contradiction"):
        load("anli/r1:" + write("a.jsonl", rows))
