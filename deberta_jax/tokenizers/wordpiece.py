"""WordPiece: the vocabulary of BERT and ELECTRA (`vocab.txt`)."""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ..errors import MissingFileError, UserError
from .vocabulary import (
    CLS,
    MASK,
    PAD,
    SEP,
    UNK,
    Offset,
    import_tokenizers,
    is_space_or_punctuation,
    list_special_ids,
    read_tokenizer_config,
)

VOCAB_FILE = "vocab.txt"

_INSIDE = "##"  # prefix of pieces that continue a word
# Settings of tokenizer_config.json with transformers' defaults. None strips accents if the text is lower-cased.
_DEFAULT_SETTINGS = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}


class WordPiece:
    """BERT's split at white space, punctuation and Chinese characters, then the longest pieces; a `Vocabulary`.

    The package tokenizers does the work. A word that the pieces cannot spell becomes a single [UNK].
    Source: `tokenization.py` of google-research/bert, FullTokenizer.
    """

    vocab_type = "wordpiece"
    pair_separators = 1
    cls_last = False
    keeps_spaces = False
    space_id: int | None = None

    def __init__(self, pieces: Sequence[str], settings: Mapping[str, bool | None], *, source: str) -> None:
        """Makes a vocabulary of pieces and settings.

        Args:
          pieces: The pieces in the order of their ids.
          settings: `do_lower_case` (default: True), `strip_accents` (default: None, which means as `do_lower_case`)
            and `tokenize_chinese_chars` (default: True).
          source: Name of the file, for error messages.

        Raises:
          MissingPackageError: The package tokenizers is not installed.
          UserError: A special token is missing, or a setting is neither true nor false.
        """
        ids = {piece: i for i, piece in enumerate(pieces)}
        special_ids = {name: ids[name] for name in (PAD, CLS, SEP, UNK, MASK) if name in ids}
        if special_ids.get(PAD) != 0 or len(special_ids) < 5:
            raise UserError(
                f"{source} has {list_special_ids(special_ids)}; BERT and ELECTRA need the pieces [PAD] with id 0, "
                "[CLS], [SEP], [UNK] and [MASK]; the file may be damaged, or a Git LFS pointer in place of the file; "
                "download it again"
            )
        for name, value in settings.items():
            if not isinstance(value, bool) and not (name == "strip_accents" and value is None):
                raise UserError(f"{source}: {name} is {value!r}; it must be true or false")
        self._pieces, self._settings = list(pieces), {**_DEFAULT_SETTINGS, **settings}
        self._wordpiece, self._decoder = _build(ids, self._settings)
        self._ids = ids
        self.special_ids: Mapping[str, int] = special_ids
        self.hidden_ids = frozenset(special_ids.values())
        self.size = len(self._pieces)
        self.settings: Mapping[str, object] = {"tokenizer_class": "BertTokenizer", **self._settings}
        content = [*self.files().values(), json.dumps(self._settings, sort_keys=True).encode()]
        self.fingerprint = hashlib.sha256(b"".join(content)).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), source="the vocabulary"), (self._pieces, self._settings)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads `vocab.txt`, and the settings in `tokenizer_config.json` if the folder has one.

        Raises:
          MissingFileError: The folder has no vocab.txt.
          MissingPackageError: The package tokenizers is not installed.
          UserError: A file is damaged, or lacks BERT's special tokens.
        """
        folder = Path(folder)
        path = folder / VOCAB_FILE
        if not path.is_file():
            raise MissingFileError(f"{path} is not a file; give a folder with the {VOCAB_FILE} of BERT or ELECTRA")
        try:
            pieces = path.read_bytes().decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            raise UserError(f"{path} is damaged: it is not UTF-8; download it again") from None
        config = read_tokenizer_config(folder)
        settings = {name: config[name] for name in _DEFAULT_SETTINGS if name in config}
        return cls(pieces, settings, source=str(path))

    def encode(self, text: str, *, after_mask: bool = False) -> list[int]:
        return self._wordpiece.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._wordpiece.encode_batch_fast(list(texts), add_special_tokens=False)]

    def offsets(self, text: str, *, after_mask: bool = False) -> list[Offset]:
        return list(self._wordpiece.encode(text, add_special_tokens=False).offsets)

    def decode(self, ids: Sequence[int], *, after_special: bool = False) -> str:
        """Returns words separated by spaces, with no space before a full stop and similar punctuation."""
        pieces = [self.piece(i) for i in ids]
        text = self._decoder.decode(pieces)
        return f" {text}" if after_special and pieces and not pieces[0].startswith(_INSIDE) else text

    def piece(self, token: int) -> str:
        return self._pieces[token]

    def id_of(self, piece: str) -> int | None:
        return self._ids.get(piece)

    def normalizer(self) -> Any:
        return self._wordpiece.normalizer

    def starts_word(self, token: int) -> bool:
        piece = self.piece(token)
        return not piece.startswith(_INSIDE) or is_space_or_punctuation(piece)

    def files(self) -> dict[str, bytes]:
        """Returns the content of `vocab.txt`."""
        return {VOCAB_FILE: ("\n".join(self._pieces) + "\n").encode()}


def _build(ids: dict[str, int], settings: dict[str, Any]) -> tuple[Any, Any]:
    """Returns the tokenizer and the decoder of the package tokenizers."""
    tokenizers = import_tokenizers("WordPiece (BERT, ELECTRA)")
    wordpiece = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab=ids, unk_token=UNK))
    wordpiece.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings["tokenize_chinese_chars"],
        strip_accents=settings["strip_accents"],
        lowercase=settings["do_lower_case"],
    )
    wordpiece.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return wordpiece, tokenizers.decoders.WordPiece(prefix=_INSIDE)
