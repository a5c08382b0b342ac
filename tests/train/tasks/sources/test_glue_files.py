"""Tests of the files that the authors of GLUE and SNLI published, read by the names of the sets."""

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.classification.examples import Example, load_examples
from deberta_jax.train.tasks.spans.questions import load_questions

MNLI = "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n"
FILES = {
    "glue/cola": (
        "gj04\t1\t\tA b.\nks08\t0\t*\tB a.\n",
        [("A b.", None, 1), ("B a.", None, 0)],
        "matthews_correlation",
    ),
    "glue/sst2": ("sentence\tlabel\na \t0\nb\t1\n", [("a ", None, 0), ("b", None, 1)], "accuracy"),
    "glue/mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb\n0\t7\t8\tc\td\n",
        [("a", "b", 1), ("c", "d", 0)],
        "accuracy f1",
    ),
    "glue/qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t0\n1\t2\t3\t\td\t1\n",
        [("a", "b", 0), ("", "d", 1)],
        "accuracy f1",
    ),
    "glue/stsb": (
        "main\tx\t2012\t1\t2.5\ta\tb\nmain\tx\t2012\t1\t0.0\tc\td\te\tf\n",
        [("a", "b", 2.5), ("c", "d", 0.0)],
        "pearson spearman",
    ),
    "glue/mnli": (
        f"{MNLI}0\t1\ta\tb\tneutral\tneutral\n0\t1\tx\ty\tneutral\t-\n0\t1\tc\td\tentailment\tentailment\n",
        [("a", "b", 1), ("c", "d", 2)],
        "accuracy",
    ),
    "glue/qnli": (
        "index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n0\tc\td\tnot_entailment\n",
        [("a", "b", 1), ("c", "d", 0)],
        "accuracy",
    ),
    "glue/rte": (
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n0\tc\td\tnot_entailment\n",
        [("a", "b", 1), ("c", "d", 0)],
        "accuracy",
    ),
    "glue/wnli": (
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n0\tc\td\t0\n",
        [("a", "b", 1), ("c", "d", 0)],
        "accuracy",
    ),
    "snli": (
        "gold_label\tsentence1\tsentence2\nneutral\ta\tb\n-\tx\ty\ncontradiction\tc\td\n",
        [("a", "b", 1), ("c", "d", 0)],
        "accuracy",
    ),
    "xnli/de": (
        "premise\thypo\tlabel\na\tb\tneutral\nc\td\tcontradictory\n",
        [("a", "b", 1), ("c", "d", 0)],
        "accuracy",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_published_files(write, name):
    content, expected, metrics = FILES[name]
    data = load_examples(f"{name}:{write('train.txt', content)}")
    assert data.splits["train"] == tuple(Example(*example) for example in expected)
    assert (data.name, data.metrics) == (name, tuple(metrics.split()))
    undecided = ("1 pairs without a decided label left out",)
    notes = {"glue/mnli": undecided, "snli": undecided, "glue/qqp": ("1 with a blank text, the first in line 3",)}
    assert data.notes["train"] == notes.get(name, ())


TESTS = {
    "glue/cola": "index\tsentence\n0\ta\n",
    "glue/sst2": "index\tsentence\n0\ta\n",
    "glue/mrpc": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\ta\tb\n",
    "glue/qqp": "id\tquestion1\tquestion2\n0\ta\tb\n",
    "glue/stsb": "index\tgenre\tsentence1\tsentence2\n0\tx\ta\tb\n",
    "glue/mnli": "index\tpromptID\tsentence1\tsentence2\n0\t1\ta\tb\n",
    "glue/rte": "sentence1\tsentence2\tlabel\tidx\na\tb\t-1\t0\n",
}


@pytest.mark.parametrize("name", TESTS)
def test_published_test_files_have_no_labels(write, name):
    train, test = write("train.tsv", FILES[name][0]), write("test.tsv", TESTS[name])
    (example,) = load_examples(f"{name}:{train}", test=f"{name}:{test}").splits["test"]
    assert (example.text, example.label) == ("a", None)


def test_indices_of_hugging_face_keep_their_meaning(write):
    """Hugging Face numbers entailment 0, whereas the official DeBERTa tasks number it last."""
    rows = '[{"premise": "a", "hypothesis": "b", "label": 0}, {"premise": "c", "hypothesis": "d", "label": 2}]'
    assert [example.label for example in load_examples(f"glue/mnli:{write('a.json', rows)}").splits["train"]] == [2, 0]
    rte = write("rte.tsv", "sentence1\tsentence2\tlabel\na\tb\t1\nc\td\t0\n")
    assert [example.label for example in load_examples(f"glue/rte:{rte}").splits["train"]] == [0, 1]


def test_rows_of_another_form_are_named(write):
    with pytest.raises(
        UserError, match=r"a\.tsv, line 1: neither a header of this set, which names sentence, text, nor"
    ):
        load_examples(f"glue/cola:{write('a.tsv', 'a' + chr(9) + 'b')}")
    with pytest.raises(UserError, match=r"line 2: no column 'sentence1'; the columns are 'text', 'label'"):
        load_examples(f"glue/rte:{write('b.tsv', 'text' + chr(9) + 'label' + chr(10) + 'a' + chr(9) + '1')}")


def test_squad_has_a_short_name_and_may_be_concatenated(write):
    def squad(identifier):
        answer = '{"text": "a", "answer_start": 0}'
        question = f'{{"id": "{identifier}", "question": "q", "answers": [{answer}]}}'
        return f'{{"version": "1.1", "data": [{{"paragraphs": [{{"context": "a b", "qas": [{question}]}}]}}]}}'

    data = load_questions(f"squad:{write('a.json', squad('x') + squad('y'))}")
    assert [question.id for question in data.splits["train"]] == ["x", "y"]
    with pytest.raises(UserError, match=r"b\.json is truncated: it ends inside the object that begins on line 1"):
        load_questions(write("b.json", squad("x")[:-20]))
