"""Tests of tables with separated columns: without a header, with quotation marks, with another separator."""

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.classification.examples import Example, load_examples
from deberta_jax.train.tasks.sources.delimited import Reading
from deberta_jax.train.tasks.sources.files import open_file

COLA = "gj04\t1\t\tA good one.\ngj04\t0\t*\tBad a one.\n"


def rows_of(path, **reading):
    return [cells for _, cells in open_file(path, label_column="label", reading=Reading(**reading)).rows]


@pytest.mark.parametrize("name", ["cola.tsv", "cola.txt"])
def test_columns_of_a_file_without_a_header_have_numbers(write, name):
    path = write(name, COLA)
    data = load_examples(path, text_column="3", label_column="1", reading=Reading(header=False))
    assert data.splits["train"] == (Example("A good one.", None, 1), Example("Bad a one.", None, 0))


def test_csv_without_a_header(write):
    path = write("ag_news.csv", '"3","Wall St.","Short, sellers"\n"1","b","c"\n')
    assert rows_of(path, header=False) == [
        {"0": "3", "1": "Wall St.", "2": "Short, sellers"},
        {"0": "1", "1": "b", "2": "c"},
    ]


def test_a_missing_header_is_suggested(write):
    with pytest.raises(UserError, match=r"line 2: no column 'text'; the columns are 'gj04'.*add --no-header and give"):
        load_examples(write("a.tsv", COLA))
    with pytest.raises(UserError, match=r"line 1: a column name occurs twice.*--no-header"):
        load_examples(write("b.tsv", "x\ta\ta\n"))


def test_quotation_marks_in_tsv_are_text_and_counted(write):
    content = 'a\tb\n"say ""hi"""\tx\n"He came."\ty\n"p"\t"q"\n'
    path = write("a.tsv", content)
    assert rows_of(path)[0] == {"a": '"say ""hi"""', "b": "x"}
    assert open_file(path, label_column="b").notes == (
        "2 of 3 rows have fields in quotation marks (2 in 'a', 1 in 'b'), which stay; --quoting csv removes them",
    )
    assert [cells["a"] for cells in rows_of(path, quoting="csv")] == ['say "hi"', "He came.", "p"]
    assert load_examples(path, text_column="a", label_column="b").notes["train"]


def test_csv_can_be_read_without_quoting(write):
    assert rows_of(write("a.csv", 'a,b\n"x,y\n'), quoting="none") == [{"a": '"x', "b": "y"}]


SEPARATORS = {
    "semicolon": ("a.csv", "text;label\na;b\n", r"line 1: the columns are separated by ';', not by ','; save it with"),
    "bar": ("a.csv", "text|label\na|b\n", r"separated by '\|'"),
    "quoted header": ("a.tsv", '"text"\t"label"\n', r"names of the columns are in quotation marks; add --quoting csv"),
    "tab in csv": ("a.csv", "text\tlabel\na\tb\n", r"separated by '\\t', not by ','; name the file \.tsv"),
    "comma in tsv": ("a.tsv", "text,label\na,b\n", r"separated by ',', not by '\\t'; name the file \.csv"),
    "comma in txt": ("a.txt", "text,label\na,b\n", r"separated by ',', not by '\\t'; name the file \.csv"),
}


@pytest.mark.parametrize(("name", "content", "message"), SEPARATORS.values(), ids=SEPARATORS)
def test_another_separator_is_named(write, name, content, message):
    with pytest.raises(UserError, match=message):
        open_file(write(name, content), label_column="label")
