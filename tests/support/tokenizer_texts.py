"""Texts and models that tokenizer tests share."""

import io
import unicodedata

import sentencepiece

from deberta_jax.train.data.text import embedded_corpus, read_documents

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]


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


def corpus(characters: int) -> list[str]:
    documents, size = [], 0
    for document in read_documents([embedded_corpus()], boundary="line"):
        documents.append(document)
        size += len(document)
        if size > characters:
            break
    return documents


def custom_model(**changes) -> bytes:
    """A model that was not trained for DeBERTa."""
    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(30_000)), model_writer=output, vocab_size=300, minloglevel=2, **changes
    )
    return output.getvalue()


def longest_first(a: list[int], b: list[int], budget: int) -> tuple[list[int], list[int]]:
    """One token at a time; where both are equally long, the second gives way."""
    a, b = list(a), list(b)
    while len(a) + len(b) > budget:
        (a if len(a) > len(b) else b).pop()
    return a, b


def official_part_of_whole_word(piece: str) -> bool:
    """`SPMTokenizer.part_of_whole_word`, restated."""
    if len(piece) == 1:
        category = unicodedata.category(piece)
        whitespace = piece in " \t\n\r" or category == "Zs"
        control = piece not in "\t\n\r" and category.startswith("C")
        code = ord(piece)
        ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
        if whitespace or control or ascii_mark or category.startswith("P"):
            return False
    return piece not in SPECIAL and not piece.startswith("▁")
