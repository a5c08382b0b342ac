"""Reads the added tokens of a folder from the files of any version of transformers."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .added_tokens import DECODER, AddedToken
from .vocabulary import CONFIG_FILE, MASK, SENTENCE_FIELDS, SPECIAL_FIELDS, Vocabulary, read_json

ADDED_FILE, MAP_FILE, JSON_FILE = "added_tokens.json", "special_tokens_map.json", "tokenizer.json"

_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")
_LISTS = ("additional_special_tokens", "extra_special_tokens")  # the names in transformers 4 and 5
_NAMED = (*SENTENCE_FIELDS, *SPECIAL_FIELDS)


def read_added_tokens(folder: Path, config: Mapping[str, Any], base: Vocabulary) -> dict[int, AddedToken]:
    """Reads the added tokens of a folder.

    They are in `added_tokens_decoder` of tokenizer_config.json or, in older folders, in added_tokens.json, with the
    special ones listed in special_tokens_map.json; and in tokenizer.json. A special token without an id in any of them
    follows the others, as in transformers.

    Raises:
      UserError: A file is damaged, or two of them disagree about an id.
    """
    special_map = read_object(folder / MAP_FILE)
    listed = list(_special_tokens(config)) + ([] if DECODER in config else list(_special_tokens(special_map)))
    tokens: dict[int, AddedToken] = {}
    if DECODER in config:
        source = folder / CONFIG_FILE
        _merge(tokens, _by_id(config[DECODER], source), source)
    else:
        source = folder / ADDED_FILE
        special = {token.content: token for token in listed}
        legacy = {i: special.get(text) or AddedToken(text, normalized=True) for text, i in _legacy(source)}
        _merge(tokens, legacy, source)
    if (folder / JSON_FILE).is_file():
        _merge(tokens, tokens_of_json(read_object(folder / JSON_FILE), folder / JSON_FILE), folder / JSON_FILE)
    known = {token.content for token in tokens.values()}
    following = max([base.size - 1, *tokens]) + 1
    names = {base.piece(i) for i in base.special_ids.values()}
    mask = base.special_ids[MASK]
    if mask in tokens and base.id_of(base.piece(mask)) is None and base.piece(mask) not in known:
        # Another token has taken the id after the pieces.
        tokens[following] = AddedToken(base.piece(mask), special=True)
        following += 1
    for token in listed:
        if token.content in known | names:
            continue
        known.add(token.content)
        piece = base.id_of(token.content)
        tokens[following if piece is None else piece] = token
        following += piece is None
    return tokens


def special_names(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the special tokens that a folder names, by transformers' names, such as {"cls_token": "[CLS]"}."""
    fields = {**read_object(folder / MAP_FILE), **{name: config[name] for name in _NAMED if config.get(name)}}
    tokens = {name: _token(fields[name], special=True) for name in _NAMED if fields.get(name)}
    return {name: token.content for name, token in tokens.items() if token is not None}


def tokens_of_json(content: Mapping[str, Any], source: Path | str) -> dict[int, AddedToken]:
    """Returns the added tokens in the content of a tokenizer.json, by their ids."""
    entries = content.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
        raise UserError(f"{source} is damaged: added_tokens must be a list of objects with an id; download it again")
    return _by_id({entry["id"]: entry for entry in entries}, source)


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Returns an empty one if there is no such file.

    Raises:
      UserError: The file is something else.
    """
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a JSON object ({path.stat().st_size} bytes); it may be damaged, or a Git LFS pointer in "
            "place of the file; download it again"
        )
    return content


def _special_tokens(fields: Mapping[str, Any]) -> Iterator[AddedToken]:
    """Yields the special tokens that are listed or named in tokenizer_config.json or special_tokens_map.json."""
    values: list[Any] = []
    for name in _LISTS:
        value = fields.get(name) or []
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    for value in [*values, *(fields.get(name) for name in _NAMED)]:
        token = _token(value, special=True)
        if token is not None:
            yield token


def _token(value: Any, *, special: bool) -> AddedToken | None:
    """Returns the token that a string or an object with `content` describes, or None."""
    if isinstance(value, str) and value:
        return AddedToken(value, special=special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str) or not value["content"]:
        return None
    flags = {name: value.get(name, False) for name in _FLAGS} | ({"special": True} if special else {})
    return AddedToken(value["content"], **flags) if all(isinstance(flag, bool) for flag in flags.values()) else None


def _by_id(entries: Any, source: Path | str) -> dict[int, AddedToken]:
    tokens: dict[int, AddedToken] = {}
    items: list[tuple[Any, Any]] = list(entries.items()) if isinstance(entries, dict) else [("", entries)]
    for number, entry in items:
        token = _token(entry, special=False)
        if token is None or not str(number).isascii() or not str(number).isdigit():
            raise UserError(
                f"{source} is damaged: an added token is {json.dumps(entry)[:80]} with the id {str(number)[:20]!r}; it "
                "must be an object with a content and true or false for each flag; download it again"
            )
        tokens[int(number)] = token
    return tokens


def _legacy(path: Path) -> Iterator[tuple[str, int]]:
    for text, i in read_object(path).items():
        if not text or type(i) is not int or i < 0:
            raise UserError(f"{path} is damaged: {text[:80]!r} has the id {str(i)[:20]}; download it again")
        yield text, i


def _merge(tokens: dict[int, AddedToken], more: Mapping[int, AddedToken], source: Path) -> None:
    """Adds tokens, or raises UserError if an id is already another one's."""
    for i, token in more.items():
        known = tokens.setdefault(i, token)
        if known.content != token.content:
            raise UserError(
                f"{source} gives the id {i} to {token.content!r}, but {CONFIG_FILE} or {ADDED_FILE} beside it to "
                f"{known.content!r}; copy all files of the tokenizer from the same folder"
            )
