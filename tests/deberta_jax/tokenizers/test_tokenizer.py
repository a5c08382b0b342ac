"""The tokenizer on SentencePiece: its very ids, special tokens that text cannot forge, training that drops nothing."""

import dataclasses
import hashlib
import json
import pickle

import numpy as np
import pytest
import sentencepiece

from deberta_jax.tokenizers import spm
from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.train.data.text import embedded_corpus, read_documents
from deberta_jax.train.data.train_tokenizer import TokenizerConfig, main, train_tokenizer

from ...support.tokenizer_texts import SPECIAL, TRICKY, corpus, custom_model, longest_first, official_part_of_whole_word

PIECES = 2000


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_tokenizer(corpus(300_000), vocab_size=PIECES)


@pytest.fixture(scope="module")
def tokenizer(model) -> Tokenizer:
    return Tokenizer(model)


DEBERTA_PIECES = {
    "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3,
    "pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]",
}  # fmt: skip


# --- ids --------------------------------------------------------------------------------------------------------------


def test_special_tokens_have_the_ids_of_the_released_models(tokenizer):
    ids = [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id]
    assert ids == [0, 1, 2, 3, PIECES]
    assert tokenizer.vocab_size == PIECES + 1
    assert tokenizer.pieces(ids) == SPECIAL
    assert np.flatnonzero(tokenizer.is_special).tolist() == ids
    assert tokenizer.is_special.shape == (PIECES + 1,)


def test_mask_piece_inside_the_file_keeps_its_id():
    tokenizer = Tokenizer(custom_model(**DEBERTA_PIECES, control_symbols=["[MASK]"]))
    assert (tokenizer.mask_id, tokenizer.vocab_size) == (4, 300)
    assert tokenizer.pieces([4]) == ["[MASK]"]
    assert tokenizer.is_special[4]
    assert 4 not in tokenizer.encode("[MASK]")
    assert 4 in tokenizer.encode("[MASK]", parse_mask=True)


def test_cls_and_sep_are_taken_from_where_the_file_has_them():
    tokenizer = Tokenizer(custom_model(**DEBERTA_PIECES | {"bos_id": 2, "eos_id": 3, "unk_id": 1}))
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id) == (0, 1, 2, 3)
    assert tokenizer("").input_ids == [2, 3]


@pytest.mark.parametrize(
    ("changes", "present"),
    [
        ({}, "none of them"),  # <unk> 0, <s> 1, </s> 2
        (DEBERTA_PIECES | {"pad_id": 1, "bos_id": 0}, r"\[PAD\] 1, \[CLS\] 0"),
        (DEBERTA_PIECES | {"eos_piece": "</s>"}, r"\[PAD\] 0, \[CLS\] 1, \[UNK\] 3;"),
        (DEBERTA_PIECES | {"unk_piece": "<unk>", "control_symbols": ["[UNK]"]}, r"\[UNK\] 4;"),
    ],
)
def test_model_without_the_special_pieces_is_refused(changes, present):
    with pytest.raises(ValueError, match=present) as error:
        Tokenizer(custom_model(**changes))
    assert "deberta-jax tokenizer" in str(error.value)


# --- encode -----------------------------------------------------------------------------------------------------------


def test_encode_is_plain_sentencepiece(model, tokenizer):
    plain = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = TRICKY + corpus(20_000)
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


def test_text_glued_to_a_mask_goes_on_with_the_word(tokenizer):
    *sentence, end = tokenizer.encode("It is very good.")
    assert tokenizer.pieces([end]) == ["."]
    masked = tokenizer.encode("It is very [MASK].", parse_mask=True)
    assert masked == [*sentence[:-1], tokenizer.mask_id, end]
    assert tokenizer("It is very [MASK].", parse_mask=True).input_ids == [1, *masked, 2]
    assert tokenizer.decode(masked, skip_special=False) == "It is very [MASK]."


# --- one input, two texts, truncation ---------------------------------------------------------------------------------


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


# --- offsets ----------------------------------------------------------------------------------------------------------


def spans(tokenizer: Tokenizer, text: str) -> list[tuple[str, str | None]]:
    """Each piece with the text that its offsets point to."""
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
    found = []
    for piece, (start, end) in zip(tokenizer.pieces(encoding.input_ids[1:-1]), encoding.offsets[1:-1], strict=True):
        if piece.startswith("▁"):
            found.append((start, end))
        else:
            assert start <= found[-1][1] <= end  # no gap between the pieces of a word
            found[-1] = (found[-1][0], end)
    assert [text[start:end] for start, end in found] == words


@pytest.mark.parametrize(
    ("text", "shared", "pieces"), [("ⅷ", "ⅷ", 4), ("…", "…", 3), ("a 😀", "😀", 4), ("ﷺ", "ﷺ", 15)]
)
def test_pieces_that_share_a_character_each_have_all_of_it(tokenizer, text, shared, pieces):
    assert [span for _, span in spans(tokenizer, text)].count(shared) >= pieces


