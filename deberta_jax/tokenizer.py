"""Text to ids and back for DeBERTa v2, v3 and mDeBERTa: exactly what SentencePiece gives, plus five special tokens.

Why not transformers' tokenizer: its fast class drops byte fallback and SentencePiece's own normalisation, so that text
the released models were trained on ("ﬁ", "①", full-width letters, no-break spaces, emoji) becomes [UNK].
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import operator
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import sentencepiece
from numpy.typing import NDArray

MODEL_FILE = "spm.model"
CONFIG_FILE = "tokenizer_config.json"
PAD, CLS, SEP, UNK, MASK = "[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"

_WORD_START = "▁"
# Appended to a serialised model, this sets normalizer_spec.add_dummy_prefix to false: protocol buffers merge a message
# field that comes twice (ModelProto field 3, length 2, NormalizerSpec field 3 = 0). No API does this in every release.
_NO_WORD_START = b"\x1a\x02\x18\x00"

# What transformers' DebertaV2Tokenizer reads besides spm.model.
_TRANSFORMERS_CONFIG = {
    "tokenizer_class": "DebertaV2Tokenizer",
    "vocab_type": "spm",
    "do_lower_case": False,
    "split_by_punct": False,
    "bos_token": CLS,
    "eos_token": SEP,
    "cls_token": CLS,
    "sep_token": SEP,
    "pad_token": PAD,
    "unk_token": UNK,
    "mask_token": MASK,
}


@dataclasses.dataclass(frozen=True)
class Encoding:
    """One input of a model: `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, not padded.

    Attributes:
      input_ids: the ids.
      token_type_ids: as many; 0 up to the first [SEP], 1 for B and its [SEP]. The released models ignore them.
    """

    input_ids: list[int]
    token_type_ids: list[int]


class Tokenizer:
    """A SentencePiece model with the special tokens of DeBERTa v2, v3 and mDeBERTa. It can be pickled.

    [PAD] 0, [CLS] 1, [SEP] 2 and [UNK] 3 are pieces of the model file. [MASK] comes on top, with the id that follows
    the last piece (128000 for v3, 250101 for mDeBERTa), unless the file has a piece of that name. Source:
    `deberta/spm_tokenizer.py`, SPMTokenizer. Deliberate difference: where the file lacks one of the first four, the
    official code invents an id for it and goes on padding with 0, whatever piece that is; here it is an error.

    Attributes:
      vocab_size: the highest id + 1, [MASK] included. The tables of released models have spare rows beyond it.
      pad_id, cls_id, sep_id, unk_id, mask_id: ids of the special tokens.
      fingerprint: SHA-256 of the model file, hexadecimal.
    """

    def __init__(self, model: bytes, *, source: str = "the model") -> None:
        """Takes the bytes of an `spm.model`; `source` names them in errors.

        Raises:
          ValueError: not a SentencePiece model, or one without DeBERTa's special pieces.
        """
        self._model = model
        self._spm = _load(model, source)
        pieces = self._spm.get_piece_size()
        ids = {name: self._spm.piece_to_id(name) for name in (PAD, CLS, SEP, UNK, MASK)}
        found = {name: i for name, i in ids.items() if self._spm.id_to_piece(i) == name}
        if found.get(PAD) != 0 or not {CLS, SEP} <= found.keys() or found.get(UNK) != self._spm.unk_id():
            present = ", ".join(f"{name} {i}" for name, i in found.items()) or "none of them"
            raise ValueError(
                f"{source} has {present}; DeBERTa needs the pieces [PAD] with id 0, [CLS], [SEP], and [UNK] as the "
                "unknown piece; train such a model with `deberta-jax tokenizer`, or spm_train --pad_id=0 --bos_id=1 "
                "--eos_id=2 --unk_id=3 --pad_piece=[PAD] --bos_piece=[CLS] --eos_piece=[SEP] --unk_piece=[UNK]"
            )
        self.pad_id, self.cls_id, self.sep_id, self.unk_id = (found[name] for name in (PAD, CLS, SEP, UNK))
        self.mask_id = found.get(MASK, pieces)
        self.vocab_size = max(pieces, self.mask_id + 1)
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._model,)  # data workers get the bytes, not SentencePiece's C++ object

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Reads an `spm.model`, by whatever name. Raises FileNotFoundError, and ValueError as `Tokenizer` does."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file; give the spm.model of a DeBERTa v2, v3 or mDeBERTa")
        return cls(path.read_bytes(), source=str(path))

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads the `spm.model` of a folder. Raises FileNotFoundError, and ValueError as `Tokenizer` does."""
        folder = Path(folder)
        if not (folder / MODEL_FILE).is_file():
            held = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
            raise FileNotFoundError(
                f"{folder} has no {MODEL_FILE} (it holds: {held or 'nothing'}); copy it there from the released model, "
                "or train one with `deberta-jax tokenizer`"
            )
        return cls.from_file(folder / MODEL_FILE)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes spm.model, byte for byte as it was read, and the tokenizer_config.json that transformers reads.

        The folder is made if need be; files of these names are replaced, each at once or not at all.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps(_TRANSFORMERS_CONFIG, indent=2) + "\n"
        for name, content in ((MODEL_FILE, self._model), (CONFIG_FILE, config.encode())):
            part = folder / f"{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)

    @property
    def is_special(self) -> NDArray[np.bool_]:
        """[V] bool: [PAD], [CLS], [SEP], [UNK] and [MASK]. Read-only."""
        special = np.zeros(self.vocab_size, bool)
        special[[self.pad_id, self.cls_id, self.sep_id, self.unk_id, self.mask_id]] = True
        special.setflags(write=False)
        return special

    @property
    def starts_word(self) -> NDArray[np.bool_]:
        """[V] bool: a whole-word mask may begin at this piece. Read-only. Source: `part_of_whole_word`, negated.

        True for pieces that begin with ▁, for single punctuation, control and white-space characters, and for special
        tokens. Byte pieces (<0xF0>) are False, as by the official rule, though one may be the first byte of a
        character: only so is a character never masked in part, and a character that follows a space has a "▁" of its
        own in front of its bytes, which does start a word.
        """
        pieces = self.pieces(range(self.vocab_size))
        starts = np.array([piece.startswith(_WORD_START) or _stands_alone(piece) for piece in pieces])
        starts |= self.is_special
        starts.setflags(write=False)
        return starts

    def encode(self, text: str, *, parse_mask: bool = False) -> list[int]:
        """The ids of a text, without special tokens: what SentencePiece's own `encode` gives.

        "[MASK]", "[CLS]" and the like in the text are plain characters (unless the model file itself declares them as
        user-defined symbols, which no released file does).

        Args:
          parse_mask: read each "[MASK]" as the mask token. The text behind it starts a new word only where white space
            does, so that "is [MASK]." ends in the same "." as the unmasked sentence.
        """
        if not parse_mask:
            return self._spm.encode(text)
        first, *others = text.split(MASK)
        ids = self._spm.encode(first)
        for part in others:
            spm = self._spm if part[:1].isspace() else self._spm_within_word
            ids += [self.mask_id, *spm.encode(part)]
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores. Raises ValueError for a single string, whose letters are not texts."""
        if isinstance(texts, str):
            raise ValueError("encode_batch was given one string; give a list of strings, or call encode")
        return self._spm.encode(list(texts))

    def __call__(
        self, text: str, pair: str | None = None, *, max_length: int | None = None, parse_mask: bool = False
    ) -> Encoding:
        """Encodes a text or a pair of texts with [CLS] and [SEP].

        What exceeds `max_length` is cut from the end of the longer text until both are equally long, then from both
        in turn, B first. Deliberate difference: the official `_truncate_segments` puts the shorter text first once it
        truncates, which swaps A and B, and cuts from the front or the back at random; here A stays A.

        Args:
          max_length: the most ids, special tokens included; None: no limit.
          parse_mask: see `encode`.

        Raises:
          ValueError: max_length is too small for the special tokens alone.
        """
        a = self.encode(text, parse_mask=parse_mask)
        b = [] if pair is None else self.encode(pair, parse_mask=parse_mask)
        if max_length is not None:
            specials = 2 if pair is None else 3
            if max_length < specials:
                raise ValueError(
                    f"max_length is {max_length}; it must be at least {specials}, the special tokens around "
                    f"{'a text' if pair is None else 'a pair'}"
                )
            a, b = _truncate(a, b, max_length - specials)
        head = [self.cls_id, *a, self.sep_id]
        tail = [] if pair is None else [*b, self.sep_id]
        return Encoding(input_ids=head + tail, token_type_ids=[0] * len(head) + [1] * len(tail))

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids. Normalisation is not undone: "ﬁ" comes back as "fi".

        Args:
          skip_special: leave the special tokens out, [UNK] included; otherwise they are written by name, with a space
            on either side unless a word goes on behind them.

        Raises:
          ValueError: an id is not in 0..vocab_size-1.
        """
        known = self._checked(ids)
        if skip_special:
            return self._spm.decode([i for i in known if not self.is_special[i]])
        text = ""
        for special, group in itertools.groupby(known, key=lambda i: bool(self.is_special[i])):
            run = list(group)
            words = " ".join(self.pieces(run)) if special else self._spm.decode(run)
            spaced = special or self.pieces(run[:1])[0].startswith(_WORD_START)
            text += f" {words}" if text and spaced else words
        return text

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece of each id, such as "▁the". Raises ValueError for an id that is not in 0..vocab_size-1."""
        inside = self._spm.get_piece_size()
        return [self._spm.id_to_piece(i) if i < inside else MASK for i in self._checked(ids)]

    def _checked(self, ids: Iterable[int]) -> list[int]:
        """The ids as Python's own integers."""
        known = [operator.index(i) for i in ids]
        for i in known:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} has no piece; ids of this tokenizer are 0 to {self.vocab_size - 1}")
        return known

    @functools.cached_property
    def _spm_within_word(self) -> sentencepiece.SentencePieceProcessor:
        """The same model, but a text's first word gets no ▁."""
        return _load(self._model + _NO_WORD_START, "the model")


def _load(model: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    damaged = (
        f"{source} is not a SentencePiece model ({len(model)} bytes); it may be damaged or cut short, "
        "or a Git LFS pointer instead of the file; fetch it again"
    )
    if not model:  # SentencePiece would take it and log to stderr
        raise ValueError(damaged)
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise ValueError(damaged) from None


def _stands_alone(piece: str) -> bool:
    """A single white-space, control or punctuation character; ASCII symbols such as $ count as punctuation."""
    if len(piece) != 1:
        return False
    ascii_symbol = "!" <= piece <= "~" and not piece.isalnum()
    return ascii_symbol or piece.isspace() or unicodedata.category(piece)[0] in "CP"


def _truncate(a: list[int], b: list[int], budget: int) -> tuple[list[int], list[int]]:
    """Cuts the ends off, longest first, so that both together have at most `budget` ids."""
    if len(a) + len(b) <= budget:
        return a, b
    keep = min(len(a), max(budget - len(b), budget - budget // 2))
    return a[:keep], b[: budget - keep]


# --- training ---------------------------------------------------------------------------------------------------------
