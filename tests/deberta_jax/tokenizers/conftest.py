"""Small vocabularies of every kind, each trained once a session."""

import json
from typing import Any

import pytest

from deberta_jax.tokenizers.bpe import ByteLevelBPE
from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.tokenizers.wordpiece import WordPiece
from deberta_jax.train.data.train_tokenizer import train_tokenizer

from ...support.tokenizer_texts import SPECIAL, corpus

SPM_PIECES = 2000
BPE_PIECES = 1000  # [PAD], [CLS], [SEP], [UNK] and 996 of BPE
WORD_PIECES = 1500
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

BPEFiles = tuple[dict[str, int], list[tuple[str, str]]]


@pytest.fixture(scope="session")
def spm_model() -> bytes:
    return train_tokenizer(corpus(300_000), vocab_size=SPM_PIECES)


@pytest.fixture(scope="session")
def spm(spm_model: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(spm_model)


@pytest.fixture(scope="session")
def bpe_files() -> BPEFiles:
    """Pieces and merges in the layout of the released vocab.json: made-up words after the pieces, then [MASK]."""
    model = train_bpe(SPECIAL[:4])
    ids = model["vocab"] | {"madeupword0000": BPE_PIECES, "madeupword0001": BPE_PIECES + 1, "[MASK]": BPE_PIECES + 2}
    return ids, [tuple(merge) for merge in model["merges"]]


@pytest.fixture(scope="session")
def bpe(bpe_files: BPEFiles) -> Tokenizer:
    return Tokenizer(ByteLevelBPE(*bpe_files, source="files"))


@pytest.fixture(scope="session")
def roberta() -> Tokenizer:
    model = train_bpe(ROBERTA[:4])
    ids = model["vocab"] | {"madeupword0000": BPE_PIECES, "<mask>": BPE_PIECES + 1}
    return Tokenizer(ByteLevelBPE(ids, [tuple(merge) for merge in model["merges"]], source="files"))


def train_bpe(special: list[str]) -> dict[str, Any]:
    """Returns the JSON of a byte-level BPE model, as the package tokenizers trains it."""
    tokenizers = pytest.importorskip("tokenizers", reason="byte-level BPE needs the package tokenizers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=BPE_PIECES, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus(100_000), trainer)
    return json.loads(bpe.to_str())["model"]


@pytest.fixture(scope="session")
def word_pieces() -> list[str]:
    """A vocabulary with capitals, so that lower-casing makes a difference, in the layout of BERT's."""
    tokenizers = pytest.importorskip("tokenizers", reason="WordPiece needs the package tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    model.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=WORD_PIECES, special_tokens=BERT, show_progress=False)
    model.train_from_iterator([*corpus(100_000), "naive unicode Ünï 日"], trainer)
    return sorted(model.get_vocab(), key=model.get_vocab().__getitem__)


@pytest.fixture(scope="session")
def bert(word_pieces: list[str]) -> Tokenizer:
    return Tokenizer(WordPiece(word_pieces, {}, source="pieces"))
