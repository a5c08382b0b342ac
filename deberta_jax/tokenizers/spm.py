"""SentencePiece: the vocabulary of DeBERTa v2, v3 and mDeBERTa (`spm.model`)."""

import functools
import hashlib
import itertools
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import sentencepiece

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
    read_flag,
    read_tokenizer_config,
)

MODEL_FILE = "spm.model"

_WORD_START = "▁"
_SPACES = "▁ "
# Appended to a serialized model, this sets normalizer_spec.add_dummy_prefix to false: protocol buffers merge a message
# field that occurs twice (ModelProto field 3, length 2, NormalizerSpec field 3 = 0). No API does this in all releases.
_NO_WORD_START = b"\x1a\x02\x18\x00"

# Size in bytes of each published file -> its name and SHA-256. No other vocabulary has exactly the same size.
_RELEASED = {
    2_464_616: ("DeBERTa v3", "c679fbf93643d19aab7ee10c0b99e460bdbc02fedf34b92b05af343b4af586fd"),
    4_305_025: ("mDeBERTa v3", "13c8d666d62a7bc4ac8f040aab68e942c861f93303156cc28f5c7e885d86d6e3"),
}


class SentencePiece:
    """A SentencePiece model with DeBERTa's special pieces; a `Vocabulary`.

    [PAD] 0, [CLS] 1, [SEP] 2 and [UNK] 3 are pieces of the model file. [MASK] has the id that follows the last piece
    (128000 in v3, 250101 in mDeBERTa), unless the file has a piece of that name. Source: `deberta/spm_tokenizer.py`,
    SPMTokenizer. Deliberate difference: if the file lacks one of the first four, the official code makes up an id for
    it but keeps padding with id 0, whichever piece that is; here it is an error.
    """

    vocab_type = "spm"
    pair_separators = 1
    cls_last = False
    keeps_spaces = False

    def __init__(self, model: bytes, *, do_lower_case: bool = False, split_by_punct: bool = False, source: str) -> None:
        """Makes a vocabulary of a model.

        Args:
          model: The content of an `spm.model`.
          do_lower_case: Encode the text in lower case. No released model does.
          split_by_punct: Encode every punctuation character as a separate word. No released model does.
          source: Name of the file, for error messages.

        Raises:
          UserError: The bytes are not a SentencePiece model, are only a part of one, or lack DeBERTa's special pieces.
        """
        self._model = model
        self._spm = load_model(model, source)
        self._pieces = self._spm.get_piece_size()
        ids = {name: self.id_of(name) for name in (PAD, CLS, SEP, UNK, MASK)}
        special_ids = {name: i for name, i in ids.items() if i is not None}
        has_special_tokens = special_ids.get(PAD) == 0 and {CLS, SEP} <= special_ids.keys()
        if not has_special_tokens or special_ids.get(UNK) != self._spm.unk_id():
            raise UserError(
                f"{source} has {list_special_ids(special_ids)}; DeBERTa needs the pieces [PAD] with id 0, [CLS], "
                "[SEP], and [UNK] as the unknown piece; trained weights need the tokenizer of their training; "
                "for a new model, train one with `deberta-jax tokenizer`, or spm_train "
                "--pad_id=0 --bos_id=1 --eos_id=2 --unk_id=3 --pad_piece=[PAD] --bos_piece=[CLS] --eos_piece=[SEP] "
                "--unk_piece=[UNK]"
            )
        self.special_ids: Mapping[str, int] = {MASK: self._pieces} | special_ids
        self.hidden_ids = frozenset(self.special_ids.values())
        self.space_id = self.id_of(_WORD_START)
        self.size = max(self._pieces, self.special_ids[MASK] + 1)
        self._lowers, self._splits = do_lower_case, split_by_punct
        settings = {"do_lower_case": do_lower_case, "split_by_punct": split_by_punct}
        self.settings: Mapping[str, object] = {"tokenizer_class": "DebertaV2Tokenizer", **settings}
        changed = "".join(name for name, value in settings.items() if value)
        self.fingerprint = hashlib.sha256(model + changed.encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        # Data workers get the bytes, because SentencePiece's C++ object cannot be pickled.
        settings = {"do_lower_case": self._lowers, "split_by_punct": self._splits}
        return functools.partial(type(self), **settings, source="the model"), (self._model,)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads `spm.model`, and the settings in `tokenizer_config.json` if the folder has one.

        Raises:
          MissingFileError: The folder has no spm.model.
          UserError: A file is damaged, or a setting is neither true nor false.
        """
        folder = Path(folder)
        config = read_tokenizer_config(folder)
        settings = {name: read_flag(config, name, folder) for name in ("do_lower_case", "split_by_punct")}
        return cls.from_file(folder / MODEL_FILE, **settings)

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], *, do_lower_case: bool = False, split_by_punct: bool = False
    ) -> Self:
        """Reads a SentencePiece model from a file of any name.

        Raises:
          MissingFileError: There is no such file.
          UserError: The file is not a SentencePiece model, lacks DeBERTa's special pieces, or has the size of a
            released file but other content.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(f"{path} is not a file; give the spm.model of a DeBERTa v2, v3 or mDeBERTa")
        model = path.read_bytes()
        if len(model) in _RELEASED:
            name, published = _RELEASED[len(model)]
            actual = hashlib.sha256(model).hexdigest()
            if actual != published:
                raise UserError(
                    f"{path} is damaged: it has the size of {name}'s ({len(model)} bytes) but the SHA-256 "
                    f"{actual[:12]}..., not {published[:12]}...; download it again"
                )
        return cls(model, do_lower_case=do_lower_case, split_by_punct=split_by_punct, source=str(path))

    def encode(self, text: str, *, after_mask: bool = False) -> list[int]:
        ids = []
        for i, word in enumerate(self._words(text.lower() if self._lowers else text)):
            ids += self._processor(word, after_mask and i == 0).encode(word)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._splits or self._lowers:
            return [self.encode(text) for text in texts]
        return self._spm.encode(list(texts))

    def _words(self, text: str) -> list[str]:
        """Returns the parts that are encoded one by one. Source: `SPMTokenizer._run_split_on_punc`."""
        if not self._splits:
            return [text]
        groups = itertools.groupby(enumerate(text), key=lambda item: item[0] if _is_punctuation(item[1]) else -1)
        return ["".join(character for _, character in group) for _, group in groups]

    def offsets(self, text: str, *, after_mask: bool = False) -> list[Offset]:
        lowered = text.lower() if self._lowers else text
        offsets, position = [], 0
        for i, word in enumerate(self._words(lowered)):
            for start, end in self._word_offsets(word, after_mask and i == 0):
                offsets.append((position + start, position + end))
            position += len(word)
        if len(lowered) == len(text):
            return offsets
        # "İ" has two characters in lower case.
        origin = [i for i, character in enumerate(text) for _ in character.lower()] + [len(text)]
        return [(origin[start], origin[end - 1] + 1 if end > start else origin[start]) for start, end in offsets]

    def _word_offsets(self, text: str, after_mask: bool) -> list[Offset]:
        processor = self._processor(text, after_mask)
        pieces = zip(processor.encode(text), processor.encode(text, out_type=str), strict=True)
        return piece_offsets(processor, text, pieces)

    def decode(self, ids: Sequence[int], *, after_special: bool = False) -> str:
        ids = list(ids)
        text = self._spm.decode(ids)
        return f" {text}" if after_special and ids and self.piece(ids[0]).startswith(_WORD_START) else text

    def piece(self, token: int) -> str:
        return self._spm.id_to_piece(token) if token < self._pieces else MASK

    def id_of(self, piece: str) -> int | None:
        # SentencePiece returns the id of the unknown piece for a name that it does not have.
        token = self._spm.piece_to_id(piece)
        return token if self._spm.id_to_piece(token) == piece else None

    def normalizer(self) -> Any:
        """Returns what transformers applies to a text before it looks for added tokens."""
        normalizers = import_tokenizers("a vocabulary with added tokens").normalizers
        lower = [normalizers.Lowercase()] if self._lowers else []
        spaces = normalizers.Replace(import_tokenizers("added tokens").Regex(r"\s{2,}|[\n\r\t]"), " ")
        return normalizers.Sequence([*lower, spaces, normalizers.NFC()])

    def starts_word(self, token: int) -> bool:
        """Returns whether a piece begins with "▁" or is a single punctuation or white-space character.

        Byte pieces (<0xF0>) never start a word, as in the official rule, so a character is never masked in part. A
        character after a space has a "▁" before its bytes, which does start a word.
        """
        piece = self.piece(token)
        return piece.startswith(_WORD_START) or is_space_or_punctuation(piece)

    def files(self) -> dict[str, bytes]:
        """Returns `spm.model`, byte for byte as it was read."""
        return {MODEL_FILE: self._model}

    def _processor(self, text: str, after_mask: bool) -> sentencepiece.SentencePieceProcessor:
        """Returns the processor for a text. After a mask token, only white space starts a new word."""
        return self._within_word if after_mask and not text[:1].isspace() else self._spm

    @functools.cached_property
    def _within_word(self) -> sentencepiece.SentencePieceProcessor:
        """The same model, without "▁" in front of the first word of a text."""
        return sentencepiece.SentencePieceProcessor(model_proto=self._model + _NO_WORD_START)


def piece_offsets(
    processor: sentencepiece.SentencePieceProcessor, text: str, pieces: Iterable[tuple[int, str]]
) -> list[Offset]:
    """Returns the place in the text that each piece comes from.

    If SentencePiece rewrites or splits a character, its own `begin` and `end` assign the character to the last of its
    pieces only. Here every piece gets all characters that it has a part in: the pieces are matched to the normalized
    text one after the other, and `starts` maps each normalized character to the original text.

    Args:
      processor: The model.
      text: The text.
      pieces: The ids and pieces of the text.
    """
    normalized, starts = processor.normalize(text, with_offsets=True)  # len(normalized) + 1 starts
    offsets, position, bytes_done = [], 0, 0
    for token, piece in pieces:
        if token >= 0 and processor.is_byte(token):  # the position advances only after the last byte of its character
            first, stop, bytes_done = position, position + 1, bytes_done + 1
            if bytes_done == len(normalized[position].encode()):
                position, bytes_done = stop, 0
        else:
            first = position + len(piece) - len(piece.lstrip(_SPACES))
            stop = max(first, position + len(piece.rstrip(_SPACES)))
            position += len(piece)
        end = stop
        # Normalization made several characters of one: the piece ends where the last of them ends.
        while stop > first and starts[end] == starts[stop - 1]:
            end += 1
        offsets.append((starts[first], starts[end]))
    return offsets


def _is_punctuation(character: str) -> bool:
    """Returns whether a character is ASCII other than letters, digits, spaces and control, or Unicode punctuation."""
    return ("!" <= character <= "~" and not character.isalnum()) or unicodedata.category(character)[0] == "P"


def load_model(model: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    """Returns the processor of a model, or raises UserError if the bytes are not one or only a part of one."""
    damaged = UserError(
        f"{source} is not a SentencePiece model ({len(model)} bytes); it may be damaged or cut short, "
        "or a Git LFS pointer in place of the file; download it again"
    )
    if not model:  # SentencePiece accepts it and logs to stderr
        raise damaged
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise damaged from None
    if not _has_normalizer(model):
        raise damaged
    return processor


def _has_normalizer(model: bytes) -> bool:
    """Returns whether anything follows the pieces and trainer_spec in a model that SentencePiece can parse.

    SentencePiece loads a file that was cut between two pieces, without the pieces that are missing and without the
    normalization, and then returns other ids without a warning. The normalizer is the last field of a whole file.
    """
    position = 0
    while position < len(model) and model[position] in (0x0A, 0x12):  # ModelProto's fields 1 and 2 have a length each
        # The length is a varint: seven bits a byte, the lowest first, with the high bit set in all bytes but the last.
        length, shift, position = 0, 0, position + 1
        while model[position] > 127:
            length |= (model[position] & 127) << shift
            position, shift = position + 1, shift + 7
        position += 1 + (length | model[position] << shift)
    return position < len(model)
