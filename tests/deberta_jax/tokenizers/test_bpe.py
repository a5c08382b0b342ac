"""Byte-level BPE on DeBERTa v1's files: GPT-2's splits, Microsoft's ids, and files from which nothing is ever run."""

import io
import itertools
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.tokenizers.bpe import ByteLevelBPE
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...support.tokenizer_texts import SPECIAL, TRICKY, corpus, longest_first, official_part_of_whole_word
from .conftest import BPE_PIECES

tokenizers = pytest.importorskip("tokenizers", reason="DeBERTa v1's tokenizer needs the package tokenizers")

TEXTS = [*TRICKY, " a", "it's  WE'LL don't\n\n  x", "7 dollars, $7.50!", "naïve Ünïcode"]
MAGIC, PROTOCOL, MACHINE = 0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}


@pytest.fixture
def tokenizer(bpe: Tokenizer) -> Tokenizer:
    return bpe


@pytest.fixture(scope="module")
def state(bpe_files) -> dict[str, object]:
    """The content of a bpe_encoder.bin: `encoder` has GPT-2's ids; the order of `dict_map` gives the model's."""
    ids, merges = bpe_files
    pieces = [piece for piece in ids if piece not in SPECIAL and not piece.startswith("madeup")]
    encoder = {piece: i for i, piece in enumerate(sorted(pieces))}
    words = [(str(encoder[piece]), 10_000 - ids[piece]) for piece in sorted(pieces, key=ids.__getitem__)]
    return {
        "encoder": encoder,
        "dict_map": [*words, ("madeupword0000", 0), ("madeupword0001", 0)],
        "vocab": merges,
    }


def zipped(program: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("bpe_encoder/data.pkl", program)
        archive.writestr("bpe_encoder/version", "3\n")
    return content.getvalue()


def before_zip(state: object) -> bytes:
    return b"".join(pickle.dumps(part, protocol=2) for part in (MAGIC, PROTOCOL, MACHINE, state, []))


# --- ids --------------------------------------------------------------------------------------------------------------


def test_special_tokens_have_the_ids_of_the_released_models(tokenizer):
    ids = [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id]
    assert ids == [0, 1, 2, 3, BPE_PIECES + 2]
    assert tokenizer.vocab_size == BPE_PIECES + 3
    assert tokenizer.pieces(ids) == SPECIAL
    assert np.flatnonzero(tokenizer.is_special).tolist() == ids
    with pytest.raises(ValueError, match=f"ids of this tokenizer are 0 to {BPE_PIECES + 2}"):
        tokenizer.pieces([BPE_PIECES + 3])


def test_mask_follows_the_last_id_if_the_file_has_none(bpe_files):
    ids = {
        piece: i for piece, i in bpe_files[0].items() if piece != "[MASK]" and i != BPE_PIECES
    }  # one id has no piece
    tokenizer = Tokenizer(ByteLevelBPE(ids, bpe_files[1], source="files"))
    assert (tokenizer.mask_id, tokenizer.vocab_size) == (BPE_PIECES + 2, BPE_PIECES + 3)
    assert tokenizer.pieces([BPE_PIECES, tokenizer.mask_id]) == ["", "[MASK]"]
    assert tokenizer.starts_word.shape == (BPE_PIECES + 3,)


def gpt2_encode(text: str, ids: dict[str, int], merges: list[tuple[str, str]]) -> list[int]:
    """Restates `Encoder.encode` of the official gpt2_bpe_utils.py."""
    regex = pytest.importorskip("regex", reason="GPT-2's own pattern needs the package regex")
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    rank = {merge: n for n, merge in enumerate(merges)}
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    encoded = []
    for word in regex.findall(pattern, text):
        parts = [letter[byte] for byte in word.encode()]
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: rank.get(pair, len(rank)))
            if best not in rank:
                break
            joined, i = [], 0
            while i < len(parts):
                both = tuple(parts[i : i + 2]) == best
                joined.append("".join(best) if both else parts[i])
                i += 2 if both else 1
            parts = joined
        encoded += [ids[part] for part in parts]
    return encoded


def test_encode_is_the_official_one(tokenizer, bpe_files):
    texts = [*TEXTS, *corpus(20_000)]
    expected = [gpt2_encode(text, *bpe_files) for text in texts]
    assert [tokenizer.encode(text) for text in texts] == expected
    assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.encode_batch(iter(texts)) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_kept_byte_for_byte_and_never_gives_special_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not tokenizer.is_special[ids].any()
    assert tokenizer.decode(ids) == text


def test_bytes_without_a_piece_are_unknown(bpe_files):
    ids = {piece: i for piece, i in bpe_files[0].items() if piece != "ð"}
    merges = [merge for merge in bpe_files[1] if "ð" not in "".join(merge)]
    tokenizer = Tokenizer(ByteLevelBPE(ids, merges, source="files"))
    assert tokenizer.pieces(tokenizer.encode("😀"))[0] == "[UNK]"


