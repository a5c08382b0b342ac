"""The first lines of a novel as text, and a small tokenizer trained on them."""

from collections.abc import Iterable
from pathlib import Path

from deberta_jax.train.data import train_tokenizer
from deberta_jax.train.data.text import embedded_corpus, read_documents


def small_tokenizer(
    folder: Path, text: Path, *, lines: int | None = 300, more: Iterable[str] = (), pieces: int = 600
) -> None:
    """Writes a text file and a tokenizer that was trained on it.

    Args:
      folder: Folder of the tokenizer.
      text: The text file. Each line of the novel is a document.
      lines: Number of lines of the novel; None for all.
      more: Further documents, after those of the novel.
      pieces: Size of the vocabulary.
    """
    novel = next(read_documents((embedded_corpus(),), boundary="blank_line")).splitlines()[:lines]
    text.write_text("\n\n".join([*novel, *more]), encoding="utf-8")
    train_tokenizer.main(train_tokenizer.TokenizerConfig(output=folder, text=(text,), vocab_size=pieces))
