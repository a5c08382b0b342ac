"""Pieces are chosen from a text of another kind: they are used, save tokens, and their number is what was asked for."""

import pytest

from deberta_jax import Tokenizer
from deberta_jax.embedded import embedded_folder
from deberta_jax.errors import UserError
from deberta_jax.train.data.extend_vocabulary import extend_vocabulary
from deberta_jax.train.data.train_tokenizer import TrainingSample

from ...support.paths import REPOSITORY

SAMPLE = TrainingSample()


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    """A tokenizer that was trained on novels."""
    folder = embedded_folder("deberta-v3-tiny")
    assert folder is not None
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Text about software."""
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    return [line for page in pages for line in page.read_text(encoding="utf-8").splitlines() if line.strip()]


def test_pieces_of_a_domain_save_tokens(tiny: Tokenizer, lines: list[str]) -> None:
    training, unseen = lines[::2], lines[1::2]
    made = extend_vocabulary(tiny, training, new_pieces=300, sample=SAMPLE)
    assert made.first == tiny.vocab_size
    assert made.tokenizer.vocab_size == tiny.vocab_size + 300
    assert made.tokenizer.pieces(range(made.first)) == tiny.pieces(range(made.first))
    assert made.tokens_before == sum(map(len, tiny.encode_batch(training)))
    assert made.tokens_after == sum(map(len, made.tokenizer.encode_batch(training)))
    assert made.tokens_after < 0.85 * made.tokens_before
    before, after = (sum(map(len, tokenizer.encode_batch(unseen))) for tokenizer in (tiny, made.tokenizer))
    assert after < 0.9 * before
    used = {i for ids in made.tokenizer.encode_batch(training) for i in ids if i >= made.first}
    assert len(used) > 0.97 * len(made.pieces)  # a few give way to longer new pieces around them
    replaced = dict(zip(range(made.first, made.tokenizer.vocab_size), made.old_ids, strict=True))
    assert all(len(ids) > 1 for ids in made.old_ids)
    same = [
        [i for token in new for i in replaced.get(token, (token,))] == old
        for new, old in zip(made.tokenizer.encode_batch(unseen), tiny.encode_batch(unseen), strict=True)
    ]
    assert sum(same) > 0.95 * len(same)  # others had a second segmentation with nearly the same score


def test_the_pieces_are_always_the_same(tiny: Tokenizer, lines: list[str]) -> None:
    made = [extend_vocabulary(tiny, lines[:400], new_pieces=20, sample=SAMPLE) for _ in range(2)]
    assert made[0].pieces == made[1].pieces
    assert made[0].tokenizer.fingerprint == made[1].tokenizer.fingerprint


def test_a_text_that_cannot_fill_the_pieces_is_refused(tiny: Tokenizer, lines: list[str]) -> None:
    with pytest.raises(UserError, match=r"new_pieces 5000 is more than this text can fill; give at most \d+, or more"):
        extend_vocabulary(tiny, lines[:100], new_pieces=5000, sample=SAMPLE)
    with pytest.raises(UserError, match="there is no text to train on"):
        extend_vocabulary(tiny, [" "], new_pieces=5, sample=SAMPLE)
