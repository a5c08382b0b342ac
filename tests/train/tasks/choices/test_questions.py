"""Tests of reading multiple-choice questions: every form of choices and labels, and every way to get them wrong."""

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.choices import task as choices
from deberta_jax.train.tasks.choices.questions import ChoiceQuestion

from ....support.letters import Letters, task_reader


@pytest.fixture
def read(tmp_path):
    """Returns a function that writes the files of a task and reads them."""
    return task_reader(tmp_path, choices.load, Letters(), kind="choice", name="train.jsonl", max_length=32)


def row(label, *, options=("x", "yy", "z"), **more):
    return {"text": "ctx", "choices": list(options), "label": label, **more}


@pytest.mark.parametrize(
    "labels", [(0, 2), ("0", "2"), ("A", "C"), ("x", "z")], ids=["numbers", "digits", "letters", "texts"]
)
def test_labels_are_indices_letters_or_texts(read, labels):
    task = read([row(label) for label in labels])
    assert task.questions["train"] == tuple(ChoiceQuestion("ctx", None, ("x", "yy", "z"), label) for label in (0, 2))
    assert (task.name, task.label_names, task.main_metric) == ("train", (), "accuracy")


def test_swag_is_read_by_its_columns(read):
    content = (
        ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label\n"
        '0,v,1,A man sits. He,"A man sits, alone.",He,gold,eats.,sleeps.,runs.,sings.,2\n'
    )
    columns = {
        "text_column": "sent1",
        "pair_column": "sent2",
        "choices_columns": ("ending0", "ending1", "ending2", "ending3"),
    }
    task = read(content, "train.csv", **columns)
    expected = ChoiceQuestion("A man sits, alone.", "He", ("eats.", "sleeps.", "runs.", "sings."), 2)
    assert task.questions["train"] == (expected,)
    encoded = task.splits["train"].pair(0, 2).tolist()
    assert bytes(encoded).decode() == "Heruns."


def test_a_question_with_fewer_choices_has_blank_last_columns(read):
    content = "text\ta\tb\tc\tlabel\nt\tx\ty\tz\t2\nt\tx\ty\t\t1\n"
    task = read(content, "train.tsv", choices_columns=("a", "b", "c"))
    assert [question.choices for question in task.questions["train"]] == [("x", "y", "z"), ("x", "y")]
    assert task.splits["train"].notes == ("1 with fewer than 3 choices",)


def test_a_row_with_a_list_of_questions_has_as_many_examples(read):
    article = {
        "text": "An article.",
        "questions": ["What ?", "It is _ ."],
        "options": [["a", "b"], ["c", "d", "e"]],
        "answers": ["B", "A"],
    }
    columns = {"pair_column": "questions", "choices_columns": ("options",), "label_column": "answers"}
    task = read([article], test=[{name: article[name] for name in ("text", "questions", "options")}], **columns)
    expected = [("What ?", ("a", "b"), 1), ("It is _ .", ("c", "d", "e"), 0)]
    assert task.questions["train"] == tuple(ChoiceQuestion("An article.", *parts) for parts in expected)
    assert [question.label for question in task.questions["test"]] == [None, None]
    assert not task.splits["test"].labeled


BAD_ROWS = {
    "no text": ([{"choices": ["a", "b"], "label": 0}], {}, r"line 1: no column 'text'; the columns are 'choices'"),
    "no choices": ([{"text": "a", "label": 0}], {}, r"line 1: no column 'choices'; the columns are 'text', 'label'"),
    "no label": ([row(0), {"text": "t", "choices": ["a", "b"]}], {}, r"line 2: no column 'label'; the columns are"),
    "one choice": ([row(0, options=["a"])], {}, r"line 1: there is 1 choice in choices; give at least two"),
    "blank choice": ([row(0, options=["a", ""])], {}, r"line 1: column 'choices' is empty"),
    "no list": ([row(0) | {"choices": "a"}], {}, r"line 1: column 'choices' holds 'a', not a list; name one column"),
    "number": ([row(0, options=["a", 3])], {}, r"line 1: column 'choices' holds 3, not text"),
    "beyond": ([row(0), row(3)], {}, r"line 2: label 3 is not one of the choices, which are 0 to 2"),
    "negative": ([row(-1)], {}, r"line 1: label -1 is not one of the choices, which are 0 to 2"),
    "letter beyond": ([row("A"), row("D")], {}, r"line 2: label 'D' is not one of the choices, which are A to C"),
    "unseen": ([row("x"), row("w")], {}, r"line 2: label 'w' is the text of 0 choices; it must be that of one"),
    "twice": ([row("xx", options=["xx", "xx"])], {}, r"line 1: label 'xx' is the text of 2 choices"),
    "ambiguous": (
        [row("1", options=["1", "0"])],
        {},
        r"its labels are indices and also texts of choices; write letters",
    ),
    "ambiguous letters": ([row("A", options=["B", "A"])], {}, r"are letters and also texts of choices; write indices"),
    "empty label": ([row("")], {}, r"line 1: the label is empty"),
    "null label": ([row(None)], {}, r"line 1: label None is not the index, the letter or the text"),
    "truth": ([row(True)], {}, r"line 1: label True is not the index, the letter or the text"),
    "uneven": (
        [row([0], q=["a", "b"], options=[["a", "b"], ["c", "d"]])],
        {"pair_column": "q"},
        r"line 1: lists of different lengths: 2 in 'q', 2 in 'choices', 1 in 'label'",
    ),
    "no lists": (
        [row([0], q=["a"], other="b")],
        {"pair_column": "q", "choices_columns": ("choices", "other")},
        r"line 1: column 'q' is a list of questions; their choices must be one column",
    ),
    "no room": ([row(0)], {"max_length": 3}, r"max_length is 3; it must be at least 4"),
}


@pytest.mark.parametrize(("rows", "settings", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_named(read, rows, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        read(rows, **settings)
    assert "\n" not in str(caught.value)


def test_a_blank_choice_before_another_is_refused(read):
    with pytest.raises(UserError, match=r"line 2: column 'a, b, c' is empty"):
        read("text\ta\tb\tc\tlabel\nt\tx\t\tz\t2\n", "train.tsv", choices_columns=("a", "b", "c"))


def test_bad_rows_of_held_out_files_are_named(read):
    with pytest.raises(UserError, match=r"validation\.jsonl, line 1: label 5 is not one of the choices"):
        read([row(0)], validation=[row(5)])
    with pytest.raises(UserError, match=r"line 2: row 1 and this one differ: give every row a label, or none"):
        read([row(0)], test=[row(0), {"text": "t", "choices": ["a", "b"]}])


@pytest.mark.parametrize("hidden", [-1, "-1", None, ""])
def test_a_test_file_may_hide_its_labels(read, hidden):
    task = read([row(0), row(1)], test=[row(hidden), row(hidden)])
    assert [question.label for question in task.questions["test"]] == [None, None]
    assert not task.splits["test"].labeled


def test_a_choice_may_be_minus_one(read):
    options = ["-1", "2"]
    task = read([row("2", options=options), row("-1", options=options)], test=[row("-1", options=options)])
    assert task.questions["test"][0].label == 0


def test_blank_contexts_and_questions_are_kept_and_noted(read):
    task = read([row(0, q="why") | {"text": " "}, row(1, q="")], pair_column="q")
    assert "2 with a blank context or question" in task.splits["train"].notes
