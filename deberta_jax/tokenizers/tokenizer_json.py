"""A whole tokenizer in one file, `tokenizer.json`, which is all that transformers 5 saves."""

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ..errors import MissingFileError, UserError
from .added_token_files import JSON_FILE, special_names, tokens_of_json
from .added_tokens import AddedTokens, decode_parts, without_spaces
from .vocabulary import (
    CLS,
    MASK,
    PAD,
    ROBERTA_PIECES,
    SEP,
    SPECIAL_FIELDS,
    UNK,
    XLNET_PIECES,
    Offset,
    import_tokenizers,
    is_space_or_punctuation,
    read_tokenizer_config,
)

_DEBERTA = {name: name for name in (PAD, CLS, SEP, UNK, MASK)}
_INSIDE, _WORD_START = "##", "▁"


class TokenizerJson:
    """The tokenizer of the package tokenizers that a model was trained with; a `Vocabulary`.

    Its ids are those of the package, without the truncation, padding and special tokens that the file prescribes.
    [PAD], [CLS], [SEP], [UNK] and [MASK] in a text are plain characters, as in every vocabulary of this library.
    """

    space_id: int | None = None

    def __init__(self, content: bytes, config: Mapping[str, Any], names: Mapping[str, str], *, source: str) -> None:
        """Makes a vocabulary of a file.

        Args:
          content: The content of tokenizer.json.
          config: The content of tokenizer_config.json, which is kept as it is.
          names: The special tokens, by transformers' names, such as {"cls_token": "[CLS]"}. Those that are missing are
            called as in DeBERTa or in RoBERTa.
          source: Name of the file, for error messages.

        Raises:
          MissingPackageError: The package tokenizers is not installed.
          UserError: The file is damaged, is of another kind, or lacks a special token.
        """
        self._content, self._config, self._names = content, dict(config), dict(names)
        description = _parse(content, source)
        tokens = tokens_of_json(description, source)
        processor = description.get("post_processor")
        separators = _count_separators(processor)
        special = _special_pieces(description, tokens, names, source)
        hidden_names = _hide_special_pieces(description, set(special.values()))
        self._tokenizer = _load(description, set(hidden_names.values()), source)
        self._description = description
        self.special_ids: Mapping[str, int] = {
            name: self._tokenizer.token_to_id(hidden_names[piece]) for name, piece in special.items()
        }
        self._pieces = {i: piece for piece, i in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        self._added = {
            self._tokenizer.token_to_id(token.content): token
            for token in tokens.values()
            if token.content not in special.values()
        }
        self._pieces |= {self.special_ids[name]: piece for name, piece in special.items()}
        self._pieces |= {i: token.content for i, token in self._added.items()}
        self._ids = {piece: i for i, piece in self._pieces.items()}
        hidden = {i for i, token in self._added.items() if token.special}
        self.hidden_ids = frozenset(self.special_ids.values()) | hidden
        self.size = max(self._pieces) + 1
        kind = description["model"]["type"]
        is_roberta = special[CLS] == ROBERTA_PIECES[CLS]
        self.pair_separators = separators or (2 if is_roberta else 1)
        self.vocab_type = {"Unigram": "spm", "WordPiece": "wordpiece"}.get(kind, "roberta" if is_roberta else "gpt2")
        self.cls_last = _puts_last(processor, special[CLS])
        self.keeps_spaces = kind == "BPE"
        self.settings: Mapping[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
        identity = json.dumps(self.special_ids, sort_keys=True)
        self.fingerprint = hashlib.sha256(content + identity.encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), source=JSON_FILE), (self._content, self._config, self._names)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads `tokenizer.json`, and the names of the special tokens in the files beside it.

        Raises:
          MissingFileError: The folder has no tokenizer.json.
          MissingPackageError: The package tokenizers is not installed.
          UserError: The file is damaged, is of another kind, or lacks a special token.
        """
        folder = Path(folder)
        path = folder / JSON_FILE
        if not path.is_file():
            raise MissingFileError(f"{path} is not a file; give a folder with the {JSON_FILE} of transformers")
        config = read_tokenizer_config(folder)
        return cls(path.read_bytes(), config, special_names(folder, config), source=str(path))

    def encode(self, text: str, *, after_mask: bool = False) -> list[int]:
        return self._for(text, after_mask).encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def offsets(self, text: str, *, after_mask: bool = False) -> list[Offset]:
        encoding = self._for(text, after_mask).encode(text, add_special_tokens=False)
        offsets = []
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token not in self._added and not text[start:end].strip():
                offsets.append((end, end))  # a piece of white space alone
            else:
                offsets.append(without_spaces(text, start, end))
        return offsets

    def decode(self, ids: Sequence[int], *, after_special: bool = False) -> str:
        known = [i for i in ids if i in self._pieces]
        return decode_parts(
            known, self._added, self._decode_run, keeps_spaces=self.keeps_spaces, after_special=after_special
        )

    def _decode_run(self, ids: list[int], after_special: bool) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        first = self.piece(ids[0])
        begins_word = first.startswith(_WORD_START) if self.vocab_type == "spm" else not first.startswith(_INSIDE)
        adds_space = after_special and begins_word and not self.keeps_spaces and not text[:1].isspace()
        return " " * adds_space + text

    def piece(self, token: int) -> str:
        return self._pieces.get(token, "")

    def id_of(self, piece: str) -> int | None:
        return self._ids.get(piece)

    def normalizer(self) -> Any:
        return self._tokenizer.normalizer

    def starts_word(self, token: int) -> bool:
        piece = self.piece(token)
        if token in self._added or is_space_or_punctuation(piece):
            return True
        if self.vocab_type == "wordpiece":
            return not piece.startswith(_INSIDE)
        return piece.startswith((_WORD_START, "Ġ"))

    def files(self) -> dict[str, bytes]:
        """Returns `tokenizer.json`, byte for byte as it was read."""
        return {JSON_FILE: self._content}

    def _for(self, text: str, after_mask: bool) -> Any:
        """Returns the tokenizer for a text. After a mask token, only white space starts a new word."""
        return self._within_word if after_mask and not text[:1].isspace() else self._tokenizer

    @functools.cached_property
    def _within_word(self) -> Any:
        """The same tokenizer, without a space before the first word of a text."""
        description = json.loads(json.dumps(self._description))
        for step in _steps(description.get("pre_tokenizer"), "pretokenizers"):
            if step.get("type") == "Metaspace":
                step["prepend_scheme"] = "never"
            if "add_prefix_space" in step:
                step["add_prefix_space"] = False
        tokenizer = import_tokenizers(JSON_FILE).Tokenizer.from_str(json.dumps(description))
        tokenizer.encode_special_tokens = True
        return tokenizer


def model_pieces(description: Mapping[str, Any]) -> dict[str, int]:
    """Returns the pieces and ids of the model in the content of a tokenizer.json, without its added tokens."""
    vocab = description["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}


def _parse(content: bytes, source: str) -> dict[str, Any]:
    try:
        description = json.loads(content)
        kind = description["model"].get("type")
        if kind is None:  # files of early releases do not name it
            model = description["model"]
            kind = "Unigram" if isinstance(model["vocab"], list) else "BPE" if "merges" in model else "WordPiece"
            description["model"]["type"] = kind
        pieces = model_pieces(description)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"{source} is damaged or not a tokenizer ({len(content)} bytes); it may be a Git LFS pointer in place of "
            "the file; download it again"
        ) from None
    if kind not in ("Unigram", "BPE", "WordPiece") or not pieces:
        raise UserError(
            f"{source} has a tokenizer of the kind {kind!r} with {len(pieces)} pieces; supported are Unigram (DeBERTa "
            "v2, v3, XLNet), BPE (DeBERTa v1, RoBERTa) and WordPiece (BERT, ELECTRA)"
        )
    if description["model"].get("dropout"):
        raise UserError(
            f"{source} has a dropout of {description['model']['dropout']!r}, which makes its ids random; set dropout "
            "to null in the file"
        )
    return description


def _special_pieces(
    description: Mapping[str, Any], tokens: AddedTokens, names: Mapping[str, str], source: str
) -> dict[str, str]:
    """Returns the pieces of the special tokens by DeBERTa's names, or raises UserError if one is missing."""
    pieces = model_pieces(description).keys() | {token.content for token in tokens.values()}
    family = _DEBERTA if CLS in pieces else XLNET_PIECES if XLNET_PIECES[CLS] in pieces else ROBERTA_PIECES
    fields = {field: names.get(field, family[name]) for field, name in SPECIAL_FIELDS.items()}
    missing = [f"{field} {piece!r}" for field, piece in fields.items() if piece not in pieces]
    if missing:
        raise UserError(
            f"{source} has no {', '.join(missing)}; DeBERTa, BERT and ELECTRA need {', '.join(_DEBERTA)}, RoBERTa "
            f"{', '.join(ROBERTA_PIECES.values())}, XLNet {', '.join(XLNET_PIECES.values())}, or other names in "
            "tokenizer_config.json"
        )
    return {SPECIAL_FIELDS[field]: piece for field, piece in fields.items()}


def _count_separators(processor: Any) -> int | None:
    """Returns the number of separators that a post-processor puts between the texts of a pair, or None without any.

    transformers 4 puts one between the texts of a DeBERTa v1, and transformers 5 puts two.
    """
    for step in _steps(processor, "processors"):
        if step.get("type") in ("RobertaProcessing", "BertProcessing"):
            return 2 if step["type"] == "RobertaProcessing" else 1
        kinds = "".join("S" if "SpecialToken" in part else "T" for part in step.get("pair") or [])
        if kinds.count("T") == 2 and "TT" not in kinds:
            return kinds.rindex("T") - kinds.index("T") - 1
    return None


def _puts_last(processor: Any, cls: str) -> bool:
    """Returns whether a post-processor puts [CLS] after the text, as XLNet's does."""
    templates = [step["single"] for step in _steps(processor, "processors") if step.get("single")]
    return any(template[-1].get("SpecialToken", {}).get("id") == cls for template in templates)


def _hide_special_pieces(description: dict[str, Any], special: set[str]) -> dict[str, str]:
    """Renames the special pieces of a Unigram model, which would find them in a text. Returns new names by old ones.

    A SentencePiece model knows that these pieces are not for text. The format of the package tokenizers does not.
    """
    if description["model"]["type"] != "Unigram":
        return {piece: piece for piece in special}
    names = {piece: f"\uffff{piece}" for piece in special}  # not a character
    for entry in description["model"]["vocab"]:
        entry[0] = names.get(entry[0], entry[0])
    for entry in description.get("added_tokens") or []:
        entry["content"] = names.get(entry["content"], entry["content"])
    return names


def _load(description: dict[str, Any], special: set[str], source: str) -> Any:
    """Returns the tokenizer that treats the special tokens in a text as plain characters, and only those."""
    description |= {"truncation": None, "padding": None, "post_processor": None}
    for entry in description.get("added_tokens") or []:
        entry["special"] = entry["content"] in special
    tokenizers = import_tokenizers(JSON_FILE)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
        for entry in description.get("added_tokens") or []:
            # A line break is a space, or nothing, when it is normalized, which makes the package panic.
            blank = tokenizer.normalizer and not tokenizer.normalizer.normalize_str(entry["content"]).strip()
            if entry.get("normalized") and blank:
                entry["normalized"] = False
                tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # the package raises Exception itself
        raise UserError(
            f"{source} cannot be read by the package tokenizers {tokenizers.__version__}: "
            f"{' '.join(str(error).split())[:200]}; download it again, or install the newest tokenizers"
        ) from None
    tokenizer.encode_special_tokens = True
    return tokenizer


def _steps(step: Any, name: str) -> Iterator[dict[str, Any]]:
    """Yields the steps in the description of one or of a sequence, which has them in a list of this name."""
    if isinstance(step, dict):
        yield step
        for part in step.get(name) or []:
            yield from _steps(part, name)