@pytest.mark.parametrize("text", TRICKY)
def test_offsets_give_every_piece_its_characters(tokenizer, model, text):
    plain = sentencepiece.SentencePieceProcessor(model_proto=model)
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


def test_offsets_of_unknown_characters():
    tokenizer = Tokenizer(custom_model(**DEBERTA_PIECES))
    assert spans(tokenizer, "a 日本 b")[-4:-1] == [("[UNK]", "日本"), ("▁", ""), ("b", "b")]


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


@pytest.mark.parametrize("bad", [-1, -100, PIECES + 1, 128_099])
def test_ids_out_of_range(tokenizer, bad):
    for method in (tokenizer.decode, tokenizer.pieces):
        with pytest.raises(ValueError, match=f"id {bad} has no piece; ids of this tokenizer are 0 to {PIECES}"):
            method([5, bad])


# --- words ------------------------------------------------------------------------------------------------------------


def test_starts_word_is_the_official_rule(tokenizer):
    expected = [not official_part_of_whole_word(piece) for piece in tokenizer.pieces(range(tokenizer.vocab_size))]
    assert tokenizer.starts_word.tolist() == expected
    assert tokenizer.starts_word.dtype == bool


def test_starts_word_of_rare_single_characters():
    marks = ["$", "^", "`", "~", "…", "—", "」", "\u200d", "§", "€", "é", "日", "5"]
    tokenizer = Tokenizer(custom_model(**DEBERTA_PIECES, user_defined_symbols=marks))
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


def test_tables_are_read_only(tokenizer):
    for table in (tokenizer.starts_word, tokenizer.is_special):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = False


# --- files ------------------------------------------------------------------------------------------------------------


def test_save_and_read_back(tokenizer, model, tmp_path):
    folder = tmp_path / "new" / "folder"
    tokenizer.save(folder)
    tokenizer.save(folder)  # over itself
    assert (folder / "spm.model").read_bytes() == model
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


def test_missing_model_lists_what_is_there(tmp_path):
    (tmp_path / "vocab.json").touch()
    (tmp_path / "words.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"holds: vocab\.json, words\.txt"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="not a file"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "short", "text", "pointer"])
def test_damaged_model_is_named(model, tmp_path, capfd, damage):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 2464616\n"
    content = {"empty": b"", "short": model[:-100], "text": b"no model", "pointer": pointer}[damage]
    (tmp_path / "spm.model").write_bytes(content)
    with pytest.raises(ValueError, match=rf"spm\.model is not a SentencePiece model \({len(content)} bytes\)"):
        Tokenizer.from_folder(tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fields", [100, -2])
def test_model_that_ends_between_two_fields_is_damaged(fields):
    """SentencePiece itself loads these, and forgets the normalization."""
    model = custom_model(**DEBERTA_PIECES)
    ends, at = [], 0
    while at < len(model):
        length, at = model[at + 1], at + 2
        shift = 7
        while length >> shift:
            length = length - (1 << shift) + (model[at] << shift)
            at, shift = at + 1, shift + 7
        at += length
        ends.append(at)
    assert ends[-1] == len(model)
    cut = model[: ends[fields]]
    assert sentencepiece.SentencePieceProcessor(model_proto=cut).get_piece_size() > 0
    with pytest.raises(ValueError, match="cut short"):
        Tokenizer(cut)


def test_damaged_released_model_is_known_by_its_size(model, tmp_path, monkeypatch):
    path = tmp_path / "spm.model"
    path.write_bytes(bytes(2_464_616))
    with pytest.raises(ValueError, match=r"spm\.model is damaged: it has the size of DeBERTa v3's \(2464616 bytes\)"):
        Tokenizer.from_folder(tmp_path)
    released = {len(model): ("DeBERTa v9", hashlib.sha256(model).hexdigest())}
    monkeypatch.setattr(spm, "_RELEASED", released)
    path.write_bytes(model)
    assert Tokenizer.from_folder(tmp_path).fingerprint == released[len(model)][1]
    assert b"mother" in model
    path.write_bytes(model.replace(b"mother", b"muther"))  # still a model, of other words
    assert Tokenizer(path.read_bytes()).vocab_size == PIECES + 1
    with pytest.raises(ValueError, match=r"the size of DeBERTa v9's .* but the SHA-256"):
        Tokenizer.from_folder(tmp_path)
    path.write_bytes(custom_model(**DEBERTA_PIECES))  # one's own is as long as none of them
    assert Tokenizer.from_folder(tmp_path).vocab_size == 301


@pytest.mark.torch
def test_transformers_reads_what_save_writes(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert type(theirs).__name__.startswith("DebertaV2Tokenizer")
    assert theirs.convert_tokens_to_ids(SPECIAL) == [0, 1, 2, 3, PIECES]
    assert theirs("She was happy.", "He was not").input_ids == tokenizer("She was happy.", "He was not").input_ids


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_is_deterministic_and_silent(model, capfd):
    assert train_tokenizer(corpus(300_000), vocab_size=PIECES) == model
    sampled = [train_tokenizer(corpus(100_000), vocab_size=500, input_sentence_size=101) for _ in range(2)]
    assert sampled[0] == sampled[1]
    assert capfd.readouterr() == ("", "")


def test_vocabulary_too_high_or_too_low_says_the_limit():
    text = corpus(30_000)
    with pytest.raises(ValueError, match=r"vocab_size 50000 is more than .* at most \d+") as error:
        train_tokenizer(text, vocab_size=50_000)
    assert "trainer_interface" not in str(error.value)
    most = int(str(error.value).split("at most ")[1].split(",")[0])
    assert Tokenizer(train_tokenizer(text, vocab_size=most)).vocab_size == most + 1
    with pytest.raises(ValueError, match=r"vocab_size 270 is too small .* at least \d+") as error:
        train_tokenizer(text, vocab_size=270)
    least = int(str(error.value).split("at least ")[1].split(",")[0])
    assert Tokenizer(train_tokenizer(text, vocab_size=least)).vocab_size == least + 1


@pytest.mark.parametrize("documents", [[], ["", " \n\t"], ["\u200b\ufeff"]])
def test_no_text_to_train_on(documents):
    with pytest.raises(ValueError, match="no text to train on"):
        train_tokenizer(documents, vocab_size=300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 260}, "vocab_size is 260"),
        ({"character_coverage": 0.5}, "character_coverage is 0.5; it must be 0.98 to 1"),
        ({"input_sentence_size": 100}, "input_sentence_size is 100; it must be above 100"),
    ],
)
def test_settings_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(["some text"], **{"vocab_size": 300, **arguments})


