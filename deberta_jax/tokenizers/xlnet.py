"""XLNet's SentencePiece vocabulary (`spiece.model`), and what it does to a text before and after SentencePiece.

Source: the official `prepro_utils.py` (`preprocess_text`, `encode_pieces`). transformers' tokenizer.json lowers the
scores of numbers with a comma instead, and drops all marks of the category Mn, so a few texts have other ids there.
"""

import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ..errors import MissingFileError, UserError
from .spm import SentencePiece, load_model, piece_offsets
from .vocabulary import (
    UNK,
    XLNET_PIECES,
    Offset,
    import_tokenizers,
    list_special_ids,
    read_flag,
    read_tokenizer_config,
)

XLNET_FILE = "spiece.model"

_WORD_START = "▁"
_OTHER_PIECES = ("<s>", "</s>", "<eod>", "<eop>")  # which decoded text leaves out
_DEFAULTS = {"do_lower_case": False, "remove_space": True, "keep_accents": False}  # of transformers and the files


class XLNetPieces(SentencePiece):
    """A SentencePiece model with XLNet's special pieces; a `Vocabulary`.

    Before SentencePiece, runs of white space become one space, `` and '' become ", accents are removed after NFKD, and
    with `do_lower_case` capitals are lowered. After it, a piece that ends with a digit and a comma is split before the
    comma.
    """

    vocab_type = "xlnet"
    cls_last = True

    def __init__(
        self,
        model: bytes,
        *,
        do_lower_case: bool = False,
        remove_space: bool = True,
        keep_accents: bool = False,
        source: str,
    ) -> None:
        """Makes a vocabulary of a model.

        Args:
          model: The content of a `spiece.model`.
          do_lower_case: Encode the text in lower case.
          remove_space: Make one space of each run of white space, and none at the ends.
          keep_accents: Keep accents, and compatibility characters as they are.
          source: Name of the file, for error messages.

        Raises:
          UserError: The bytes are not a SentencePiece model, are only a part of one, or lack XLNet's special pieces.
        """
        self._model = model
        self._spm = load_model(model, source)
        self._pieces = self.size = self._spm.get_piece_size()
        ids = {name: self.id_of(piece) for name, piece in XLNET_PIECES.items()}
        self.special_ids: Mapping[str, int] = {name: i for name, i in ids.items() if i is not None}
        if len(self.special_ids) < len(ids) or self.special_ids[UNK] != self._spm.unk_id():
            names = {XLNET_PIECES[name]: i for name, i in self.special_ids.items()}
            raise UserError(
                f"{source} has {list_special_ids(names)}; XLNet needs the pieces {', '.join(XLNET_PIECES.values())}; "
                "trained weights need the tokenizer of their training"
            )
        others = (self.id_of(piece) for piece in _OTHER_PIECES)
        self.hidden_ids = frozenset(self.special_ids.values()) | {i for i in others if i is not None}
        self.space_id = self.id_of(_WORD_START)
        self._lowers, self._joins_spaces, self._keeps_accents = do_lower_case, remove_space, keep_accents
        settings = {"do_lower_case": do_lower_case, "remove_space": remove_space, "keep_accents": keep_accents}
        sentence = {"bos_token": "<s>", "eos_token": "</s>"}
        self._settings = settings
        self.settings: Mapping[str, object] = {"tokenizer_class": "XLNetTokenizer", **settings, **sentence}
        changed = "".join(name for name, value in settings.items() if value != _DEFAULTS[name])
        self.fingerprint = hashlib.sha256(model + b"xlnet" + changed.encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **self._settings, source="the model"), (self._model,)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads `spiece.model`, and the settings in `tokenizer_config.json` if the folder has one.

        Raises:
          MissingFileError: The folder has no spiece.model.
          UserError: A file is damaged, or a setting is neither true nor false.
        """
        folder = Path(folder)
        path = folder / XLNET_FILE
        if not path.is_file():
            raise MissingFileError(f"{path} is not a file; give the {XLNET_FILE} of an XLNet")
        config = {**_DEFAULTS, **read_tokenizer_config(folder)}
        settings = {name: read_flag(config, name, folder) for name in _DEFAULTS}
        return cls(path.read_bytes(), **settings, source=str(path))

    def encode(self, text: str, *, after_mask: bool = False) -> list[int]:
        return self._split_numbers(self._processor(text, after_mask).encode(self._prepare(text)))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._split_numbers(ids) for ids in self._spm.encode([self._prepare(text) for text in texts])]

    def offsets(self, text: str, *, after_mask: bool = False) -> list[Offset]:
        prepared, origins = self._prepare(text), self._origins(text)
        processor = self._processor(text, after_mask)
        pieces: list[str] = []
        for token, piece in zip(processor.encode(prepared), processor.encode(prepared, out_type=str), strict=True):
            pieces += self._number_pieces(piece) if token in self._numbers else [piece]
        offsets = []
        for start, end in piece_offsets(processor, prepared, [(-1, piece) for piece in pieces]):
            first = origins[start][0] if start < len(origins) else len(text)
            offsets.append((first, origins[end - 1][1] if end > start else first))
        return offsets

    def _prepare(self, text: str) -> str:
        """Returns the text that SentencePiece encodes."""
        text = " ".join(text.split()) if self._joins_spaces else text
        text = text.replace("``", '"').replace("''", '"')
        text = text if self._keeps_accents else _without_accents(text)
        return text.lower() if self._lowers else text

    def _origins(self, text: str) -> list[Offset]:
        """Returns the place in the text that each character of `_prepare` comes from.

        A character includes the accents after it that are removed.
        """
        origins: list[Offset] = []
        for start, end, characters in self._quoted(text):
            made = characters if self._keeps_accents else _without_accents(characters)
            made = "".join(character.lower() for character in made) if self._lowers else made
            if not made and origins and origins[-1][1] == start and not text[start - 1].isspace():
                origins[-1] = origins[-1][0], end
            origins += [(start, end)] * len(made)
        return origins

    def _quoted(self, text: str) -> list[tuple[int, int, str]]:
        """Returns the characters of a text with their places, after runs of spaces and doubled quotes are replaced."""
        parts: list[tuple[int, int, str]] = []
        words = re.finditer(r"\S+", text) if self._joins_spaces else re.finditer(r"(?s).+", text)
        for word in words:
            if parts:
                parts.append((parts[-1][1], word.start(), " "))
            for match in re.finditer(r"(?s)``|''|.", word[0]):
                start, end = word.start() + match.start(), word.start() + match.end()
                parts.append((start, end, match[0] if end - start == 1 else '"'))
        return parts

    @functools.cached_property
    def _numbers(self) -> frozenset[int]:
        """Ids of the pieces that end with a digit and a comma."""
        pieces = ((i, self._spm.id_to_piece(i)) for i in range(self._pieces))
        return frozenset(i for i, piece in pieces if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit())

    def _split_numbers(self, ids: list[int]) -> list[int]:
        if self._numbers.isdisjoint(ids):
            return ids
        split: list[int] = []
        for token in ids:
            if token in self._numbers:
                split += map(self._spm.piece_to_id, self._number_pieces(self._spm.id_to_piece(token)))
            else:
                split.append(token)
        return split

    def _number_pieces(self, piece: str) -> list[str]:
        """Returns the pieces of a number, and the comma."""
        pieces = self._spm.encode(piece[:-1].replace(_WORD_START, ""), out_type=str)
        if not piece.startswith(_WORD_START) and pieces[0].startswith(_WORD_START):
            pieces[0] = pieces[0].removeprefix(_WORD_START)
        return [part for part in (*pieces, ",") if part]

    def normalizer(self) -> Any:
        """Returns what transformers applies to a text before it looks for added tokens."""
        normalizers = import_tokenizers("a vocabulary with added tokens").normalizers
        steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        steps += [] if self._keeps_accents else [normalizers.NFKD(), normalizers.StripAccents()]
        return normalizers.Sequence([*steps, *([normalizers.Lowercase()] if self._lowers else [])])

    def files(self) -> dict[str, bytes]:
        """Returns `spiece.model`, byte for byte as it was read."""
        return {XLNET_FILE: self._model}


def _without_accents(text: str) -> str:
    if text.isascii():
        return text
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
