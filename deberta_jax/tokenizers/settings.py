"""Refuses tokenizers that this library does not have, and settings that would change the ids."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .added_token_files import read_object, special_names
from .vocabulary import CONFIG_FILE, SPECIAL_FIELDS, Vocabulary

JSON_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")  # those that transformers reads from tokenizer.json
CLASSES = {
    "spm": ("DebertaV2Tokenizer", "DebertaV2TokenizerFast"),
    "bpe": ("DebertaTokenizer", "DebertaTokenizerFast", "RobertaTokenizer", "RobertaTokenizerFast"),
    "wordpiece": ("BertTokenizer", "BertTokenizerFast", "ElectraTokenizer", "ElectraTokenizerFast"),
    "xlnet": ("XLNetTokenizer", "XLNetTokenizerFast"),
}

# Setting -> the values that change nothing. Others change ids in a way that this library does not implement.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "never_split": (None, []),
    "do_basic_tokenize": (True,),
    "clean_text": (True,),
    "wordpieces_prefix": ("##",),
    "word_tokenizer_type": (None, "basic"),
    "subword_tokenizer_type": (None, "wordpiece"),
    "do_word_tokenize": (True,),
    "do_subword_tokenize": (True,),
    "sp_model_kwargs": (None, {}),
    "split_special_tokens": (False,),
    "bpe_dropout": (None, 0, 0.0),
    "dropout": (None, 0, 0.0),
}


def tokenizer_class(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Returns the class that a folder names in tokenizer_config.json or, as old ones do, in config.json.

    Raises:
      UserError: It is none of `CLASSES` and `JSON_CLASSES`, or the tokenizer is code in the repository.
    """
    name = config.get("tokenizer_class")
    source = folder / CONFIG_FILE
    if name is None:
        source = folder / "config.json"
        name = read_object(source).get("tokenizer_class")
    allowed = [*(name for names in CLASSES.values() for name in names), *JSON_CLASSES]
    if name is not None and name not in allowed:
        raise UserError(
            f"{source} has tokenizer_class {name!r}, which this library does not implement; it reads "
            f"{', '.join(allowed)}"
        )
    if "AutoTokenizer" in str(config.get("auto_map")):
        raise UserError(
            f"{folder / CONFIG_FILE} has an auto_map for AutoTokenizer: its tokenizer is code in the repository, which "
            f"this library does not run; it reads {', '.join(allowed)}"
        )
    return name


def check_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError if tokenizer_config.json has a setting that changes ids and that this library does not have."""
    for name, allowed in _ALLOWED.items():
        if name in config and config[name] not in allowed:
            raise UserError(
                f"{folder / CONFIG_FILE} has {name} {config[name]!r}, which changes the ids and is not implemented; "
                f"only {' or '.join(repr(value) for value in allowed)} is supported"
            )
    if config.get("tokenizer_class") in CLASSES["spm"] and config.get("add_prefix_space", True) is not True:
        raise UserError(
            f"{folder / CONFIG_FILE} has add_prefix_space {config['add_prefix_space']!r}; SentencePiece models of this "
            "library begin every text with a space, so only true is supported"
        )


def check_special_names(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Raises UserError if the folder calls [CLS] or another special token by a name that is not the vocabulary's."""
    for field, content in special_names(folder, config).items():
        if field not in SPECIAL_FIELDS:
            continue
        piece = vocabulary.piece(vocabulary.special_ids[SPECIAL_FIELDS[field]])
        if content != piece:
            raise UserError(
                f"{folder} has {field} {content!r} in its {CONFIG_FILE} or special_tokens_map.json, but {piece!r} in "
                "its vocabulary; copy all files of the tokenizer from the same folder"
            )
