"""Tokens that are added to a vocabulary have the ids that transformers gives them."""

import pytest

from deberta_jax.errors import UserError
from deberta_jax.tokenizers.extend import declare_pieces, extend_tokenizer
from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.train.data.train_tokenizer import train_tokenizer

from ...support.tokenizer_texts import corpus, real_folder

pytest.importorskip("tokenizers", reason="added tokens need the package tokenizers")

TOKENS = ["[E1]", "\n", "New York"]
TEXTS = ["she [E1]was [E1] happy\nin New York", "[E1]", "New York[E1]\n\n", "  a [E1] ", "the man"]


def test_ids_follow_the_last_one_and_survive_saving(spm, tmp_path):
    extended = extend_tokenizer(spm, TOKENS)
    first = spm.vocab_size
    assert extended.vocab_size == first + 3
    assert [token for token in extended.encode("a\n[E1] New York") if token >= first] == [first + 1, first, first + 2]
    assert extended.decode(extended.encode("she [E1] was")) == "she [E1] was"
    assert not extended.is_special[first:].any()
    extended.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert again.fingerprint == extended.fingerprint != spm.fingerprint
    twice = extend_tokenizer(again, ["<x>"])
    assert twice.encode("<x>[E1]") == [first + 3, first]
    assert twice.encode_batch(TEXTS) == extended.encode_batch(TEXTS)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([""], "the token to add '' is empty"),
        ([" a"], "the token to add ' a' is empty, or begins or ends with a space"),
        (["[MASK]"], r"the token to add '\[MASK\]' is in the vocabulary already, with the id 2000"),
        (["[CLS]"], "in the vocabulary already, with the id 1"),
        (["<x>", "<x>"], "the token to add '<x>' is given twice"),
        (["a\0"], "has a NUL character"),
    ],
)
def test_tokens_that_cannot_be_added_are_named(spm, tokens, message):
    with pytest.raises(UserError, match=message):
        extend_tokenizer(spm, tokens)
    with pytest.raises(UserError, match="already"):
        extend_tokenizer(extend_tokenizer(spm, ["<x>"]), ["<x>"])


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["spm", "bpe", "bert"])
def test_ids_are_those_of_transformers(request, kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    extended = extend_tokenizer(request.getfixturevalue(kind), TOKENS)
    extended.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert len(peer) == extended.vocab_size
    for text in TEXTS:
        assert extended.encode(text) == peer(text, add_special_tokens=False).input_ids, text


@pytest.mark.torch
def test_a_published_vocabulary_is_extended_as_transformers_extends_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = real_folder("deberta-v3")
    extended = extend_tokenizer(Tokenizer.from_folder(folder), TOKENS)
    peer = transformers.AutoTokenizer.from_pretrained(str(folder))
    peer.add_tokens([transformers.AddedToken(token, normalized=False) for token in TOKENS])
    extended.save(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert extended.encode("[E1]") == [128001]
    for text in TEXTS:
        expected = peer(text, add_special_tokens=False).input_ids
        assert extended.encode(text) == expected == saved(text, add_special_tokens=False).input_ids, text


@pytest.mark.torch
def test_symbols_of_a_new_vocabulary_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    plain = Tokenizer.from_bytes(train_tokenizer(corpus(50_000), vocab_size=600, symbols=("[E1]", "<a>")))
    symbols = declare_pieces(plain, ("[E1]", "<a>"))
    assert symbols.vocab_size == plain.vocab_size == 601
    symbols.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in ("she [E1]was <a> man", "[E1]<a>", "a[E1]  b <a>", " <a> "):
        assert symbols.encode(text) == peer(text, add_special_tokens=False).input_ids, text
