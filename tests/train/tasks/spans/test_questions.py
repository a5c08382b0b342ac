"""Tests of reading questions and answers: SQuAD's layout, other tables, and every way in which a row can be bad."""

import json

import pytest

from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.train.tasks.spans.questions import Answer, SpanQuestion, load_questions

from ....support.published_archives import CONTEXT, json_lines, squad_file, squad_question


@pytest.mark.parametrize("indent", [None, 2])
def test_squads_layout_may_have_one_line_or_many(write, indent):
    first = squad_question("a", ("Anne", 0), ("Anne was", 0))
    second = squad_question("b", is_impossible=True, plausible_answers=[{"text": "Emma", "answer_start": 16}])
    data = load_questions(write("train-v2.0.json", json.dumps(squad_file(first, second), indent=indent)))
    assert data.splits["train"] == (
        SpanQuestion("a", "Who was happy?", CONTEXT, (Answer("Anne", 0), Answer("Anne was", 0))),
        SpanQuestion("b", "Who was happy?", CONTEXT, ()),
    )
    assert set(data.splits) == {"train"}
    assert data.notes["train"] == ()


def test_published_answers_with_a_small_error_are_moved_and_counted(write):
    off_by_two, blank = squad_question("a", ("Emma", 18)), squad_question("b", ("Emma", 16), question=" ")
    data = load_questions(write("a.json", squad_file(off_by_two, blank)))
    assert [question.answers for question in data.splits["train"]] == [(Answer("Emma", 16),)] * 2
    assert data.notes["train"] == (
        "1 questions are blank",
        "1 answers moved by up to 2 characters to where their text is",
    )