@pytest.mark.parametrize("masked", ["It is very [MASK].", "[MASK] was happy", "She was[MASK] happy, [MASK] [MASK]"])
def test_a_mask_replaces_a_piece_and_the_space_before_it(tokenizer, masked):
    [the] = tokenizer.encode(" the")
    expected = tokenizer.encode(masked.replace(" [MASK]", "[MASK]").replace("[MASK]", " the"))
    ids = tokenizer.encode(masked, parse_mask=True)
    assert [the if i == tokenizer.mask_id else i for i in ids] == expected
    assert tokenizer.mask_id in ids


def test_pairs_have_one_separator_and_are_truncated_longest_first(tokenizer):
    a, b = tokenizer.encode("She was happy."), tokenizer.encode("He")
    pair = tokenizer("She was happy.", "He")
    assert pair.input_ids == [1, *a, 2, *b, 2]
    assert pair.token_type_ids == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    for max_length in range(3, len(pair.input_ids)):
        short_a, short_b = longest_first(a, b, max_length - 3)
        assert tokenizer("She was happy.", "He", max_length=max_length).input_ids == [1, *short_a, 2, *short_b, 2]
    text = tokenizer.decode([*pair.input_ids, tokenizer.mask_id], skip_special=False)
    assert text == "[CLS]She was happy. [SEP]He [SEP] [MASK]"
    assert tokenizer.decode(pair.input_ids) == "She was happy.He"


# --- words and offsets ------------------------------------------------------------------------------------------------


def test_starts_word_is_the_official_rule(tokenizer):
    byte_level = tokenizers.decoders.ByteLevel()
    texts = [byte_level.decode([piece]) for piece in tokenizer.pieces(range(tokenizer.vocab_size))]
    expected = [
        special or not official_part_of_whole_word(text.replace(" ", "▁", 1) if text.startswith(" ") else text)
        for text, special in zip(texts, tokenizer.is_special, strict=True)
    ]
    assert tokenizer.starts_word.tolist() == expected
    the, comma, line, ing = (tokenizer.encode(text)[0] for text in (" the", ",", "\n", "ing"))
    assert tokenizer.starts_word[[the, comma, line, ing]].tolist() == [True, True, True, False]


@pytest.mark.parametrize("text", TEXTS)
def test_offsets_give_every_piece_its_characters(tokenizer, text):
    encoding = tokenizer(text, return_offsets=True)
    assert encoding.input_ids == tokenizer(text).input_ids
    assert (encoding.offsets[0], encoding.offsets[-1]) == (None, None)
    covered = set()
    for token, (start, end) in zip(encoding.input_ids[1:-1], encoding.offsets[1:-1], strict=True):
        piece, source = tokenizer.decode([token]), text[start:end]
        assert source == (piece.strip() if "\ufffd" not in piece else text[end - 1].strip())
        assert source == source.strip()
        covered |= set(range(start, end))
    assert covered >= {i for i, character in enumerate(text) if not character.isspace()}


def test_offsets_of_spaces_bytes_and_masks(tokenizer):
    text = "a  😀 [MASK]b"
    encoding = tokenizer(text, return_offsets=True, parse_mask=True)
    assert encoding.offsets == [None, (0, 1), (2, 2), (3, 3), *[(3, 4)] * 4, (5, 11), (11, 12), None]


# --- files ------------------------------------------------------------------------------------------------------------


def test_all_forms_of_the_files_give_the_same_vocabulary(tokenizer, bpe_files, state, tmp_path):
    ids, merges = bpe_files
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "vocab.json").write_text(json.dumps(dict(sorted(ids.items()))))  # escaped, in another order
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges), ""]
    (tmp_path / "json" / "merges.txt").write_bytes("\r\n".join(lines).encode())
    for name, content in {
        "zip": zipped(pickle.dumps(state, protocol=2)),
        "old": before_zip(state),
        "plain": pickle.dumps(state),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "bpe_encoder.bin").write_bytes(content)
    for name in ("json", "zip", "old", "plain"):
        again = Tokenizer.from_folder(tmp_path / name)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
        assert again.mask_id == tokenizer.mask_id


def test_save_pickle_and_read_back(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    assert json.loads((tmp_path / "vocab.json").read_bytes())["[MASK]"] == BPE_PIECES + 2
    for again in (Tokenizer.from_folder(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        (b"", b"", r"vocab\.json is not a JSON object of pieces and ids \(0 bytes\)"),
        (b"[1, 2]", b"", "is not a JSON object of pieces and ids"),
        (b'{"a": "b"}', b"", "is not a JSON object of pieces and ids"),
        (b'{"a": true}', b"", "is not a JSON object of pieces and ids"),
        (b"[" * 100_000, b"", "is not a JSON object of pieces and ids"),
        (b"version https://git-lfs.github.com/spec/v1", b"", "Git LFS pointer"),
        (b'{"<s>": 0, "</s>": 2}', b"", "has none of them; DeBERTa v1 needs"),
        (b'{"[PAD]": 3, "[CLS]": 1, "[SEP]": 2, "[UNK]": 0}', b"", r"has \[PAD\] 3, \[CLS\] 1, \[SEP\] 2, \[UNK\] 0;"),
        (b'{"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 3}', b"", "ids of its 5 pieces are not 0 to 4"),
        (b'{"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": -4}', b"", "ids of its 5 pieces are not 0 to 4"),
        (b'{"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 99999999999}', b"", "ids of its 4 pieces are not 0 to 3"),
        (None, b"#version: 0.2\nt h e", r"merges\.txt is damaged: line 2 is 't h e', not two pieces"),
        (rb'{"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "\ud800": 4}', b"", "not valid Unicode"),
        (None, b"\xff", r"merges\.txt is damaged: it is not UTF-8"),
        (None, b"t \xe6\x97\xa5", "it merges 't' and '日', but '日' has no id"),
    ],
)
def test_damaged_files_are_named(tokenizer, tmp_path, vocab, merges, message):
    tokenizer.save(tmp_path)
    if vocab is not None:
        (tmp_path / "vocab.json").write_bytes(vocab)
    (tmp_path / "merges.txt").write_bytes(merges)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)


