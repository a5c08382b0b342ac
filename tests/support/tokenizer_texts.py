"""Texts and models that the tests of tokenizers share."""

import functools
import io
import unicodedata
from pathlib import Path

import pytest
import sentencepiece

from deberta_jax.train.data.text import embedded_corpus, read_documents

from .paths import SHARED

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]

# Options of SentencePiece that give a model DeBERTa's special pieces.
DEBERTA_PIECES = {
    "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3,
    "pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]",
}  # fmt: skip

TRICKY = [
    "",
    " ",
    "It is a truth universally acknowledged, that a single man",
    "  leading, inner   and trailing  ",
    "ﬁne ① ⅷ …",
    "\uff26\uff35\uff2c\uff2c width",
    "no\u00a0break, zero\u200bwidth, soft\u00adhyphen, \ufeffmark",
    "tab\tnew\nline\rreturn",
    "e\u0301 vs é",
    "emoji 😀 and 👩‍👩‍👧, 日本語, ▁under",
    "[MASK] [CLS] [SEP] [PAD] [UNK] x[MASK]y",
    "<0x41> <s> </s> <unk>",
]


@functools.cache
def corpus(characters: int) -> tuple[str, ...]:
    """Returns the first lines of the embedded corpus, up to the one that exceeds a number of characters."""
    lines, size = [], 0
    for line in read_documents([embedded_corpus()], boundary="line"):
        lines.append(line)
        size += len(line)
        if size > characters:
            break
    return tuple(lines)


@functools.cache
def custom_model(**options: int | str) -> bytes:
    """Trains a small SentencePiece model with SentencePiece's own defaults and these options; see `DEBERTA_PIECES`."""
    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(30_000)), model_writer=output, vocab_size=300, minloglevel=2, **options
    )
    return output.getvalue()


def longest_first(a: list[int], b: list[int], budget: int) -> tuple[list[int], list[int]]:
    """Cuts one token at a time from the longer list, or from the second if both are equally long."""
    a, b = list(a), list(b)
    while len(a) + len(b) > budget:
        (a if len(a) > len(b) else b).pop()
    return a, b


def official_part_of_whole_word(piece: str) -> bool:
    """Restates `SPMTokenizer.part_of_whole_word`."""
    if len(piece) == 1:
        category = unicodedata.category(piece)
        whitespace = piece in " \t\n\r" or category == "Zs"
        control = piece not in "\t\n\r" and category.startswith("C")
        code = ord(piece)
        ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
        if whitespace or control or ascii_mark or category.startswith("P"):
            return False
    return piece not in SPECIAL and not piece.startswith("▁")


def real_folder(name: str) -> Path:
    """Returns a folder of published files beside the repository, or skips the test."""
    folder = SHARED / "real" / name
    if not folder.is_dir():
        pytest.skip(f"needs the published files in ../shared/real/{name}")
    return folder
