"""Folders with nothing but tokenizer.json: the ids of the package tokenizers, for every family."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...support.tokenizer_texts import TRICKY, corpus
from .conftest import SPM_PIECES
from .test_added_tokens import TEXTS

FAMILIES = ["spm", "bpe", "roberta", "bert"]


def convert(tokenizer: Tokenizer, folder: Path) -> Any:
    """Saves what transformers 5 makes of a tokenizer, with added tokens; returns transformers' own."""
    transformers = pytest.importorskip("transformers")
    tokenizer.save(folder / "files")
    peer = transformers.AutoTokenizer.from_pretrained(str(folder / "files"))
    peer.add_tokens([transformers.AddedToken("\n", normalized=False), "[E1]", "NewTok"])
    peer.add_special_tokens({"additional_special_tokens": ["[ENT]"]})
    peer(["she was", "he"], truncation=True, max_length=3, padding="max_length")  # both are saved in tokenizer.json
    peer.save_pretrained(str(folder / "json"))
    return transformers.AutoTokenizer.from_pretrained(str(folder / "json"))


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_transformers(request, tmp_path, family):
    peer = convert(request.getfixturevalue(family), tmp_path)
    assert sorted(path.name for path in (tmp_path / "json").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    first = Tokenizer.from_folder(tmp_path / "json")
    first.save(tmp_path / "again")
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (tmp_path / "json/tokenizer.json").read_bytes()
    for ours in (first, Tokenizer.from_folder(tmp_path / "again"), pickle.loads(pickle.dumps(first))):
        assert ours.vocab_size == len(peer)
        special = [ours.pad_id, ours.cls_id, ours.sep_id, ours.unk_id, ours.mask_id]
        assert special == [getattr(peer, f"{name}_token_id") for name in ("pad", "cls", "sep", "unk", "mask")]
        texts = [*TEXTS, *(text for text in TRICKY if "[" not in text and "<s>" not in text), *corpus(2000)]
        assert ours.encode_batch(texts) == [peer(text, add_special_tokens=False).input_ids for text in texts]
        assert [ours(text, "he [E1]").input_ids for text in texts] == [
            peer(text, "he [E1]").input_ids for text in texts
        ]
        assert ours.fingerprint == first.fingerprint
    again = first(TEXTS[0], "he was", return_offsets=True)
    assert len(again.offsets or ()) == len(again.input_ids)
    ids = first.encode("she [E1] was\n[ENT] he")
    assert first.decode(ids, skip_special=False).split() == ["she", "[E1]", "was", "[ENT]", "he"]
    assert "[ENT]" not in first.decode(ids)
    assert first.is_special[first.vocab_size - 1]
    assert first.cls_id not in first.encode("[CLS] <s> x")
    *_, end = first.encode("she was.")
    assert first.encode("she [MASK].", parse_mask=True)[-2:] == [first.mask_id, end]


@pytest.mark.torch
def test_other_files_are_preferred_unless_the_pieces_differ(spm, tmp_path):
    convert(spm, tmp_path)
    folder = tmp_path / "json"
    (folder / "spm.model").write_bytes((tmp_path / "files/spm.model").read_bytes())
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.pieces(tokenizer.encode("ﬁ")) != ["[UNK]"]  # SentencePiece's normalization
    assert tokenizer.encode("[E1]") == [SPM_PIECES + 2]  # from tokenizer.json
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"][100:102] = content["model"]["vocab"][101:99:-1]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "tokenizer.json" in Tokenizer.from_folder(folder)._vocabulary.files()


def unigram(**changes: Any) -> str:
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁", "▁a", "b"]
    content = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "Unigram", "unk_id": 3, "vocab": [[piece, -float(i)] for i, piece in enumerate(pieces)]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    }
    return json.dumps(content | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged or not a tokenizer"),
        ("version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("[]", "is damaged or not a tokenizer"),
        ('{"model": {"type": "WordLevel", "vocab": {"a": 0}}}', "of the kind 'WordLevel'"),
        ('{"model": {"type": "Unigram"}}', "damaged"),
        (unigram(), r"has no mask_token '\[MASK\]'"),
        (unigram(added_tokens=[{"content": "[MASK]"}]), "added_tokens must be a list"),
        (
            unigram(added_tokens=[{"id": 7, "content": "[MASK]"}], normalizer={"type": "?"}),
            "cannot be read by the pack",
        ),
    ],
)
def test_damaged_or_foreign_files_are_one_clear_line(tmp_path, content, message):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_line_break_that_is_normalized_away_is_still_found(tmp_path):
    pytest.importorskip("tokenizers")
    added = [{"id": 7, "content": "[MASK]", "special": True}, {"id": 8, "content": "\n", "normalized": True}]
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Strip", "strip_left": False, "strip_right": True}]}
    content = unigram(added_tokens=[flags | token for token in added], normalizer=normalizer)
    (tmp_path / "tokenizer.json").write_text(content)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("a\nb") == [5, 8, 4, 6]
    assert tokenizer.decode(tokenizer.encode("[CLS]")) != "[CLS]"
    assert tokenizer.cls_id not in tokenizer.encode("a [CLS] b")


def test_missing_tokenizer_of_a_model_gets_no_advice_to_train_one(tmp_path):
    with pytest.raises(MissingFileError, match=r"or tokenizer\.json .* train a SentencePiece model"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingFileError, match="copy the files of the tokenizer there from the model") as error:
        Tokenizer.from_folder(tmp_path)
    assert "train" not in str(error.value)
