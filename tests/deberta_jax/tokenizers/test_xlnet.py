"""XLNet's pieces: the ids of the official code and of transformers' tokenizer.json, offsets, layout and padding."""

import json
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from deberta_jax import Tokenizer
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.tokenizers.xlnet import XLNetPieces

from ...support.hostile_texts import ORDINARY
from ...support.tokenizer_texts import TRICKY, corpus
from ...support.xlnet import pieces_model, xlnet_tokenizer

ODD = [
    "``quoted'' and ''it' ```` ''''",
    "In 1945, 1,234, 9, x9, 12, 5,, ²,",
    "éclair naïve e\u0301 İstanbul ΣΑΣ Ǆ",
    "\u0301 an accent alone, a\u0301\u0302\u0303 b",
    "<eop> a <eod> <cls>",
]
TEXTS = [*TRICKY, *ORDINARY, *ODD, *corpus(20_000)]


def official_pieces(text: str, model: bytes, *, lower: bool = False) -> list[str]:
    """Restates `preprocess_text` and `encode_pieces` of the official prepro_utils.py."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    text = " ".join(text.strip().split()).replace("``", '"').replace("''", '"')
    text = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    pieces: list[str] = []
    for piece in processor.encode(text.lower() if lower else text, out_type=str):
        if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
            number = processor.encode(piece[:-1].replace("▁", ""), out_type=str)
            if piece[0] != "▁" and number[0][0] == "▁":
                number = number[1:] if len(number[0]) == 1 else [number[0][1:], *number[1:]]
            pieces += [*number, ","]
        else:
            pieces.append(piece)
    return pieces


@pytest.mark.parametrize("lower", [False, True])
def test_ids_are_those_of_the_official_code(lower: bool) -> None:
    model = pieces_model()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    numbers = [piece for piece in map(processor.id_to_piece, range(600)) if piece[-2:-1].isdigit() and piece[-1] == ","]
    assert numbers, "the model has no piece that the rule for numbers splits"
    tokenizer = Tokenizer(XLNetPieces(model, do_lower_case=lower, source="the model"))
    want = [[processor.piece_to_id(piece) for piece in official_pieces(text, model, lower=lower)] for text in TEXTS]
    assert [tokenizer.encode(text) for text in TEXTS] == want
    assert tokenizer.encode_batch(TEXTS) == want
    assert pickle.loads(pickle.dumps(tokenizer)).encode_batch(TEXTS) == want


def test_offsets_are_the_places_of_the_pieces() -> None:
    tokenizer = xlnet_tokenizer()
    for text in TEXTS:
        encoding = tokenizer(text, return_offsets=True)
        assert (encoding.offsets or [])[-2:] == [None, None]
        offsets = [offset for offset in encoding.offsets or () if offset is not None]
        assert len(offsets) == len(encoding.input_ids) - 2
        assert all(0 <= start <= end <= len(text) for start, end in offsets)
        assert [end for _, end in offsets] == sorted(end for _, end in offsets)
        covered = {place for start, end in offsets for place in range(start, end)}
        assert {place for place, letter in enumerate(text) if letter.isalnum() and letter.isascii()} <= covered
    text = "In  1945, ``naïve'' cafe\u0301s"
    encoding = tokenizer(text, return_offsets=True)
    parts = [text[slice(*offset)] for offset in encoding.offsets or () if offset is not None]
    assert "".join(parts) == "".join(text.split())
    assert {"``", "''", ","} <= set(parts)


def test_layout_has_cls_at_the_end_and_padding_on_the_left() -> None:
    tokenizer = xlnet_tokenizer()
    a, b = tokenizer.encode("she was"), tokenizer.encode("happy")
    ids = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id)
    assert ids == (5, 3, 4, 0, 6)
    pair = tokenizer("she was", "happy")
    assert pair.input_ids == [*a, 4, *b, 4, 3]
    assert pair.token_type_ids == [0] * (len(a) + 1) + [1] * (len(b) + 1) + [2]
    single = tokenizer("she was")
    assert (single.input_ids, single.token_type_ids[-2:]) == ([*a, 4, 3], [0, 2])
    batch = tokenizer(["she was", "a"], padding="max_length", max_length=16)
    for row, text in enumerate(["she was", "a"]):
        size = len(tokenizer(text).input_ids)
        assert batch.input_ids[row].tolist() == [5] * (16 - size) + tokenizer(text).input_ids
        assert batch.attention_mask[row].tolist() == [0] * (16 - size) + [1] * size
        assert batch.token_type_ids[row].tolist() == [3] * (16 - size) + tokenizer(text).token_type_ids
    assert len(tokenizer("she was very happy " * 9, "and he too " * 9, max_length=20).input_ids) == 20


def test_special_tokens_are_hidden_and_text_cannot_contain_them() -> None:
    tokenizer = xlnet_tokenizer()
    assert not {1, 2, 3, 4, 5, 6, 7} & {*tokenizer.encode("<s> </s> <cls> <sep> <pad> <mask> <eod>")}
    assert tokenizer.encode("a <mask>.") != tokenizer.encode("a [MASK].", parse_mask=True)
    assert tokenizer.mask_id in tokenizer.encode("a [MASK].", parse_mask=True)
    assert tokenizer.decode(tokenizer("she was 20.").input_ids) == "she was 20."
    assert np.flatnonzero(tokenizer.is_special).tolist() == list(range(9))


def test_a_folder_is_read_and_saved(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(pieces_model())
    tokenizer = Tokenizer.from_folder(tmp_path)
    tokenizer.save(tmp_path / "again")
    fields = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert (fields["tokenizer_class"], fields["bos_token"], fields["cls_token"]) == ("XLNetTokenizer", "<s>", "<cls>")
    again = Tokenizer.from_folder(tmp_path / "again")
    assert again.fingerprint == tokenizer.fingerprint
    assert (tmp_path / "again" / "spiece.model").read_bytes() == pieces_model()
    (tmp_path / "tokenizer_config.json").write_text('{"keep_accents": true, "remove_space": false}')
    kept = Tokenizer.from_folder(tmp_path)
    assert kept.fingerprint != tokenizer.fingerprint
    offsets = kept("é  e\u0301x", return_offsets=True).offsets or []
    assert all(start <= end <= 6 for start, end in (offset for offset in offsets if offset))


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"give the spiece\.model of an XLNet"):
        XLNetPieces.from_folder(tmp_path)
    (tmp_path / "spiece.model").write_bytes(pieces_model()[:500])
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "spiece.model").write_bytes(pieces_model())
    (tmp_path / "tokenizer_config.json").write_text('{"remove_space": 1}')
    with pytest.raises(UserError, match="remove_space is 1; it must be true or false"):
        Tokenizer.from_folder(tmp_path)


def test_a_model_without_xlnets_pieces_is_refused(spm_model: bytes) -> None:
    with pytest.raises(UserError, match="the file has none of them; XLNet needs the pieces <pad>, <cls>, <sep>"):
        XLNetPieces(spm_model, source="the file")


@pytest.mark.torch
@pytest.mark.parametrize("plain", [False, True])
def test_ids_are_those_of_transformers(tmp_path: Path, plain: bool) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "spiece.model").write_bytes(pieces_model(plain=plain))
    peer = transformers.XLNetTokenizer.from_pretrained(tmp_path)
    peer.save_pretrained(tmp_path / "json")
    ours = Tokenizer.from_folder(tmp_path / "json")
    texts = [text for text in TEXTS if not {"<unk>", "<cls>"} & {*text.split()}]  # plain characters here
    want = [peer(text, "he was", return_token_type_ids=True) for text in texts]
    assert [ours(text, "he was").input_ids for text in texts] == [row.input_ids for row in want]
    assert [ours(text, "he was").token_type_ids for text in texts] == [row.token_type_ids for row in want]
    if plain:  # of the others transformers 5 makes special tokens, which split a text
        from_pieces = Tokenizer.from_folder(tmp_path)
        usual = [text for text in texts if "<" not in text and text not in ODD]
        assert [from_pieces(text).input_ids for text in usual] == [peer(text).input_ids for text in usual]
    rows = ["she was very happy", "she"]
    padded, expected = ours(rows, padding=True), peer(rows, padding=True)
    np.testing.assert_array_equal(padded.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(padded.attention_mask, expected["attention_mask"])


@pytest.mark.torch
def test_old_files_without_the_kind_of_model_are_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "spiece.model").write_bytes(pieces_model())
    transformers.XLNetTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "json")
    path = tmp_path / "json" / "tokenizer.json"
    ids = Tokenizer.from_folder(tmp_path / "json").encode(TEXTS[2])
    content = json.loads(path.read_text())
    del content["model"]["type"]
    path.write_text(json.dumps(content))
    assert Tokenizer.from_folder(tmp_path / "json").encode(TEXTS[2]) == ids
