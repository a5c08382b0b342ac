"""The tokenizers of the baselines: WordPiece (BERT, ELECTRA), and byte-level BPE with RoBERTa's special tokens."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.tokenizers.wordpiece import WordPiece
from deberta_jax.train.tasks.choices.encoding import encode_choice_questions
from deberta_jax.train.tasks.choices.questions import ChoiceQuestion
from deberta_jax.train.tasks.spans.questions import SpanQuestion
from deberta_jax.train.tasks.spans.windows import encode_span_questions

from ...support.tokenizer_texts import TRICKY, corpus, longest_first
from .conftest import BERT, ROBERTA, WORD_PIECES

TEXTS = [*TRICKY, " a", "it's  WE'LL don't\n\n  x", "7 dollars, $7.50!", "naïve Ünïcode", "x" * 200 + " end", "日本 go"]
WORDS = [text for text in TEXTS if "[" not in text and "<" not in text]  # transformers reads "[SEP]" as the separator


@pytest.fixture(params=["bert", "roberta"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


# --- ids --------------------------------------------------------------------------------------------------------------


def test_special_tokens_have_the_ids_of_their_files(bert: Tokenizer, roberta: Tokenizer) -> None:
    ids = [bert.pad_id, bert.unk_id, bert.cls_id, bert.sep_id, bert.mask_id]
    assert (ids, bert.pieces(ids), bert.vocab_size) == ([0, 1, 2, 3, 4], BERT, WORD_PIECES)
    ids = [roberta.cls_id, roberta.pad_id, roberta.sep_id, roberta.unk_id, roberta.mask_id]
    assert (ids, roberta.pieces(ids), roberta.vocab_size) == ([0, 1, 2, 3, 1001], ROBERTA, 1002)
    for tokenizer in (bert, roberta):
        special = {tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id}
        assert set(np.flatnonzero(tokenizer.is_special)) == special
        assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_text_gives_no_special_id_but_the_unknown_one(tokenizer: Tokenizer) -> None:
    for text in [*TEXTS, "<s> </s> <pad> <mask>"]:
        assert not {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id} & {*tokenizer.encode(text)}


def test_choices_and_questions_are_the_tokenizers_pairs(tokenizer: Tokenizer) -> None:
    choice = ChoiceQuestion("She was happy.", "He", ("is", "was not"), None)
    batch = encode_choice_questions([choice], tokenizer, max_length=32).batch(np.array([0]), length=32)
    asked = SpanQuestion("1", "Who was happy?", "She was happy.", None)
    sizes = {"max_length": 32, "max_question_length": 16, "doc_stride": 8, "max_answer_length": 4}
    spans = encode_span_questions([asked], tokenizer, **sizes).batch(np.array([0]), length=32)
    encoded = {
        ("She was happy.", "He is"): (batch["input_ids"][0, 0], batch["attention_mask"][0, 0]),
        ("She was happy.", "He was not"): (batch["input_ids"][0, 1], batch["attention_mask"][0, 1]),
        ("Who was happy?", "She was happy."): (spans["input_ids"][0], spans["attention_mask"][0]),
    }
    for (text, pair), (ids, mask) in encoded.items():
        expected = tokenizer(text, pair).input_ids
        assert ids[: len(expected)].tolist() == expected
        assert mask.tolist() == [1] * len(expected) + [0] * (32 - len(expected))


def test_roberta_has_two_separators_in_a_pair(roberta: Tokenizer) -> None:
    a, b = roberta.encode("She was happy."), roberta.encode("He")
    pair = roberta("She was happy.", "He", return_offsets=True)
    assert pair.input_ids == [0, *a, 2, 2, *b, 2]
    assert pair.token_type_ids == [0] * (len(a) + 2) + [1] * (len(b) + 2)
    assert pair.offsets[len(a) + 1 : len(a) + 4] == [None, None, (0, 1)]
    assert len(pair.offsets) == len(pair.input_ids)
    for max_length in range(4, len(pair.input_ids)):
        short_a, short_b = longest_first(a, b, max_length - 4)
        assert roberta("She was happy.", "He", max_length=max_length).input_ids == [0, *short_a, 2, 2, *short_b, 2]
    with pytest.raises(ValueError, match="max_length is 3; it must be at least 4"):
        roberta("a", "b", max_length=3)
    assert roberta("She was happy.").input_ids == [0, *a, 2]


def test_bert_has_one_separator_in_a_pair(bert: Tokenizer) -> None:
    a, b = bert.encode("She was happy."), bert.encode("He")
    pair = bert("She was happy.", "He")
    assert pair.input_ids == [2, *a, 3, *b, 3]
    assert pair.token_type_ids == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert len(bert("She was happy.", "He", max_length=5).input_ids) == 5


@pytest.mark.parametrize("text", ["It is very [MASK].", "[MASK] was happy", "She was [MASK] happy, [MASK] [MASK]"])
def test_masks_are_parsed(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, parse_mask=True)
    assert ids.count(tokenizer.mask_id) == text.count("[MASK]")
    [the] = tokenizer.encode(" the")
    filled = [the if i == tokenizer.mask_id else i for i in ids]
    assert tokenizer.decode(filled).strip() == tokenizer.decode(tokenizer.encode(text.replace("[MASK]", "the"))).strip()


def test_bert_decodes_to_words(bert: Tokenizer) -> None:
    text = "she was happy, he was not."
    assert bert.decode(bert(text).input_ids) == text
    assert bert.decode(bert(text).input_ids, skip_special=False) == f"[CLS] {text} [SEP]"
    assert bert.decode([4, *bert.encode("good")], skip_special=False) == "[MASK] good"


def test_bert_pieces_without_a_prefix_start_words(bert: Tokenizer, word_pieces: list[str]) -> None:
    assert bert.starts_word.tolist() == [not piece.startswith("##") for piece in word_pieces]
    assert 100 < bert.starts_word.sum() < WORD_PIECES - 100


def test_bert_offsets_are_in_the_original_text(bert: Tokenizer) -> None:
    text = "Naïve  Emma\u200b, [MASK]日"
    encoding = bert(text, return_offsets=True, parse_mask=True)
    spans = [text[start:end] for start, end in encoding.offsets[1:-1]]
    assert "".join(spans).replace("\u200b", "") == "NaïveEmma,[MASK]日"
    assert encoding.input_ids[-3:] == [4, bert.encode("日")[0], 3]


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("name", ["bert", "bert-cased", "roberta"])
def test_transformers_gives_the_same_ids(
    tmp_path: Path, bert: Tokenizer, roberta: Tokenizer, word_pieces: list[str], name: str
) -> None:
    """Loads a saved folder in transformers and compares single texts, pairs, masks, truncation and offsets."""
    transformers: Any = pytest.importorskip("transformers", reason="the comparison needs transformers")
    cased = Tokenizer(WordPiece(word_pieces, {"do_lower_case": False}, source="pieces"))
    tokenizer = {"bert": bert, "bert-cased": cased, "roberta": roberta}[name]
    tokenizer.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert type(peer).__name__ == ("RobertaTokenizer" if name == "roberta" else "BertTokenizer")
    assert [peer.pad_token_id, peer.mask_token_id] == [tokenizer.pad_id, tokenizer.mask_id]
    for text in [*WORDS, *corpus(20_000)]:
        batch, encoding = peer(text, return_offsets_mapping=True), tokenizer(text, return_offsets=True)
        assert encoding.input_ids == batch.input_ids
        spans = [(text[start:end].strip(), end) for start, end in batch.offset_mapping[1:-1]]
        assert [(text[start:end], end) for start, end in encoding.offsets[1:-1] if end > start] == [
            s for s in spans if s[0]
        ]
        pair = peer(text, "He was not.")
        assert tokenizer(text, "He was not.").input_ids == pair.input_ids
        if name != "roberta":
            assert tokenizer(text, "He was not.").token_type_ids == pair.token_type_ids
        cut = peer(text, max_length=7, truncation=True)
        assert tokenizer(text, max_length=7).input_ids == cut.input_ids
    # Since version 5, transformers keeps the space before a <mask>, which fairseq makes a part of it.
    ids = peer(f"She was{peer.mask_token} happy.").input_ids
    assert tokenizer("She was [MASK] happy.", parse_mask=True).input_ids == ids
    assert cased.encode("She") != bert.encode("She")


# --- files ------------------------------------------------------------------------------------------------------------


def test_save_pickle_and_read_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for again in (Tokenizer.from_folder(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
        assert again("a", "b").input_ids == tokenizer("a", "b").input_ids


def test_do_lower_case_in_the_folder_keeps_capitals(word_pieces: list[str], bert: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(word_pieces).encode())  # no newline at the end
    assert Tokenizer.from_folder(tmp_path).fingerprint == bert.fingerprint
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 512}')
    cased = Tokenizer.from_folder(tmp_path)
    assert cased.pieces(cased.encode("Emma"))[0][0] == "E"
    assert cased.fingerprint != bert.fingerprint
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": 1}')
    with pytest.raises(UserError, match="do_lower_case is 1; it must be"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has none of them; BERT and ELECTRA need the pieces"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"[CLS]\n[PAD]\n[SEP]\n[UNK]\n[MASK]\n", r"has \[PAD\] 1, \[CLS\] 0"),
        (b"[PAD]\n[CLS]\n[SEP]\n[UNK]\n", r"has \[PAD\] 0, \[CLS\] 1, \[SEP\] 2, \[UNK\] 3; BERT"),
        (b"[PAD]\n\xff", "is not UTF-8"),
    ],
)
def test_damaged_vocab_txt_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.from_folder(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "vocab.txt"))
    assert "\n" not in str(error.value)


def test_files_that_are_not_those_of_a_roberta_are_refused(roberta: Tokenizer, tmp_path: Path) -> None:
    roberta.save(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_bytes())
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"<s>": 1, "<pad>": 0}))
    with pytest.raises(ValueError, match=r"vocab\.json has <pad> 0; it must be 1"):
        Tokenizer.from_folder(tmp_path)
    del vocab["<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(ValueError, match=r"DeBERTa v1 needs .* RoBERTa <pad>, <s>, </s>, <unk>, <mask>"):
        Tokenizer.from_folder(tmp_path)
