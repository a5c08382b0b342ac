"""The first lines of a novel as text, and a small tokenizer trained on them."""

from collections.abc import Iterable
from pathlib import Path

from deberta_jax.train.data import train_tokenizer as tokenizer
from deberta_jax.train.data.text import embedded_corpus, read_documents


def small_tokenizer(folder: Path, text: Path, *, lines: int = 300, more: Iterable[str] = ()) -> None:
    """Writes `text`, a line of the novel or of `more` a document, and a tokenizer of 600 pieces into `folder`."""
    novel = next(read_documents((embedded_corpus(),), boundary="blank_line")).splitlines()[:lines]
    text.write_text("\n\n".join([*novel, *more]), encoding="utf-8")
    tokenizer.main(tokenizer.TokenizerConfig(output=folder, text=(text,), vocab_size=600))
