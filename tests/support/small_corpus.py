"""Small texts, a tokenizer of words, and readers of prepared corpora."""

import zlib
from pathlib import Path

import numpy as np

CLS, SEP = 1, 2


class Words:
    """A tokenizer of whole words, whose ids are hashes."""

    pad_id, cls_id, sep_id, unk_id = 0, CLS, SEP, 3

    def __init__(self, vocab_size: int = 1000, fingerprint: str = "words") -> None:
        self.vocab_size, self.mask_id, self.fingerprint = vocab_size, vocab_size - 1, fingerprint

    def encode_batch(self, texts):
        span = self.vocab_size - 5
        return [[CLS if w == "[CLS]" else 4 + zlib.crc32(w.encode()) % span for w in text.split()] for text in texts]


class MaskedWords(Words):
    """`Words` with the properties that masking reads."""

    @property
    def is_special(self) -> np.ndarray:
        return np.isin(np.arange(self.vocab_size), [0, CLS, SEP, 3, self.mask_id])

    @property
    def starts_word(self) -> np.ndarray:
        return np.ones(self.vocab_size, bool)


def stored_rows(corpus, split) -> np.ndarray:
    from array_record.python.array_record_module import ArrayRecordReader

    rows = []
    for file in split.files:
        reader = ArrayRecordReader(str(corpus.folder / file.name))
        rows += [np.frombuffer(record, corpus.dtype) for record in reader.read_all()]
        reader.close()
        assert reader_options_are_single_rows(corpus.folder / file.name)
    return np.array(rows)


def reader_options_are_single_rows(path: Path) -> bool:
    from array_record.python.array_record_module import ArrayRecordReader

    return "group_size:1," in ArrayRecordReader(str(path)).writer_options_string()


def segments(rows) -> list[list[int]]:
    """Returns the contents of all segments in order. Fails for a row that is not segments followed by zeros."""
    contents = []
    for row in rows:
        tokens = list(map(int, row))
        while tokens and tokens[0] != 0:
            assert tokens[0] == CLS
            end = tokens.index(SEP)
            contents.append(tokens[1:end])
            tokens = tokens[end + 1 :]
        assert not any(tokens)
    return contents


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def story(documents: int, words: int = 40) -> str:
    rng = np.random.default_rng(1)
    lines = (" ".join(f"w{n}" for n in rng.integers(0, 400, rng.integers(1, 2 * words))) for _ in range(documents))
    return "\n\n".join(lines)


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the files of a corpus, name -> bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
