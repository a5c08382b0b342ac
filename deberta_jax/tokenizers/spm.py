"""SentencePiece: the vocabulary of DeBERTa v2, v3 and mDeBERTa (`spm.model`)."""

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import sentencepiece

from ..errors import MissingFileError, UserError
from .vocabulary import CLS, MASK, PAD, SEP, UNK, Offset, stands_alone

MODEL_FILE = "spm.model"

_WORD_START = "▁"
_SPACES = "▁ "
# Appended to a serialized model, this sets normalizer_spec.add_dummy_prefix to false: protocol buffers merge a message
# field that comes twice (ModelProto field 3, length 2, NormalizerSpec field 3 = 0). No API does this in every release.
_NO_WORD_START = b"\x1a\x02\x18\x00"

# Published files by their size, which is as good as a name: no other vocabulary is as long to the byte.
_RELEASED = {
    2_464_616: ("DeBERTa v3", "c679fbf93643d19aab7ee10c0b99e460bdbc02fedf34b92b05af343b4af586fd"),
    4_305_025: ("mDeBERTa v3", "13c8d666d62a7bc4ac8f040aab68e942c861f93303156cc28f5c7e885d86d6e3"),
}


class SentencePiece:
    """A SentencePiece model with DeBERTa's special pieces; a `Vocabulary`.

    [PAD] 0, [CLS] 1, [SEP] 2 and [UNK] 3 are pieces of the model file. [MASK] comes on top, with the id that follows
    the last piece (128000 for v3, 250101 for mDeBERTa), unless the file has a piece of that name. Source:
    `deberta/spm_tokenizer.py`, SPMTokenizer. Deliberate difference: where the file lacks one of the first four, the
    official code invents an id for it and goes on padding with 0, whatever piece that is; here it is an error.
    """

    vocab_type = "spm"
    pair_separators = 1

    def __init__(self, model: bytes, *, source: str) -> None:
        """Takes the bytes of an `spm.model`; `source` names them in errors.

        Raises:
          ValueError: not a SentencePiece model, a part of one, or one without DeBERTa's special pieces.
        """
        self._model = model
        self._spm = _load(model, source)
        self._pieces = self._spm.get_piece_size()
        ids = {name: self._spm.piece_to_id(name) for name in (PAD, CLS, SEP, UNK, MASK)}
        found = {name: i for name, i in ids.items() if self._spm.id_to_piece(i) == name}
        if found.get(PAD) != 0 or not {CLS, SEP} <= found.keys() or found.get(UNK) != self._spm.unk_id():
            present = ", ".join(f"{name} {i}" for name, i in found.items()) or "none of them"
            raise UserError(
                f"{source} has {present}; DeBERTa needs the pieces [PAD] with id 0, [CLS], [SEP], and [UNK] as the "
                "unknown piece; train such a model with `deberta-jax tokenizer`, or spm_train --pad_id=0 --bos_id=1 "
                "--eos_id=2 --unk_id=3 --pad_piece=[PAD] --bos_piece=[CLS] --eos_piece=[SEP] --unk_piece=[UNK]"
            )
        self.special_ids: Mapping[str, int] = {MASK: self._pieces} | found
        self.size = max(self._pieces, self.special_ids[MASK] + 1)
        self.settings: Mapping[str, object] = {
            "tokenizer_class": "DebertaV2Tokenizer",
            "do_lower_case": False,
            "split_by_punct": False,
        }
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        # Data workers get the bytes, not SentencePiece's C++ object.
        return functools.partial(type(self), source="the model"), (self._model,)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Reads an `spm.model`, by whatever name.

        Raises:
          FileNotFoundError: no such file.
          ValueError: as `SentencePiece` does; or as long as a released file but with other bytes.
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
                    f"{actual[:12]}..., not {published[:12]}...; fetch it again"
                )
        return cls(model, source=str(path))

    def encode(self, text: str, *, after_mask: bool = False) -> list[int]:
        return self._processor(text, after_mask).encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._spm.encode(list(texts))

    def offsets(self, text: str, *, after_mask: bool = False) -> list[Offset]:
        """SentencePiece's own begin and end give a character that it rewrote or split to the last of its pieces only.

        Here every piece gets all of the characters that it has a part in: the pieces are laid along the normalized
        text, each of whose characters knows where the original ones begin.
        """
        processor = self._processor(text, after_mask)
        normalized, starts = processor.normalize(text, with_offsets=True)  # len(normalized) + 1 starts
        offsets, at, bytes_done = [], 0, 0
        for token, piece in zip(processor.encode(text), processor.encode(text, out_type=str), strict=True):
            if processor.is_byte(token):
                first, behind, bytes_done = at, at + 1, bytes_done + 1
                if bytes_done == len(normalized[at].encode()):
                    at, bytes_done = behind, 0
            else:
                first = at + len(piece) - len(piece.lstrip(_SPACES))
                behind = max(first, at + len(piece.rstrip(_SPACES)))
                at += len(piece)
            end = behind
            while behind > first and starts[end] == starts[behind - 1]:  # the same original character goes on
                end += 1
            offsets.append((starts[first], starts[end]))
        return offsets

    def decode(self, ids: Sequence[int], *, after_special: bool = False) -> str:
        ids = list(ids)
        text = self._spm.decode(ids)
        return f" {text}" if after_special and ids and self.piece(ids[0]).startswith(_WORD_START) else text

    def piece(self, token: int) -> str:
        return self._spm.id_to_piece(token) if token < self._pieces else MASK

    def starts_word(self, token: int) -> bool:
        """Byte pieces (<0xF0>) never do, as by the official rule, though one may be the first byte of a character.

        Only so is a character never masked in part; and a character that follows a space has a "▁" of its own in front
        of its bytes, which does start a word.
        """
        piece = self.piece(token)
        return piece.startswith(_WORD_START) or stands_alone(piece)

    def files(self) -> dict[str, bytes]:
        """`spm.model`, byte for byte as it was read."""
        return {MODEL_FILE: self._model}

    def _processor(self, text: str, after_mask: bool) -> sentencepiece.SentencePieceProcessor:
        """Behind a mask, a text starts a new word only where white space does."""
        return self._within_word if after_mask and not text[:1].isspace() else self._spm

    @functools.cached_property
    def _within_word(self) -> sentencepiece.SentencePieceProcessor:
        """The same model, but a text's first word gets no ▁."""
        return sentencepiece.SentencePieceProcessor(model_proto=self._model + _NO_WORD_START)


def _load(model: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    damaged = (
        f"{source} is not a SentencePiece model ({len(model)} bytes); it may be damaged or cut short, "
        "or a Git LFS pointer instead of the file; fetch it again"
    )
    if not model:  # SentencePiece would take it and log to stderr
        raise UserError(damaged)
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise UserError(damaged) from None
    if not _has_normalizer(model):
        raise UserError(damaged)
    return processor


def _has_normalizer(model: bytes) -> bool:
    """Whether anything follows the pieces and trainer_spec; `model` can be parsed.

    SentencePiece takes a file that was cut between two pieces, and does without its normalization and other pieces.
    """
    at = 0
    while at < len(model) and model[at] in (0x0A, 0x12):  # fields 1 and 2 of ModelProto, each with a length
        length, shift, at = 0, 0, at + 1
        while model[at] > 127:
            length |= (model[at] & 127) << shift
            at, shift = at + 1, shift + 7
        at += 1 + (length | model[at] << shift)
    return at < len(model)