class Hostile:
    """An object that creates a folder if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "old", "plain"])
def test_nothing_in_bpe_encoder_is_run(state, tmp_path, form):
    hostile = state | {"dict_map": Hostile(tmp_path / "mark")}
    program = pickle.dumps(hostile, protocol=2)
    content = {"zip": zipped(program), "old": before_zip(hostile), "plain": program}[form]
    (tmp_path / "bpe_encoder.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"asks for \w+\.mkdir, which is not allowed; nothing in it was run"):
        Tokenizer.from_folder(tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or not a bpe_encoder.bin"),
        (b"PK\x03\x04", "damaged or not a bpe_encoder.bin: BadZipFile"),
        (pickle.dumps([1]), "damaged or not a bpe_encoder.bin: TypeError"),
        (pickle.dumps({"encoder": {}}), "KeyError: 'dict_map'"),
        (pickle.dumps({"encoder": [], "dict_map": [], "vocab": []}), "encoder is not a dict"),
        (b"\x80\x02]r\xff\xff\xff\xff.", "numbers more values than it has bytes"),
        (zipped(bytes(65 * 2**20)), "not an archive of PyTorch"),
    ],
)
def test_other_content_in_bpe_encoder_is_refused(tmp_path, content, message):
    (tmp_path / "bpe_encoder.bin").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["encoder", "dict_map", "vocab"])
def test_nested_tuples_in_bpe_encoder_are_refused_without_hashing_them(state, tmp_path, key):
    nested = ()
    for _ in range(60):  # 2**60 elements
        nested = (nested, nested)
    content = {"encoder": {"a": nested}, "dict_map": [(nested, 0)], "vocab": [(nested, "a")]}[key]
    (tmp_path / "bpe_encoder.bin").write_bytes(pickle.dumps(state | {key: content}))
    with pytest.raises(UserError, match=r"encoder is not a dict|a tuple in place of a string"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("form", ["zip", "old"])
def test_cut_or_flipped_bpe_encoder_is_refused_or_a_vocabulary(tokenizer, state, tmp_path, form):
    whole = zipped(pickle.dumps(state, protocol=2)) if form == "zip" else before_zip(state)
    end = len(whole) - (0 if form == "zip" else len(pickle.dumps([], protocol=2)))  # the list of storages is not read
    random = np.random.default_rng(0)
    path = tmp_path / "bpe_encoder.bin"
    for cut in random.integers(0, end, 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="damaged or not a"):
            Tokenizer.from_folder(tmp_path)
    refused: list[str] = []
    for place in random.integers(0, end, 30):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random.integers(8)
        path.write_bytes(flipped)
        try:
            assert Tokenizer.from_folder(tmp_path).encode("She was happy.")
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 5
    assert all(line.startswith(f"{path} ") and "\n" not in line for line in refused)


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.torch
def test_transformers_gives_the_same_ids_and_offsets(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert type(peer).__name__.startswith("DebertaTokenizer")
    assert peer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2, 3, BPE_PIECES + 2]
    for text in [*TEXTS, *corpus(20_000)]:
        if "[" in text:  # transformers reads "[SEP]" in a text as the separator
            continue
        batch = peer(text, add_special_tokens=False, return_offsets_mapping=True)
        encoding = tokenizer(text, return_offsets=True)
        assert encoding.input_ids[1:-1] == batch.input_ids
        words = [text[start:end].lstrip() for start, end in batch.offset_mapping]
        ends = [end for _, end in batch.offset_mapping]  # transformers includes the white space
        trimmed = [(end - len(w), end - len(w) + len(w.rstrip())) for w, end in zip(words, ends, strict=True)]
        assert encoding.offsets[1:-1] == trimmed


@pytest.mark.torch
@pytest.mark.parametrize("zip_format", [True, False])
def test_bpe_encoder_as_torch_writes_it(tokenizer, state, tmp_path, zip_format):
    torch = pytest.importorskip("torch")
    torch.save(state, tmp_path / "bpe_encoder.bin", _use_new_zipfile_serialization=zip_format)
    assert Tokenizer.from_folder(tmp_path).fingerprint == tokenizer.fingerprint
