"""Pieces that are added to a SentencePiece model are used, and nothing else changes."""

import math
from pathlib import Path

import pytest

from deberta_jax import Tokenizer
from deberta_jax.embedded import embedded_folder
from deberta_jax.errors import UserError
from deberta_jax.tokenizers.extend import extend_tokenizer
from deberta_jax.tokenizers.new_pieces import MARGIN, UnigramModel, score_pieces, segment

from ...support.tokenizer_texts import corpus, real_folder

SCORES = {"a": -1.0, "b": -2.0, "ab": -2.5, "bc": -3.0, "▁": -1.5}
UNKNOWN = -20.0
WORDS = ("▁gradient", "▁tokenizer", "▁checkpoint", "▁checkpoints", "kenizer", "☃☃")
TEXTS = ("The tokenizer of a checkpoint.", "Two checkpoints  and gradients", "a kenizer ☃☃", "")


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    folder = embedded_folder("deberta-v3-tiny")
    assert folder is not None
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("text", "parts", "score"),
    [
        ("", (), 0.0),
        ("ab", ("ab",), -2.5),
        ("abc", ("a", "bc"), -4.0),
        ("▁xa", ("▁", "x", "a"), -22.5),
        ("aab", ("a", "ab"), -3.5),
    ],
)
def test_the_best_segmentation(text, parts, score):
    assert segment(text, SCORES, UNKNOWN) == (parts, pytest.approx(score))


def test_a_new_piece_scores_above_all_segmentations_with_shorter_new_ones():
    added = score_pieces(["abab", "ab▁", "aba"], SCORES, UNKNOWN)
    assert added["aba"] == pytest.approx(-3.5 + MARGIN)
    assert added["ab▁"] == pytest.approx(-4.0 + MARGIN)
    assert added["abab"] == pytest.approx(max(-5.0, added["aba"] - 2.0) + MARGIN)
    for piece, score in added.items():
        others = SCORES | {other: value for other, value in added.items() if other != piece}
        assert segment(piece, others, UNKNOWN).score < score


def test_segmentations_are_those_of_sentencepiece(tiny):
    model = UnigramModel.of(tiny, source="tiny")
    words = sorted({word for line in corpus(40_000) for word in line.split()} | {"naïve", "日本", "xylophonist"})
    assert model.ids_of([f"▁{word}" for word in words]) == [tuple(ids) for ids in tiny.encode_batch(words)]


def test_ids_stay_and_new_pieces_are_used(tiny):
    model = UnigramModel.of(tiny, source="tiny")
    extended = model.extended(WORDS)
    size = tiny.vocab_size
    assert extended.vocab_size == size + len(WORDS)
    assert extended.pieces(range(size)) == tiny.pieces(range(size))
    assert extended.pieces(range(size, extended.vocab_size)) == list(WORDS)
    for name in ("pad_id", "cls_id", "sep_id", "unk_id", "mask_id"):
        assert getattr(extended, name) == getattr(tiny, name)
    assert not extended.is_special[size:].any()
    assert extended.starts_word[size:].tolist() == [piece.startswith("▁") for piece in WORDS]
    old_ids = dict(zip(range(size, extended.vocab_size), model.ids_of(WORDS), strict=True))
    for text in TEXTS:
        new, old = extended.encode(text), tiny.encode(text)
        assert [i for token in new for i in old_ids.get(token, (token,))] == old
        assert len(new) < len(old) or not old
        assert extended.decode(new) == tiny.decode(old)
    for word in WORDS[:3]:
        assert extended.pieces(extended.encode(word.strip("▁"))) == [word]
    assert "[MASK]" not in extended.pieces(extended.encode("a [MASK] b"))
    assert extended.encode("a [MASK] b", parse_mask=True) == tiny.encode("a [MASK] b", parse_mask=True)


def test_text_without_new_pieces_keeps_its_ids(tiny):
    extended = UnigramModel.of(tiny, source="tiny").extended(WORDS)
    lines = corpus(60_000)
    for new, old in zip(extended.encode_batch(lines), tiny.encode_batch(lines), strict=True):
        if max(new, default=0) < tiny.vocab_size:
            assert new == old


def test_an_extended_tokenizer_is_saved_and_extended_again(tiny, tmp_path: Path):
    first = UnigramModel.of(tiny, source="tiny").extended(WORDS[:3])
    first.save(tmp_path)
    read = Tokenizer.from_folder(tmp_path)
    assert read.fingerprint == first.fingerprint != tiny.fingerprint
    second = UnigramModel.of(read, source="first").extended(WORDS[3:])
    whole = UnigramModel.of(tiny, source="tiny").extended(WORDS)
    assert second.pieces(range(second.vocab_size)) == whole.pieces(range(whole.vocab_size))
    assert second.mask_id == tiny.mask_id
    for text in TEXTS:
        assert second.encode(text) == whole.encode(text)


def test_a_piece_that_is_there_is_named(tiny):
    model = UnigramModel.of(tiny, source="tiny")
    for pieces in (["▁gradient", "▁the"], ["▁the", "▁the"], ["[CLS]"]):
        with pytest.raises(UserError, match=rf"the new piece '{pieces[-1]}' is there".replace("[CLS]", "[[]CLS[]]")):
            model.extended(pieces)


def test_other_tokenizers_are_refused(tiny):
    pytest.importorskip("tokenizers")
    with pytest.raises(UserError, match=r"x has no plain spm\.model: pieces can be added to the tokenizers of DeBERTa"):
        UnigramModel.of(extend_tokenizer(tiny, ["<a>"]), source="x")


def test_the_published_vocabulary_keeps_its_ids():
    published = Tokenizer.from_folder(real_folder("deberta-v3"))
    model = UnigramModel.of(published, source="deberta-v3")
    extended = model.extended(["▁disentangled", "▁pretraining"])
    assert (published.mask_id, published.vocab_size) == (128000, 128001)
    assert (extended.mask_id, extended.vocab_size) == (128000, 128003)
    assert extended.encode("disentangled pretraining") == [128001, 128002]
    assert math.isclose(model.unknown, min(model.scores.values()) - 10)
