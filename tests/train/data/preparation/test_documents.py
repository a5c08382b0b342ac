"""Every token of every document is in exactly one place of the corpus, whatever the text and its division."""

import contextlib
import functools
import itertools
import re
import tempfile
from pathlib import Path
from unittest import mock

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from deberta_jax.errors import UserError
from deberta_jax.train.data import prepare as prepare_module
from deberta_jax.train.data.corpus import Removal
from deberta_jax.train.data.preparation.rules import TextRules
from deberta_jax.train.data.prepare import prepare
from deberta_jax.train.data.text_files import TextError

from ....support.small_corpus import Words, segments, stored_rows

NOTHING = "\u2205"  # a line that has no tokens

SPECIAL = (
    "",
    " ",
    NOTHING,
    "a",
    "\r",
    "one\rtwo",
    "🙂👩‍👩‍👧",
    "שלום עולם",
    "\u202e\u0645\u0631\u062d\u0628\u0627",
    "x" * 300,
    "CHAPTER I",
    "\u2028",
)
LINES = st.one_of(
    st.sampled_from(SPECIAL), st.text(st.characters(exclude_characters="\0\n\ufeff", exclude_categories=("Cs",)))
)
FILES = st.lists(st.lists(LINES, max_size=12), min_size=1, max_size=4)
ENDS = st.sampled_from(("\n", "\r\n"))
SETTINGS = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)


class Numbering(Words):
    """Each character is a token with a number of its own, ascending in the order of the text."""

    def __init__(self) -> None:
        super().__init__(vocab_size=1 << 20)
        self.next = 4

    def encode_batch(self, texts):
        found = []
        for text in texts:
            count = 0 if text == NOTHING else len(text)
            found.append(list(range(self.next, self.next + count)))
            self.next += count
        return found


def documents_of(files: list[list[str]], boundary: str) -> list[list[str]]:
    """Returns the lines of each document, by a definition as simple as possible."""
    found = []
    for file in files:
        lines = [line.rstrip() for line in "\n".join(file).split("\n")]
        if boundary == "line":
            found += [[line] for line in lines if line]
        elif boundary == "file":
            found.append([line for line in lines if line])
        else:
            found += [part.split("\n") for part in re.split("\n\n+", "\n".join(lines).strip("\n"))]
    return [lines for lines in found if any(lines)]


@SETTINGS
@hypothesis.given(
    files=FILES, end=ENDS, boundary=st.sampled_from(["line", "blank_line", "file"]),
    chunk=st.sampled_from([1, 40, 1000]), shard=st.sampled_from([100, 10**6]), group=st.sampled_from([1, 10**6]),
    length=st.sampled_from([8, 33]), held_out=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 5),
)  # fmt: skip
def test_every_token_is_in_one_place(files, end, boundary, chunk, shard, group, length, held_out, seed):
    documents = documents_of(files, boundary)
    sizes = [sum(len(line) for line in lines if line != NOTHING) for lines in documents]
    patches = [(prepare_module, "CHUNK_BYTES", chunk), (prepare_module, "SHARD_BYTES", shard)]
    patches.append((prepare_module, "GROUP_BYTES", group))
    settings = {"sequence_length": length, "held_out_fraction": held_out, "seed": seed, "boundary": boundary}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for number, lines in enumerate(files):
            Path(folder, f"{number}.txt").write_bytes(end.join(lines).encode())
        for module, name, value in patches:
            stack.enter_context(mock.patch.object(module, name, value))
        rules = TextRules(drop_duplicates=False)
        make = functools.partial(prepare, [folder], Numbering(), Path(folder, "c"), rules=rules, **settings)
        if not sum(sizes):
            with pytest.raises(TextError, match="no text in"):
                make()
            return
        try:
            corpus = make()
        except UserError as error:
            message = str(error)
            hypothesis.assume(not re.match(rf"held_out_fraction 0\.3 of {len(documents)} documents (sel|lea)", message))
            raise
        parts = {split: segments(stored_rows(corpus, getattr(corpus, split))) for split in ("train", "held_out")}
    assert corpus.train.documents + corpus.held_out.documents == len(documents)
    place = {}
    for split, found in parts.items():
        tokens = [token for part in sorted(found) for token in part]
        assert len(tokens) == getattr(corpus, split).tokens
        assert all(part == list(range(part[0], part[0] + len(part))) for part in found)
        assert not place.keys() & set(tokens)
        assert len(set(tokens)) == len(tokens)
        place |= dict.fromkeys(tokens, split)
    assert place.keys() == set(range(4, 4 + sum(sizes)))
    ends = np.cumsum([4, *sizes])
    for first, last in itertools.pairwise(ends):
        assert len({place[token] for token in range(first, last)}) <= 1


@SETTINGS
@hypothesis.given(
    lines=st.lists(LINES, min_size=1, max_size=5), number=st.integers(0, 4),
    fault=st.sampled_from([(b"\0", "a NUL byte"), (b"\xff", "0xff is not UTF-8"), (b"\xe6\x97", "is not UTF-8")]),
)  # fmt: skip
def test_what_is_no_text_is_refused_by_name(lines, number, fault):
    content = [line.encode() for line in lines]
    settings = {"sequence_length": 8, "boundary": "line", "held_out_fraction": 0}
    content.insert(number % (len(lines) + 1), b"before " + fault[0] + b" after")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.txt").write_bytes(b"good")
        Path(folder, "b.txt").write_bytes(b"\n".join(content))
        with pytest.raises(TextError, match=rf"b\.txt: line {1 + number % (len(lines) + 1)}, byte \d+: .*{fault[1]}"):
            prepare([folder], Words(), Path(folder, "c"), **settings)
        assert sorted(path.name for path in Path(folder).iterdir()) == ["a.txt", "b.txt"]
        kept = prepare(
            [folder], Words(), Path(folder, "c"), rules=TextRules(skip_bad=True, drop_duplicates=False), **settings
        )
        assert kept.removed == (Removal("skip_bad", 1),)
        assert kept.train.documents == 1 + sum(bool(line.strip()) for line in lines)


def test_ten_megabytes_in_a_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab \n" + b"\xf0\x9f\x99\x82 \xd7\xa9 x" * (10 << 20 >> 3) + b"\nlast")
    corpus = prepare(
        [tmp_path / "a.txt"], Words(), tmp_path / "c", sequence_length=512, boundary="line", held_out_fraction=0
    )
    assert corpus.train.documents == 3
    assert corpus.train.tokens == 2 + sum(1 for _ in re.finditer(r"\S+", "🙂 ש x" * (10 << 20 >> 3)))
    assert sum(map(len, segments(stored_rows(corpus, corpus.train)))) == corpus.train.tokens
