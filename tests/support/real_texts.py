"""Real texts of every length, and odd ones; from published files beside the repository where they are there."""

import csv
import itertools
import lzma
from pathlib import Path

import numpy as np

from deberta_jax.train.data.text import embedded_corpus, read_documents

from .novel import small_tokenizer
from .paths import SHARED

ODD = (
    "",
    " ",
    "\n\t\n",
    "a",
    "👩\u200d👩\u200d👧 ❤️ 👍🏽 🏳️\u200d🌈 and words",
    "bell \x07, escape \x1b[31m, zero \x00 and delete \x7f",
    "日本語の文章。한국어 문장. ไทย עברית العربية ქართული Ελληνικά русский हिन्दी",
    "ﬁne ① \uff26\uff55\uff4c\uff4c\u00a0width … ½ e\u0301",
    "[CLS] in [SEP] a text [PAD] [UNK]",
    "x" * 3000,
    "no spaces" * 400,
    "one two three " * 500,
    "!?.,;:-\u2013\u2014()[]{}<>@#$%^&*" * 40,
)


def real_tokenizer(folder: Path) -> Path:
    """Returns the folder of the tokenizer of DeBERTa-v3, or of a smaller one that is trained on a novel.

    That one has pieces enough that few texts need bytes, which transformers reads as [UNK].
    """
    if (SHARED / "real" / "deberta-v3").is_dir():
        return SHARED / "real" / "deberta-v3"
    small_tokenizer(folder / "tokenizer", folder / "text.txt", lines=None, pieces=4000)
    return folder / "tokenizer"


def real_texts(count: int) -> list[str]:
    """Returns sentences, paragraphs and passages of up to about 400 words, and the odd texts, in random order."""
    rng = np.random.default_rng(0)
    texts = [*ODD, *_sentences()]
    paragraphs = [" ".join(paragraph.split()) for paragraph in _book().split("\n") if len(paragraph) > 40]
    while len(texts) < count:
        first, length = (
            int(rng.integers(len(paragraphs) - 8)),
            int(rng.integers(40, 2500 if len(texts) % 8 == 0 else 500)),
        )
        texts.append(" ".join(paragraphs[first : first + 8])[:length])
    return [texts[i] for i in rng.permutation(count)]


def _sentences() -> list[str]:
    sentences = []
    for name in ("sst2/dev.tsv", "cola/dev.tsv", "rte/dev.tsv"):
        path = SHARED / "real" / "glue" / name
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
                sentences += [max(row, key=len) for row in itertools.islice(rows, 1, 31)]
    return sentences


def _book() -> str:
    path = SHARED / "data" / "books.txt.xz"
    if path.is_file():
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return file.read(400_000)
    return next(read_documents((embedded_corpus(),), boundary="blank_line"))