ROWS = [
    {"question": "q1", "context": CONTEXT, "answers": {"text": ["Emma", "Anne"], "answer_start": [16, 0]}},
    {"question": "q2", "context": CONTEXT, "answers": [{"text": "was", "answer_start": 21}]},
    {"question": "q3", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
    {"question": "q4", "context": CONTEXT, "answers": []},
    {"question": "q5", "context": CONTEXT, "answers": "was"},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_answers_have_five_forms(write, name):
    data = load_questions(write(name, json_lines(*ROWS)))
    assert [(question.id, question.answers) for question in data.splits["train"]] == [
        ("1", (Answer("Emma", 16), Answer("Anne", 0))),
        ("2", (Answer("was", 21),)),
        ("3", ()),
        ("4", ()),
        ("5", (Answer("was", 5),)),  # the first
    ]


def test_tables_have_columns_of_plain_texts(write):
    columns = {"text_column": "q", "pair_column": "c", "label_column": "a"}
    plain = write("a.tsv", f"q\tc\ta\nwho\t{CONTEXT}\twas\nwhom\t{CONTEXT}\t\n")
    assert [question.answers for question in load_questions(plain, **columns).splits["train"]] == [
        (Answer("was", 5),),
        (),
    ]
    placed = write("b.csv", f"id,q,c,a,answer_start\nx,who,{CONTEXT},was,21\ny,whom,{CONTEXT},,\n")
    questions = load_questions(placed, **columns).splits["train"]
    assert [(question.id, question.answers) for question in questions] == [("x", (Answer("was", 21),)), ("y", ())]
    renamed = write("c.tsv", f"q\tc\ta\tat\nwho\t{CONTEXT}\twas\t21\n")
    assert load_questions(renamed, **columns, start_column="at").splits["train"][0].answers == (Answer("was", 21),)


def test_parquet_files_have_either_form_of_answers(tmp_path):
    import pyarrow
    from pyarrow import parquet

    for number, forms in enumerate((ROWS[0:1] + ROWS[2:3], ROWS[1:2] + ROWS[3:4])):
        parquet.write_table(pyarrow.Table.from_pylist(forms), tmp_path / f"{number}.parquet")
    first, second = (load_questions(str(tmp_path / f"{number}.parquet")).splits["train"] for number in (0, 1))
    assert [question.answers for question in first] == [(Answer("Emma", 16), Answer("Anne", 0)), ()]
    assert [question.answers for question in second] == [(Answer("was", 21),), ()]


def test_a_published_file_is_read_by_the_name_of_its_set(write):
    path = write(
        "train-v2.0.json", squad_file(squad_question("a", ("Anne", 0)), squad_question("b", is_impossible=True))
    )
    data = load_questions(f"squad/v2.0:{path}", validation=f"squad/v2.0:{path}")
    assert (data.name, set(data.splits)) == ("squad/v2.0", {"train", "validation"})
    assert data.splits["validation"][1] == SpanQuestion("b", "Who was happy?", CONTEXT, ())


def test_the_answers_of_a_test_file_are_optional(write):
    train = write("a.json", squad_file(squad_question("a", ("Anne", 0))))
    hidden = write("t.jsonl", json.dumps({"question": "q", "context": "c"}))
    data = load_questions(train, test=hidden)
    assert data.splits["test"] == (SpanQuestion("1", "q", "c", None),)
    with pytest.raises(
        UserError, match=r"t\.jsonl, line 1: no column 'answers'; the columns are 'question', 'context'"
    ):
        load_questions(train, validation=hidden)
    mixed = write("m.jsonl", json.dumps({"question": "q", "context": "c"}) + "\n" + json.dumps(ROWS[0]))
    with pytest.raises(
        UserError, match=r"m\.jsonl, line 2: row 1 and this one differ: give every row a label, or none"
    ):
        load_questions(train, test=mixed)


def row(**changes):
    return {**ROWS[0], **changes}


BAD_ROWS = {
    "no column": ({"question": "q", "text": "c"}, r"line 1: no column 'context'; the columns are 'question', 'text'"),
    "blank question": (row(question=" "), r"line 1: column 'question' is empty"),
    "blank context": (row(context="\n"), r"line 1: column 'context' is empty"),
    "other text": (
        row(answers=[{"text": "Emma", "answer_start": 15}]),
        r"line 1: the answer 'Emma' does not start at character 15, where the context has ' Emm'; it occurs at 16",
    ),
    "nowhere": (row(answers=[{"text": "Mary", "answer_start": 0}]), r"has 'Anne'; it is not in the context"),
    "outside": (
        row(answers=[{"text": "Emma", "answer_start": 300}]),
        r"starts at 300, outside the context, which has 29",
    ),
    "negative": (row(answers=[{"text": "Emma", "answer_start": -1}]), r"starts at -1, outside the context"),
    "plain nowhere": (row(answers="Mary"), r"line 1: the answer 'Mary' is not in the context"),
    "no start": (
        row(answers=[{"text": "Emma"}]),
        r"column 'answers' holds \[\{'text': 'Emma'\}\]; give a text, a list",
    ),
    "uneven": (row(answers={"text": ["Emma"], "answer_start": []}), r"column 'answers' has 1 texts but 0 starts"),
    "null": (row(answers=None), r"column 'answers' holds None; give .* empty where there is no answer"),
    "empty answer": (
        row(answers=[{"text": "", "answer_start": 0}]),
        r"has an answer without text; if there is no answer",
    ),
    "start in words": (row(answers="Emma", answer_start="x"), r"an answer starts at 'x', which is not a whole number"),
    "start is true": (row(answers="Emma", answer_start=True), r"starts at True, which is not a whole number"),
    "contradiction": (row(is_impossible=True), r"is_impossible is true, but column 'answers' has an answer"),
    "number": (row(answers=[{"text": 3, "answer_start": 0}]), r"column 'answers' holds 3, not text"),
    "half pair": (row(id="\ud800"), r"line 1: column 'id' holds a NUL character or half a surrogate pair"),
    "with its id": (row(id="x7", answers="Mary"), r"line 1: question 'x7': the answer 'Mary' is not in the context"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_named(write, row, message):
    with pytest.raises(UserError, match=message) as caught:
        load_questions(write("a.jsonl", json.dumps(row)))
    assert str(caught.value).count("a.jsonl") == 1
    assert "\n" not in str(caught.value)


BAD_FILES = {
    "no article": ({"data": {}}, r"a\.json has no list 'data'; SQuAD's layout is"),
    "no paragraphs": ({"data": [{"title": "t"}]}, r"a\.json: data\[0\] has no list 'paragraphs'"),
    "no context": ({"data": [{"paragraphs": [{"qas": []}]}]}, r"data\[0\]\.paragraphs\[0\] has no text 'context'"),
    "no questions": (squad_file(), r"a\.json has no rows"),
    "odd question": (squad_file("who?"), r"data\[0\]\.paragraphs\[0\]\.qas\[0\] is not an object"),
    "twice": (
        squad_file(squad_question("a", ("Anne", 0)), squad_question("a")),
        r"record 1: question 'a': the id occurs before, in record 0",
    ),
    "misplaced": (
        squad_file(squad_question("a", ("Anne", 9))),
        r"record 0: question 'a': the answer 'Anne' does not start at .* 9",
    ),
    "nothing to learn": (squad_file(squad_question("a")), r"a\.json: no question has an answer"),
    "broken": ('{"data": [\n  {"paragraphs": []},\n  oops\n]}', r"a\.json, line 3: not JSON \(Expecting value"),
    "nested": ("[" * 100_000, r"a\.json, line 1: not JSON \(too many nested lists or objects\)"),
    "broken line": (json.dumps(ROWS[4]) + "\noops", r"a\.json, line 2: not JSON .*; write one object per line"),
    "no answers": (squad_file({"id": "a", "question": "q"}), r"record 0: question 'a': no column 'answers'"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_squad_files_are_named(write, content, message):
    with pytest.raises(UserError, match=message):
        load_questions(write("a.json", content))


def test_missing_files_and_start_columns_are_named(write):
    train = write("a.tsv", f"question\tcontext\tanswers\nwho\t{CONTEXT}\twas\n")
    with pytest.raises(UserError, match=r"line 2: no column 'at'; the columns are 'question', 'context', 'answers'"):
        load_questions(train, start_column="at")
    with pytest.raises(MissingFileError, match=r"nowhere\.json: no such file"):
        load_questions("nowhere.json")


def test_squad_is_read_from_tensorflow_datasets(fake_tfds):
    first, second = (load_questions(f"tfds:squad/{name}", **fake_tfds) for name in ("v1.1", "v2.0"))
    train = {
        SpanQuestion("a", "Who was happy?", CONTEXT, (Answer("Anne", 0),)),
        SpanQuestion("b", "Who was not?", CONTEXT, (Answer("Emma", 16),)),
    }
    dev = SpanQuestion("c", "Who was happy?", CONTEXT, (Answer("Anne", 0), Answer("Anne was happy", 0)))
    assert (first.name, set(first.splits)) == ("squad/v1.1", {"train", "validation"})
    assert set(first.splits["train"]) == train
    assert first.splits["validation"] == (dev,)
    assert set(second.splits["train"]) == train | {SpanQuestion("d", "Who was happy?", CONTEXT, ())}
    assert set(second.splits["validation"]) == {dev, SpanQuestion("e", "Who was happy?", CONTEXT, ())}
