"""Added tokens: the ids of transformers, from every file that holds them, with offsets, decoding and saving."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from deberta_jax.errors import UserError
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ...support.tokenizer_texts import real_folder
from .conftest import SPM_PIECES

pytest.importorskip("tokenizers", reason="added tokens need the package tokenizers")

N = SPM_PIECES + 1  # the id after [MASK]
TEXTS = [
    "she [E1] was\n\nhappy [ENT]so[E1]they and",
    "[E1]",
    " [E1] ",
    "[E1] [E1][E1]  [ENT] [ENT][E1]",
    "  two  men [E1]  and\t[E1]\tnot",
    "a <l> he <r> she word words sword word. <lr> the  <lr>  man",
    "he NewTok newtok NEWTOK NewToken x",
    "she\n",
    "",
    " ",
]
TOKENS: list[dict[str, Any]] = [
    {"content": "\n"},
    {"content": "[ENT]", "special": True},
    {"content": "[E1]", "normalized": True},
    {"content": "NewTok", "normalized": True},
    {"content": "<l>", "lstrip": True},
    {"content": "<r>", "rstrip": True},
    {"content": "<lr>", "lstrip": True, "rstrip": True, "normalized": True},
    {"content": "sword", "single_word": True},
]


def save_with(tokenizer: Tokenizer, folder: Path, tokens: list[dict[str, Any]]) -> None:
    """Saves a tokenizer, and the tokens in the way of transformers since 4.34."""
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), False)
    special = ["pad", "cls", "sep", "unk", "mask"]
    ids = {getattr(tokenizer, f"{name}_id") for name in special}
    decoder = {i: flags | {"content": tokenizer.pieces([i])[0], "special": True} for i in sorted(ids)}
    decoder |= {tokenizer.vocab_size + i: flags | token for i, token in enumerate(tokens)}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": decoder}))


def write(folder: Path, **files: object) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(params=["spm", "bpe", "roberta", "bert"])
def base(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.mark.torch
def test_ids_are_those_of_transformers(base, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_with(base, tmp_path / "one", TOKENS)
    ours = Tokenizer.from_folder(tmp_path / "one")
    ours.save(tmp_path / "two")
    for folder in (tmp_path / "one", tmp_path / "two"):
        ours, peer = Tokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(str(folder))
        assert len(peer) == ours.vocab_size
        for text in TEXTS:
            expected = peer(text, add_special_tokens=False).input_ids
            assert ours.encode(text) == expected, text


def test_round_trip_offsets_and_batches(base, tmp_path):
    save_with(base, tmp_path / "one", TOKENS)
    tokenizer = Tokenizer.from_folder(tmp_path / "one")
    tokenizer.save(tmp_path / "two")
    first = base.vocab_size
    line_break, entity, marker = range(first, first + 3)
    assert tokenizer.vocab_size == first + len(TOKENS)
    again = Tokenizer.from_folder(tmp_path / "two")
    assert tokenizer.fingerprint == again.fingerprint != base.fingerprint
    assert again.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert pickle.loads(pickle.dumps(tokenizer)).encode_batch(TEXTS) == again.encode_batch(TEXTS)
    encoding = tokenizer("she\nwas", "not [ENT] [E1].", return_offsets=True)
    found = {
        token: ("she\nwas", "not [ENT] [E1].")[kind][slice(*offset)]
        for token, kind, offset in zip(encoding.input_ids, encoding.token_type_ids, encoding.offsets or (), strict=True)
        if offset
    }
    assert [found[i] for i in (line_break, entity, marker)] == ["\n", "[ENT]", "[E1]"]
    assert tokenizer.pieces([line_break, entity, marker]) == ["\n", "[ENT]", "[E1]"]
    assert tokenizer.starts_word[[line_break, entity, marker]].all()
    assert tokenizer.is_special[[line_break, entity, marker]].tolist() == [False, True, False]
    ids = tokenizer.encode("she [E1] was\nnot [ENT] he")
    assert tokenizer.decode(ids, skip_special=False) == "she [E1] was\nnot [ENT] he"
    assert "[ENT]" not in tokenizer.decode(ids)
    assert tokenizer.mask_id in tokenizer.encode("[E1] [MASK] [E1]", parse_mask=True)


def test_special_tokens_stay_plain_characters(base, tmp_path):
    save_with(base, tmp_path, TOKENS[:1])
    tokenizer = Tokenizer.from_folder(tmp_path)
    for text in ("[CLS] [MASK] [SEP]", "<s><mask></s>"):
        assert not tokenizer.is_special[[i for i in tokenizer.encode(text) if i != tokenizer.unk_id]].any()


def test_tokens_of_older_files(spm, tmp_path):
    spm.save(tmp_path)
    write(tmp_path, added_tokens={"[MASK]": SPM_PIECES, "[ENT]": N, "[E1]": N + 1})
    write(tmp_path, special_tokens_map={"additional_special_tokens": ["[ENT]", {"content": "[E2]"}, "[CLS]"]})
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("[ENT][E1][E2]") == [N, N + 1, N + 2]
    assert tokenizer.mask_id == SPM_PIECES
    assert tokenizer.is_special[N : N + 3].tolist() == [True, False, True]


def test_mask_has_the_declared_id_or_the_next(spm, tmp_path):
    spm.save(tmp_path)
    write(tmp_path, added_tokens={"[E1]": SPM_PIECES, "[MASK]": SPM_PIECES + 4})
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.mask_id, tokenizer.vocab_size) == (SPM_PIECES + 4, SPM_PIECES + 5)
    assert tokenizer.encode("[E1]") == [SPM_PIECES]
    assert tokenizer.decode([SPM_PIECES + 2, tokenizer.mask_id], skip_special=False) == " [MASK]".strip()
    write(tmp_path, added_tokens={"[E1]": SPM_PIECES})
    assert Tokenizer.from_folder(tmp_path).mask_id == SPM_PIECES + 1


def test_special_tokens_alone_change_nothing(base, tmp_path):
    save_with(base, tmp_path, [])
    assert Tokenizer.from_folder(tmp_path).fingerprint == base.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens", {"[E1]": 7}, r"'\[E1\]' the id 7, which is the piece"),
        ("added_tokens", {"[CLS]": N}, r"'\[CLS\]' the ids 1 and"),
        ("added_tokens", {"[E1]": 10**9}, "far beyond"),
        ("added_tokens", {"[E1]": "x"}, "damaged"),
        ("added_tokens", ["[E1]"], "not a JSON object"),
        ("special_tokens_map", 3, "not a JSON object"),
        ("special_tokens_map", {"cls_token": "<s>"}, None),
        ("tokenizer_config", {"added_tokens_decoder": {"x": {"content": "a"}}}, "damaged: an added token is"),
        ("tokenizer_config", {"added_tokens_decoder": {"2001": {"content": "a", "lstrip": "no"}}}, "damaged"),
        ("tokenizer_config", {"added_tokens_decoder": 3}, "damaged"),
        ("tokenizer_config", {"cls_token": "<s>"}, r"cls_token '<s>' .* but '\[CLS\]' in its vocabulary"),
    ],
)
def test_files_that_contradict_the_vocabulary_are_refused(spm, tmp_path, name, content, message):
    spm.save(tmp_path)
    write(tmp_path, **{name: content})
    if message is None:  # tokenizer_config.json has [CLS] and wins, as in transformers
        assert Tokenizer.from_folder(tmp_path).cls_id == 1
        return
    with pytest.raises(UserError, match=message) as error:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_published_deberta_v3_equals_sentencepiece_on_real_text():
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = real_folder("deberta-v3")
    lines = (real_folder("glue") / "cola/raw/in_domain_dev.tsv").read_text().splitlines()
    lines += (real_folder("glue") / "mrpc/msr_paraphrase_test.txt").read_text(encoding="utf-8-sig").splitlines()[:500]
    articles = json.loads((real_folder("xquad") / "xquad.en.json").read_text())["data"]
    lines += [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]
    tokenizer = Tokenizer.from_folder(folder)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    assert tokenizer.encode_batch(lines) == plain.encode(lines)
    assert (tokenizer.mask_id, tokenizer.vocab_size) == (128_000, 128_001)
    assert (folder / "spm.model").stat().st_size == 2_464_616


@pytest.mark.torch
def test_published_deberta_v3_equals_transformers_on_real_text():
    transformers = pytest.importorskip("transformers")
    folder = real_folder("deberta-v3")
    lines = (real_folder("glue") / "rte/dev.tsv").read_text().splitlines()
    lines = [line for line in lines if line.isascii()]
    peer = transformers.AutoTokenizer.from_pretrained(str(folder))
    assert Tokenizer.from_folder(folder).encode_batch(lines) == peer(lines, add_special_tokens=False).input_ids
