"""The tokenizer over any vocabulary: special tokens, pairs and truncation, masks, decoding, and files."""

import dataclasses
import json
import pickle
import sys

import numpy as np
import pytest

from deberta_jax.errors import MissingFileError, MissingPackageError, UserError
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...support.tokenizer_texts import SPECIAL, TRICKY, corpus, longest_first
from .conftest import SPM_PIECES


@pytest.fixture
def tokenizer(spm: Tokenizer) -> Tokenizer:
    return spm


def test_batch_of_one_string_is_refused(tokenizer):
    with pytest.raises(ValueError, match="list of strings"):
        tokenizer.encode_batch("a single text")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[MASK]", [None]),
        ("She was a [MASK] woman", ["She was a", None, "woman"]),
        ("[MASK] [MASK]", [None, None]),
        ("[MASK][MASK]", [None, None]),
        ("[mask]", ["[mask]"]),
        ("", []),
    ],
)
def test_parse_mask(tokenizer, text, parts):
    expected = []
    for part in parts:
        expected += [tokenizer.mask_id] if part is None else tokenizer.encode(part)
    assert tokenizer.encode(text, parse_mask=True) == expected


def test_text_after_a_mask_starts_a_word_only_after_white_space(tokenizer):
    *sentence, end = tokenizer.encode("It is very good.")
    assert tokenizer.pieces([end]) == ["."]
    masked = tokenizer.encode("It is very [MASK].", parse_mask=True)
    assert masked == [*sentence[:-1], tokenizer.mask_id, end]
    assert tokenizer("It is very [MASK].", parse_mask=True).input_ids == [1, *masked, 2]
    assert tokenizer.decode(masked, skip_special=False) == "It is very [MASK]."


# --- one text, pairs, truncation --------------------------------------------------------------------------------------


def test_single_text_and_pair(tokenizer):
    a, b = tokenizer.encode("She was happy."), tokenizer.encode("He was not")
    single = tokenizer("She was happy.")
    assert single.input_ids == [1, *a, 2]
    assert single.token_type_ids == [0] * (len(a) + 2)
    pair = tokenizer("She was happy.", "He was not")
    assert pair.input_ids == [1, *a, 2, *b, 2]
    assert pair.token_type_ids == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert tokenizer("", "").input_ids == [1, 2, 2]
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.input_ids = []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("He was", "the happiest of all the men that she had seen in the course of her life"),  # A is shorter
        ("the happiest of all the men that she had seen in the course of her life", "He was"),
        ("one two three four five six", "six five four three two one"),
        ("", "He was not"),
        ("He was not", ""),
    ],
)
def test_pairs_are_truncated_longest_first_and_never_swapped(tokenizer, first, second):
    a, b = tokenizer.encode(first), tokenizer.encode(second)
    full = len(a) + len(b) + 3
    for max_length in range(3, full + 2):
        short_a, short_b = longest_first(a, b, max_length - 3)
        encoding = tokenizer(first, second, max_length=max_length)
        assert encoding.input_ids == [1, *short_a, 2, *short_b, 2]
        assert encoding.token_type_ids == [0] * (len(short_a) + 2) + [1] * (len(short_b) + 1)


def test_single_text_is_truncated_at_its_end(tokenizer):
    ids = tokenizer.encode("She was happy.")
    assert tokenizer("She was happy.", max_length=4).input_ids == [1, *ids[:2], 2]
    assert tokenizer("She was happy.", max_length=2).input_ids == [1, 2]
    assert tokenizer("She was happy.", max_length=512).input_ids == [1, *ids, 2]


@pytest.mark.parametrize(("pair", "least"), [(None, 2), ("b", 3)])
def test_max_length_without_room_for_the_special_tokens(tokenizer, pair, least):
    with pytest.raises(ValueError, match=f"max_length is {least - 1}; it must be at least {least}"):
        tokenizer("a", pair, max_length=least - 1)


def test_offsets_of_a_pair_and_of_masks(tokenizer):
    a, b = "She was [MASK].", "  He [MASK] [MASK]"
    encoding = tokenizer(a, b, parse_mask=True, return_offsets=True)
    texts = [
        offset and (a, b)[kind][slice(*offset)]
        for kind, offset in zip(encoding.token_type_ids, encoding.offsets, strict=True)
    ]
    words = [None, "She", "was", "[MASK]", ".", None, "He", "[MASK]", "[MASK]", None]
    assert [word for word in texts if word != ""] == words
    assert encoding.offsets[-2] == (12, 18)
    for max_length in range(3, len(texts)):
        short = tokenizer(a, b, parse_mask=True, return_offsets=True, max_length=max_length)
        tail = short.token_type_ids.index(1)
        assert short.offsets[: tail - 1] == encoding.offsets[: tail - 1]
        assert short.offsets[tail:-1] == encoding.offsets[texts.index(None, 1) + 1 :][: max_length - tail - 1]
        assert len(short.offsets) == max_length
    assert tokenizer(a, b).offsets is None


# --- decode -----------------------------------------------------------------------------------------------------------


