"""Tests of files of words and tags as they are published: comments, headers, marks, separators, CoNLL-U."""

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.tokens.conll import is_conll, read_conll


def words_of(path):
    table, text, label = read_conll(path)
    return [(cells[text], cells[label]) for _, cells in table.rows], tuple(table.notes)


FILES = {
    "multiconer": (
        "# id 0001\tdomain=en\nanne _ _ B-PER\ncame _ _ O\n\n# id 0002\tdomain=en\n# _ _ O\n#monday _ _ O\n",
        [(["anne", "came"], ["B-PER", "O"]), (["#", "#monday"], ["O", "O"])],
        ["2 comment"],
    ),
    "tabs": (
        "# id 0001\tdomain=en\nanne\tB-PER\ncame\tO\n\n# id 0002\tdomain=en\n#\tO\n#monday\tB-DAY\n",
        [(["anne", "came"], ["B-PER", "O"]), (["#", "#monday"], ["O", "B-DAY"])],
        ["2 comment"],
    ),
    "first word": ("#monday B-DAY\nis O\n", [(["#monday", "is"], ["B-DAY", "O"])], []),
    "only such words": ("#a O\n#b X\n", [(["#a", "#b"], ["O", "X"])], []),
    "numbers and header": ("id\tform\tner\n1\ta\tO\n2\tb\tX\n", [(["a", "b"], ["O", "X"])], ["1 header"]),
    "pound": ("# #\n3 CD\n", [(["#", "3"], ["#", "CD"])], []),
    "header": ("word tag\na O\nb X\n", [(["a", "b"], ["O", "X"])], ["1 header"]),
    "long header": ("\ufeffToken POS NER\r\na DT O\r\nb NN X\r\n", [(["a", "b"], ["O", "X"])], ["1 header"]),
    "word like a header": ("text tag\na O\ntag tag\n", [(["text", "a", "tag"], ["tag", "O", "tag"])], []),
    "marks": (
        "-DOCSTART- -X- O O\na A A O\n-DOCSTART- -X- O O\nb B B X\n",
        [(["a"], ["O"]), (["b"], ["X"])],
        ["2 -DOCSTART-"],
    ),
    "ontonotes": (
        "#begin document (x); part 000\na 1 O\n\n#end document\n",
        [(["a"], ["O"])],
        ["2 document"],
    ),
    "both separators": ("a\tO\nb X\nc\t O\nd O \n", [(list("abcd"), list("OXOO"))], []),
    "blank columns": ("a\t\tO\nb\tx\tX\n", [(["a", "b"], ["O", "X"])], []),
    "trailing tabs": ("a\tO\t\nb\tX\t\n \t\nc\tO\n", [(["a", "b"], ["O", "X"]), (["c"], ["O"])], []),
    "odd words": ("\u00a0\tO\n \tO\na b\tX\n", [(["\u00a0", " ", "a b"], ["O", "O", "X"])], []),
    "odd word between blanks": ("\u00a0 O\na X\n", [(["\u00a0", "a"], ["O", "X"])], []),
    "germeval": ("#\thttp://x [2009]\n1\ta\tO\tO\n2\t#b\tX\tO\n", [(["a", "#b"], ["O", "O"])], ["1 comment"]),
    "conllu": (
        "# sent_id = 1\n# text = du #1\n1-2\tdu" + "\t_" * 8 + "\n1\tde\tde\tADP" + "\t_" * 6 + "\n2\tle\tle\tDET"
        "" + "\t_" * 6 + "\n2.1\tx" + "\t_" * 8 + "\n",
        [(["de", "le"], ["ADP", "DET"])],
        ["2 comment", "2 multi-word and empty-node"],
    ),
}


@pytest.mark.parametrize(("content", "sentences", "notes"), FILES.values(), ids=FILES)
def test_published_files(write, content, sentences, notes):
    path = write("a.conll", content.encode())
    assert words_of(path) == (sentences, tuple(f"{note} lines skipped in a.conll" for note in notes))


def test_unlabeled_words(write):
    table, text, label = read_conll(write("a.conll", "# id 1\n#\na\n\nb\n"))
    assert [cells[text] for _, cells in table.rows] == [["#", "a"], ["b"]]
    assert label == "-1"


@pytest.mark.parametrize("suffix", ["conll", "conllu", "iob", "iob2", "bio", "tsv", "txt", "tsv.gz"])
def test_names_of_files(suffix):
    assert is_conll(f"train.{suffix}")


BAD = {
    "no tag": ("a O\nb X\n#monday\n", r"a\.conll, line 3: 1 columns, but most lines have 2"),
    "sentences": ("words\tlabels\na b\tO O\nc d\tO X\n", r"line 2: 'a b' is not a word; write one word with its tags"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_named(write, content, message):
    with pytest.raises(UserError, match=message):
        words_of(write("a.conll", content))
