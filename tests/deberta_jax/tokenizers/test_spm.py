"""SentencePiece vocabularies: their ids, special tokens that no text can forge, offsets, and damaged files."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from deberta_jax.errors import UserError
from deberta_jax.tokenizers import spm as spm_module
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...support.tokenizer_texts import (
    DEBERTA_PIECES,
    SPECIAL,
    TRICKY,
    corpus,
    custom_model,
    official_part_of_whole_word,
)
from .conftest import SPM_PIECES


@pytest.fixture
def tokenizer(spm: Tokenizer) -> Tokenizer:
    return spm


def test_special_tokens_have_the_ids_of_the_released_models(tokenizer):
    ids = [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id]
    assert ids == [0, 1, 2, 3, SPM_PIECES]
    assert tokenizer.vocab_size == SPM_PIECES + 1
    assert tokenizer.pieces(ids) == SPECIAL
    assert np.flatnonzero(tokenizer.is_special).tolist() == ids
    assert tokenizer.is_special.shape == (SPM_PIECES + 1,)


def test_mask_piece_inside_the_file_keeps_its_id():
    tokenizer = Tokenizer.from_bytes(custom_model(**DEBERTA_PIECES, control_symbols="[MASK]"))
    assert (tokenizer.mask_id, tokenizer.vocab_size) == (4, 300)
    assert tokenizer.pieces([4]) == ["[MASK]"]
    assert tokenizer.is_special[4]
    assert 4 not in tokenizer.encode("[MASK]")
    assert 4 in tokenizer.encode("[MASK]", parse_mask=True)


def test_cls_and_sep_keep_the_ids_of_the_file():
    tokenizer = Tokenizer.from_bytes(custom_model(**DEBERTA_PIECES | {"bos_id": 2, "eos_id": 3, "unk_id": 1}))
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id) == (0, 1, 2, 3)
    assert tokenizer("").input_ids == [2, 3]


@pytest.mark.parametrize(
    ("changes", "present"),
    [
        ({}, "none of them"),  # <unk> 0, <s> 1, </s> 2
        (DEBERTA_PIECES | {"pad_id": 1, "bos_id": 0}, r"\[PAD\] 1, \[CLS\] 0"),
        (DEBERTA_PIECES | {"eos_piece": "</s>"}, r"\[PAD\] 0, \[CLS\] 1, \[UNK\] 3;"),
        (DEBERTA_PIECES | {"unk_piece": "<unk>", "control_symbols": "[UNK]"}, r"\[UNK\] 4;"),
    ],
)
def test_model_without_the_special_pieces_is_refused(changes, present):
    with pytest.raises(ValueError, match=present) as error:
        Tokenizer.from_bytes(custom_model(**changes))
    assert "deberta-jax tokenizer" in str(error.value)


# --- encode -----------------------------------------------------------------------------------------------------------


def test_encode_is_plain_sentencepiece(spm_model, tokenizer):
    plain = sentencepiece.SentencePieceProcessor(model_proto=spm_model)
    texts = [*TRICKY, *corpus(20_000)]
    assert [tokenizer.encode(text) for text in texts] == [plain.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == [plain.encode(text) for text in texts]
    assert tokenizer.encode_batch(iter(texts)) == tokenizer.encode_batch(texts)
    assert tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("text", TRICKY)
def test_text_never_gives_special_ids(tokenizer, text):
    assert not tokenizer.is_special[tokenizer.encode(text)].any()


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("ﬁne", "fine"),
        ("①", "1"),
        ("\uff26\uff35\uff2c\uff2c", "FULL"),
        ("a\u00a0b", "a b"),
        ("a\u200bb", "a b"),
        ("e\u0301", "é"),
        ("a\t\n  b ", "a b"),
    ],
)
def test_normalization_is_nmt_nfkc(tokenizer, text, same_as):
    assert tokenizer.encode(text) == tokenizer.encode(same_as)


def test_unknown_characters_become_bytes(tokenizer):
    assert tokenizer.pieces(tokenizer.encode("😀")) == ["▁", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]


# --- offsets ----------------------------------------------------------------------------------------------------------


def spans(tokenizer: Tokenizer, text: str) -> list[tuple[str, str | None]]:
    """Returns each piece with the text that its offsets point to."""
    encoding = tokenizer(text, return_offsets=True)
    pairs = zip(tokenizer.pieces(encoding.input_ids), encoding.offsets, strict=True)
    return [(piece, offset and text[slice(*offset)]) for piece, offset in pairs]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  the   man. ", ["the", "man."]),
        ("she\tand\n", ["she", "and"]),
        ("\u3000the", ["the"]),
        ("no\u00a0the", ["no", "the"]),
        ("the\u200bthe \ufeffthe", ["the", "the", "the"]),
        ("\uff34\uff28\uff25 man", ["\uff34\uff28\uff25", "man"]),
        ("the ﬁne… man", ["the", "ﬁne…", "man"]),
        ("e\u0301e\u0301 éa", ["e\u0301e\u0301", "éa"]),
        ("the 😀the 👩‍👩‍👧", ["the", "😀the", "👩‍👩‍👧"]),
    ],
)
def test_offsets_of_words_point_into_the_original_text(tokenizer, text, words):
    encoding = tokenizer(text, return_offsets=True)
    assert (encoding.offsets[0], encoding.offsets[-1]) == (None, None)
    found_words = []
    for piece, (start, end) in zip(tokenizer.pieces(encoding.input_ids[1:-1]), encoding.offsets[1:-1], strict=True):
        if piece.startswith("▁"):
            found_words.append((start, end))
        else:
            assert start <= found_words[-1][1] <= end  # no gap between the pieces of a word
            found_words[-1] = (found_words[-1][0], end)
    assert [text[start:end] for start, end in found_words] == words


@pytest.mark.parametrize(
    ("text", "shared", "pieces"), [("ⅷ", "ⅷ", 4), ("…", "…", 3), ("a 😀", "😀", 4), ("ﷺ", "ﷺ", 15)]
)
def test_pieces_that_share_a_character_each_have_all_of_it(tokenizer, text, shared, pieces):
    assert [span for _, span in spans(tokenizer, text)].count(shared) >= pieces


@pytest.mark.parametrize("text", TRICKY)
def test_offsets_give_every_piece_its_characters(tokenizer, spm_model, text):
    plain = sentencepiece.SentencePieceProcessor(model_proto=spm_model)
    encoding = tokenizer(text, return_offsets=True)
    assert encoding.input_ids == tokenizer(text).input_ids
    covered = set()
    for token, offset in zip(encoding.input_ids[1:-1], encoding.offsets[1:-1], strict=True):
        start, end = offset
        covered |= set(range(start, end))
        source = plain.normalize(text[start:end]).removeprefix("▁")
        if plain.is_byte(token):
            assert int(plain.id_to_piece(token)[1:-1], 16) in source.encode()
        else:
            assert plain.id_to_piece(token).strip("▁") in source
        assert bool(source) == (plain.id_to_piece(token) != "▁")
    assert covered >= {i for i, character in enumerate(text) if not character.isspace() and plain.normalize(character)}


def test_offsets_of_unknown_characters():
    tokenizer = Tokenizer.from_bytes(custom_model(**DEBERTA_PIECES))
    assert spans(tokenizer, "a 日本 b")[-4:-1] == [("[UNK]", "日本"), ("▁", ""), ("b", "b")]


# --- words ------------------------------------------------------------------------------------------------------------


def test_starts_word_is_the_official_rule(tokenizer):
    expected = [not official_part_of_whole_word(piece) for piece in tokenizer.pieces(range(tokenizer.vocab_size))]
    assert tokenizer.starts_word.tolist() == expected
    assert tokenizer.starts_word.dtype == bool


def test_starts_word_of_rare_single_characters():
    marks = ["$", "^", "`", "~", "…", "—", "」", "\u200d", "§", "€", "é", "日", "5"]
    tokenizer = Tokenizer.from_bytes(custom_model(**DEBERTA_PIECES, user_defined_symbols=",".join(marks)))
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    starts = {piece: start for piece, start in zip(pieces, tokenizer.starts_word, strict=True) if piece in marks}
    assert starts == {mark: not official_part_of_whole_word(mark) for mark in marks}
    assert starts["$"]
    assert starts["—"]
    assert not starts["€"]


def test_words_of_a_sentence(tokenizer):
    ids = tokenizer.encode("Impossibly so, 😀!")
    words = "".join(
        ("|" if start else "") + piece
        for piece, start in zip(tokenizer.pieces(ids), tokenizer.starts_word[ids], strict=True)
    )
    assert words.replace("▁", "") == "|Impossibly|so|,|<0xF0><0x9F><0x98><0x80>|!"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["empty", "short", "text", "pointer"])
def test_damaged_model_is_named(spm_model, tmp_path, capfd, damage):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 2464616\n"
    content = {"empty": b"", "short": spm_model[:-100], "text": b"no model", "pointer": pointer}[damage]
    (tmp_path / "spm.model").write_bytes(content)
    with pytest.raises(ValueError, match=rf"spm\.model is not a SentencePiece model \({len(content)} bytes\)"):
        Tokenizer.from_folder(tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fields", [100, -2])
def test_model_that_ends_between_two_fields_is_damaged(fields):
    """SentencePiece itself loads these models, without their normalization."""
    model = custom_model(**DEBERTA_PIECES)
    ends, position = [], 0
    while position < len(model):
        length, position = model[position + 1], position + 2
        shift = 7
        while length >> shift:
            length = length - (1 << shift) + (model[position] << shift)
            position, shift = position + 1, shift + 7
        position += length
        ends.append(position)
    assert ends[-1] == len(model)
    cut = model[: ends[fields]]
    assert sentencepiece.SentencePieceProcessor(model_proto=cut).get_piece_size() > 0
    with pytest.raises(ValueError, match="cut short"):
        Tokenizer.from_bytes(cut)


def test_damaged_released_model_is_recognized_by_its_size(spm_model, tmp_path, monkeypatch):
    path = tmp_path / "spm.model"
    path.write_bytes(bytes(2_464_616))
    with pytest.raises(ValueError, match=r"spm\.model is damaged: it has the size of DeBERTa v3's \(2464616 bytes\)"):
        Tokenizer.from_folder(tmp_path)
    released = {len(spm_model): ("DeBERTa v9", hashlib.sha256(spm_model).hexdigest())}
    monkeypatch.setattr(spm_module, "_RELEASED", released)
    path.write_bytes(spm_model)
    assert Tokenizer.from_folder(tmp_path).fingerprint == released[len(spm_model)][1]
    assert b"mother" in spm_model
    path.write_bytes(spm_model.replace(b"mother", b"muther"))  # still a model, with another word
    assert Tokenizer.from_bytes(path.read_bytes()).vocab_size == SPM_PIECES + 1
    with pytest.raises(ValueError, match=r"the size of DeBERTa v9's .* but the SHA-256"):
        Tokenizer.from_folder(tmp_path)
    path.write_bytes(custom_model(**DEBERTA_PIECES))  # has the size of no released model
    assert Tokenizer.from_folder(tmp_path).vocab_size == 301


def test_changed_bytes_give_another_model_or_a_users_mistake(spm_model, tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "spm.model"
    refused: list[str] = []
    for _ in range(100):
        changed = bytearray(spm_model)
        changed[random.integers(len(changed))] = random.integers(256)
        path.write_bytes(changed[: random.integers(len(changed))] if random.integers(2) else changed)
        try:
            assert Tokenizer.from_folder(tmp_path).vocab_size > 0
        except UserError as error:
            refused.append(str(error))
    assert refused
    assert all(line.startswith(f"{path} ") and "\n" not in line for line in refused)


# --- settings ---------------------------------------------------------------------------------------------------------


def read_with(spm_model: bytes, folder: Path, **settings: object) -> Tokenizer:
    (folder / "spm.model").write_bytes(spm_model)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "DebertaV2Tokenizer", **settings}))
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("settings", [{"do_lower_case": True}, {"split_by_punct": True}])
def test_settings_are_kept(spm_model, tokenizer, tmp_path, settings):
    changed = read_with(spm_model, tmp_path, **settings)
    changed.save(tmp_path / "again")
    again = Tokenizer.from_folder(tmp_path / "again")
    text = "SHE Was, so 'Happy'!"
    assert again.encode(text) == changed.encode(text) != tokenizer.encode(text)
    assert again.encode_batch([text]) == [pickle.loads(pickle.dumps(changed)).encode(text)] == [again.encode(text)]
    assert again.fingerprint == changed.fingerprint != tokenizer.fingerprint
    config = json.loads((tmp_path / "again/tokenizer_config.json").read_text())
    assert {name: config[name] for name in settings} == settings


def test_lower_case(spm_model, tokenizer, tmp_path):
    changed = read_with(spm_model, tmp_path, do_lower_case=True)
    for text in [*TRICKY, "SHE Was ΟΔΟΣ İstanbul"]:
        assert changed.encode(text) == tokenizer.encode(text.lower())
    text = "İ She"
    encoding = changed(text, return_offsets=True)
    assert [text[slice(*offset)] for offset in encoding.offsets if offset][-1] == "She"
    assert (0, 1) in encoding.offsets


def test_punctuation_is_split_as_in_the_official_code(spm_model, tokenizer, tmp_path):
    changed = read_with(spm_model, tmp_path, split_by_punct=True)
    assert changed.encode("she,was (so)!") == [
        token for word in ["she", ",", "was ", "(", "so", ")", "!"] for token in tokenizer.encode(word)
    ]
    assert changed.encode("a$b—c") == [token for word in "a$b—c" for token in tokenizer.encode(word)]
    for text in TRICKY:
        encoding = changed(text, return_offsets=True)
        assert encoding.input_ids[1:-1] == changed.encode(text)
    assert [text for piece, text in spans(changed, "she, he") if text] == ["she", ",", "he"]


@pytest.mark.torch
def test_settings_give_the_ids_of_transformers(spm_model, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = read_with(spm_model, tmp_path, do_lower_case=True, split_by_punct=True)
    peer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    # Not with a space before punctuation, which transformers 5 makes a piece, unlike its slow tokenizer before.
    for text in ["She was,so HAPPY!", "The man's wife...", "she"]:
        assert ours.encode(text) == peer(text, add_special_tokens=False).input_ids