def test_decode_round_trip(tokenizer):
    for text in [*corpus(20_000), *TRICKY[4:]]:
        again = tokenizer.decode(tokenizer.encode(text))
        assert tokenizer.encode(again) == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode("Oh! 😀 日本語.")) == "Oh! 😀 日本語."
    assert tokenizer.decode([]) == ""


def test_decode_with_and_without_special_tokens(tokenizer):
    ids = [*tokenizer("She was", "happy.").input_ids, tokenizer.pad_id, tokenizer.mask_id]
    assert tokenizer.decode(ids) == "She was happy."
    assert tokenizer.decode(np.array(ids)) == "She was happy."
    assert tokenizer.decode(ids, skip_special=False) == "[CLS] She was [SEP] happy. [SEP] [PAD] [MASK]"


@pytest.mark.parametrize("bad", [-1, -100, SPM_PIECES + 1, 128_099])
def test_ids_out_of_range(tokenizer, bad):
    for method in (tokenizer.decode, tokenizer.pieces):
        with pytest.raises(ValueError, match=f"id {bad} has no piece; ids of this tokenizer are 0 to {SPM_PIECES}"):
            method([5, bad])


def test_tables_are_read_only(tokenizer):
    for table in (tokenizer.starts_word, tokenizer.is_special):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = False


# --- files ------------------------------------------------------------------------------------------------------------


def test_save_and_read_back(tokenizer, spm_model, tmp_path):
    folder = tmp_path / "new" / "folder"
    tokenizer.save(folder)
    tokenizer.save(folder)  # over itself
    assert (folder / "spm.model").read_bytes() == spm_model
    assert sorted(entry.name for entry in folder.iterdir()) == ["spm.model", "tokenizer_config.json"]
    assert json.loads((folder / "tokenizer_config.json").read_text())["mask_token"] == "[MASK]"
    for again in (Tokenizer.from_folder(folder), Tokenizer.from_file(folder / "spm.model")):
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode_batch(TRICKY) == tokenizer.encode_batch(TRICKY)


def test_pickle_for_data_workers(tokenizer):
    text = "It is very [MASK]."
    tokenizer.encode(text, parse_mask=True)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(text, parse_mask=True) == tokenizer.encode(text, parse_mask=True)
    assert again.fingerprint == tokenizer.fingerprint


def test_missing_model_lists_the_files_of_the_folder(tmp_path):
    (tmp_path / "vocab.json").touch()
    (tmp_path / "words.txt").touch()
    with pytest.raises(MissingFileError, match=r"holds: vocab\.json, words\.txt"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(MissingFileError, match="no such folder"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="not a file"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.torch
def test_transformers_reads_what_save_writes(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert type(peer).__name__.startswith("DebertaV2Tokenizer")
    assert peer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2, 3, SPM_PIECES]
    assert peer("She was happy.", "He was not").input_ids == tokenizer("She was happy.", "He was not").input_ids


def test_a_folder_with_several_kinds_needs_a_vocab_type(spm, bpe, roberta, bert, tmp_path):
    bpe.save(tmp_path)
    spm.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    assert Tokenizer.from_folder(tmp_path).fingerprint == spm.fingerprint  # saved last, with vocab_type "spm"
    config.write_text('{"vocab_type": "gpt2"}')
    assert Tokenizer.from_folder(tmp_path).fingerprint == bpe.fingerprint
    for content, state in (('{"vocab_type": "bert"}', "is 'bert'"), ('{"vocab_type": ["spm"]}', r"is \['spm'\]")):
        config.write_text(content)
        with pytest.raises(
            UserError, match=rf"several vocabularies .* \(spm\.model and byte-level BPE\).* {state} in its"
        ):
            Tokenizer.from_folder(tmp_path)
    (tmp_path / "merges.txt").unlink()  # a vocab.json alone belongs to some other kind of model
    assert Tokenizer.from_folder(tmp_path).fingerprint == spm.fingerprint
    (tmp_path / "spm.model").unlink()
    roberta.save(tmp_path)
    bert.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).fingerprint == bert.fingerprint
    config.write_text('{"vocab_type": "roberta"}')
    assert Tokenizer.from_folder(tmp_path).fingerprint == roberta.fingerprint
    config.write_text("{}")
    with pytest.raises(
        UserError, match=r"\(byte-level BPE and WordPiece's vocab\.txt\) and `vocab_type` is not set in"
    ):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"no JSON", b"\xff", b"[" * 100_000], ids=["list", "text", "bytes", "deep"])
def test_damaged_tokenizer_config_is_named(bpe, bert, tmp_path, content):
    bert.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    for _ in range(2):  # with one kind of vocabulary, then with two
        config.write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer_config\.json is damaged: expected a JSON object") as error:
            Tokenizer.from_folder(tmp_path)
        assert "\n" not in str(error.value)
        bpe.save(tmp_path)


def test_missing_package_is_named(bpe, bert, tmp_path, monkeypatch):
    bpe.save(tmp_path / "bpe")
    bert.save(tmp_path / "bert")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for folder in ("bpe", "bert"):
        with pytest.raises(MissingPackageError, match="needs the package tokenizers: pip install tokenizers"):
            Tokenizer.from_folder(tmp_path / folder)
