"""Tokenizers of other classes and settings that are not implemented are refused by name."""

import json

import pytest

from deberta_jax.errors import UserError
from deberta_jax.tokenizers.tokenizer import Tokenizer


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("name", ["BertJapaneseTokenizer", "XLMRobertaTokenizerFast", "LlamaTokenizer", ["a"]])
def test_other_classes_are_refused_by_name(bert, tmp_path, file, name):
    bert.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / file).write_text(json.dumps({"tokenizer_class": name}))
    with pytest.raises(
        UserError, match=r"tokenizer_class .*, which this library does not implement; it reads "
    ) as error:
        Tokenizer.from_folder(tmp_path)
    assert str(name) in str(error.value)
    assert "BertTokenizer" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("spm", ["DebertaV2Tokenizer", "DebertaV2TokenizerFast"]),
        ("bpe", ["DebertaTokenizer", "DebertaTokenizerFast"]),
        ("roberta", ["RobertaTokenizer", "RobertaTokenizerFast"]),
        ("bert", ["BertTokenizer", "BertTokenizerFast", "ElectraTokenizer", "ElectraTokenizerFast"]),
    ],
)
def test_our_classes_are_read(request, tmp_path, kind, names):
    tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    for name in [*names, "PreTrainedTokenizerFast", "TokenizersBackend", None]:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        assert Tokenizer.from_folder(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("bert", {"tokenizer_class": "DebertaV2Tokenizer"}, r"'DebertaV2Tokenizer' but the files of WordPiece's vocab"),
        ("spm", {"tokenizer_class": "BertTokenizer"}, r"but the files of spm\.model"),
        ("bert", {"never_split": ["日本"]}, "never_split"),
        ("bert", {"do_basic_tokenize": False}, "do_basic_tokenize False, which changes the ids"),
        ("bert", {"word_tokenizer_type": "mecab"}, "word_tokenizer_type 'mecab'"),
        ("bert", {"subword_tokenizer_type": "character"}, "subword_tokenizer_type"),
        ("bert", {"wordpieces_prefix": "@@"}, "wordpieces_prefix"),
        ("bert", {"clean_text": False}, "clean_text"),
        ("bert", {"auto_map": {"AutoTokenizer": ["tok.Mine", None]}}, "code in the repository"),
        ("spm", {"sp_model_kwargs": {"enable_sampling": True}}, "sp_model_kwargs"),
        ("spm", {"tokenizer_class": "DebertaV2Tokenizer", "add_prefix_space": False}, "add_prefix_space False"),
        ("spm", {"do_lower_case": "yes"}, "do_lower_case is 'yes'; it must be true or false"),
        ("spm", {"split_by_punct": None}, "split_by_punct is None"),
        ("bpe", {"add_prefix_space": 1}, "add_prefix_space is 1"),
    ],
)
def test_settings_that_change_ids_are_refused(request, tmp_path, kind, fields, message):
    request.getfixturevalue(kind).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message) as error:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields", [{"never_split": None, "do_basic_tokenize": True}, {"clean_text": True}])
def test_settings_that_change_nothing_are_read(bert, tmp_path, fields):
    bert.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    assert Tokenizer.from_folder(tmp_path).fingerprint == bert.fingerprint