def test_one_string_is_not_documents():
    with pytest.raises(ValueError, match="list of strings"):
        train_tokenizer("a whole text", vocab_size=300)


def test_error_while_reading_documents_is_kept():
    def documents():
        yield from corpus(10_000)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        train_tokenizer(documents(), vocab_size=300)


@pytest.mark.parametrize(
    "document",
    [
        "Жук. " * 2000,  # longer than SentencePiece takes; cut at sentence ends
        "Жук " * 2000,  # ... at spaces
        "Жук" * 2000,  # ... anywhere
        "Жук ▅ Жук\n" * 200,  # SentencePiece's reserved character
    ],
)
def test_no_text_is_dropped_in_training(document):
    tokenizer = Tokenizer(train_tokenizer([*corpus(10_000), document], vocab_size=400))
    assert "Ж" in "".join(tokenizer.pieces(tokenizer.encode("Жук")))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(corpus(60_000)))
    return path


def test_command_trains_and_saves(text_file, tmp_path, capsys):
    config = TokenizerConfig(output=tmp_path / "out", text=(text_file,), vocab_size=500)
    main(config)
    tokenizer = Tokenizer.from_folder(tmp_path / "out")
    assert tokenizer.vocab_size == 501
    printed = capsys.readouterr().out
    assert "501 ids" in printed
    assert tokenizer.fingerprint[:12] in printed
    lines = text_file.read_text().split("\n")
    rate = sum(len(line.encode()) for line in lines) / sum(len(tokenizer.encode(line)) for line in lines)
    assert f"{rate:.2f} bytes per token" in printed


def test_command_replaces_another_tokenizer_only_when_told(text_file, tmp_path):
    config = TokenizerConfig(output=tmp_path / "out", text=(text_file,), vocab_size=400)
    main(config)
    before = (tmp_path / "out" / "spm.model").read_bytes()
    main(config)  # the same again
    other = dataclasses.replace(config, vocab_size=450)
    with pytest.raises(ValueError, match="--overwrite"):
        main(other)
    assert (tmp_path / "out" / "spm.model").read_bytes() == before
    main(dataclasses.replace(other, overwrite=True))
    assert Tokenizer.from_folder(tmp_path / "out").vocab_size == 451


def test_command_refuses_a_file_as_folder(text_file):
    with pytest.raises(ValueError, match="is a file; name a folder"):
        main(TokenizerConfig(output=text_file, text=(text_file,)))


def test_command_reads_the_embedded_corpus_by_default(tmp_path, monkeypatch):
    seen = []

    def train(documents, **settings):
        seen.extend(documents)
        return train_tokenizer(seen[:300], **settings)

    monkeypatch.setattr("deberta_jax.train.data.train_tokenizer.train_tokenizer", train)
    main(TokenizerConfig(output=tmp_path / "out", vocab_size=400))
    assert seen == list(read_documents([embedded_corpus()], boundary="line"))
