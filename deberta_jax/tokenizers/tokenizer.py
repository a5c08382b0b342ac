"""Text to ids and back, exactly as the released models were trained: SentencePiece for v2, v3 and mDeBERTa, byte-level
BPE for v1 and RoBERTa, WordPiece for BERT and ELECTRA.

Why not transformers' tokenizers: that of v2 and v3 drops byte fallback and SentencePiece's own normalization, so that
text the released models were trained on ("ﬁ", "①", full-width letters, no-break spaces, emoji) becomes [UNK]; that of
v1 puts two [SEP] between the texts of a pair, where the models saw one.
"""

import dataclasses
import itertools
import json
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingFileError, UserError
from .bpe import FORMS, ByteLevelBPE
from .spm import MODEL_FILE, SentencePiece
from .vocabulary import CLS, CONFIG_FILE, MASK, PAD, SEP, UNK, Offset, Vocabulary
from .wordpiece import VOCAB_FILE, WordPiece

# transformers' names of special tokens.
_TRANSFORMERS_TOKENS = {
    "bos_token": CLS,
    "eos_token": SEP,
    "cls_token": CLS,
    "sep_token": SEP,
    "pad_token": PAD,
    "unk_token": UNK,
    "mask_token": MASK,
}


class _Kind(NamedTuple):
    """One kind of vocabulary in a folder."""

    label: str
    forms: tuple[tuple[str, ...], ...]  # the files of any of these are a whole vocabulary
    vocab_types: tuple[str, ...]
    read: Callable[[Path], Vocabulary]

    def is_in(self, folder: Path) -> bool:
        return any(all((folder / name).is_file() for name in form) for form in self.forms)


_KINDS = (
    _Kind(MODEL_FILE, ((MODEL_FILE,),), ("spm",), lambda folder: SentencePiece.from_file(folder / MODEL_FILE)),
    _Kind("byte-level BPE", FORMS, ("gpt2", "roberta"), ByteLevelBPE.from_folder),
    _Kind(f"WordPiece's {VOCAB_FILE}", ((VOCAB_FILE,),), ("wordpiece",), WordPiece.from_folder),
)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """One input of a model: `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, not padded; before B, RoBERTa has two [SEP].

    Attributes:
      input_ids: the ids.
      token_type_ids: as many; 0 up to the first [SEP], 1 for what follows. Released DeBERTas and RoBERTa ignore them.
      offsets: as many, if asked for: (start, end) of each piece, so that `text[start:end]` is what it came from; None
        for [CLS] and [SEP]. They count characters of the original text, of B where token_type_ids is 1. White space
        around a piece is left out: a piece that is nothing else has start == end. Pieces that share a character (the
        bytes of an emoji, the letters of "ﬁ") each have all of it.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    offsets: list[Offset | None] | None = None


class Tokenizer:
    """A vocabulary with its special tokens: SentencePiece's (DeBERTa v2, v3, mDeBERTa), byte-level BPE's (v1, RoBERTa)
    or WordPiece's (BERT, ELECTRA).

    It can be pickled. The ids of the special tokens are those of the released models; see `SentencePiece`,
    `ByteLevelBPE` and `WordPiece`. Here they are [PAD], [CLS], [SEP], [UNK] and [MASK], whatever their pieces are.

    Attributes:
      vocab_size: the highest id + 1, [MASK] included. The tables of released models have spare rows beyond it.
      pad_id, cls_id, sep_id, unk_id, mask_id: ids of the special tokens.
      pair_separators: how many [SEP] stand between two texts, 1 or, in RoBERTa, 2.
      fingerprint: SHA-256 of the model file, hexadecimal; of the others, that of what their files say.
    """

    def __init__(self, model: bytes | Vocabulary, *, source: str = "the model") -> None:
        """Takes the bytes of an `spm.model`, which `source` names in errors, or a vocabulary.

        Raises:
          ValueError: not a SentencePiece model, or one without DeBERTa's special pieces.
        """
        vocabulary = SentencePiece(model, source=source) if isinstance(model, bytes) else model
        self._vocabulary: Vocabulary = vocabulary
        special = vocabulary.special_ids
        self.pad_id, self.cls_id, self.sep_id, self.unk_id, self.mask_id = (
            special[name] for name in (PAD, CLS, SEP, UNK, MASK)
        )
        self.pair_separators = vocabulary.pair_separators
        self.vocab_size = vocabulary.size
        self.fingerprint = vocabulary.fingerprint

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._vocabulary,)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Reads an `spm.model`, by whatever name.

        Raises:
          FileNotFoundError: no such file.
          ValueError: as `Tokenizer` does; or the file is as long as a released one, but has other bytes.
        """
        return cls(SentencePiece.from_file(path))

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what a folder has: `spm.model`, `vocab.json` and `merges.txt`, `bpe_encoder.bin`, or `vocab.txt`.

        Of a folder with several kinds, the `vocab_type` ("spm", "gpt2", "roberta" or "wordpiece") in its
        tokenizer_config.json says which is the model's. That file also says whether a WordPiece keeps capitals and
        accents.

        Raises:
          FileNotFoundError: none of them is there.
          ImportError: any but spm.model, and the package tokenizers is not installed.
          ValueError: a damaged file, one of another model, or several kinds and no word which.
        """
        folder = Path(folder)
        kinds = [kind for kind in _KINDS if kind.is_in(folder)]
        if not kinds:
            held = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
            wanted = " or ".join(" with ".join(form) for kind in _KINDS for form in kind.forms)
            raise MissingFileError(
                f"{folder} has no {wanted} (it holds: {held or 'nothing'}); copy it there from the released model, or "
                "train a SentencePiece model with `deberta-jax tokenizer`"
            )
        if len(kinds) > 1:
            said = _vocab_type(folder / CONFIG_FILE)
            labels = " as well as ".join(kind.label for kind in kinds)
            choices = " or ".join(f'{{"vocab_type": "{name}"}}' for kind in kinds for name in kind.vocab_types)
            kinds = [kind for kind in kinds if said in kind.vocab_types]
            if not kinds:
                raise UserError(
                    f"{folder} has {labels}; remove the one that is not the model's, or write {choices} to its "
                    f"{CONFIG_FILE}"
                )
        return cls(kinds[0].read(folder))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files of the vocabulary, and the tokenizer_config.json that transformers reads.

        These are spm.model, byte for byte as it was read; or vocab.json and merges.txt, or vocab.txt, written anew. The
        folder is made if need be; files of these names are replaced, each at once or not at all.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = self._vocabulary
        tokens = {token: vocabulary.piece(vocabulary.special_ids[name]) for token, name in _TRANSFORMERS_TOKENS.items()}
        config = {**vocabulary.settings, "vocab_type": vocabulary.vocab_type, **tokens}
        files = self._vocabulary.files() | {CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode()}
        for name, content in files.items():
            part = folder / f"{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)

    @property
    def is_special(self) -> NDArray[np.bool_]:
        """[V] bool: [PAD], [CLS], [SEP], [UNK] and [MASK]. Read-only."""
        special = np.zeros(self.vocab_size, bool)
        special[list(self._vocabulary.special_ids.values())] = True
        special.setflags(write=False)
        return special

    @property
    def starts_word(self) -> NDArray[np.bool_]:
        """[V] bool: a whole-word mask may begin at this piece. Read-only. Source: `part_of_whole_word`, negated.

        True for pieces that begin with the space before a word ("▁", of v1 "Ġ"; WordPiece's that do not begin with
        "##"), for single punctuation, control and white-space characters, and for special tokens.
        """
        starts = np.array([self._vocabulary.starts_word(i) for i in range(self.vocab_size)])
        starts |= self.is_special
        starts.setflags(write=False)
        return starts

    def encode(self, text: str, *, parse_mask: bool = False) -> list[int]:
        """The ids of a text, without special tokens: what SentencePiece's own `encode` gives, GPT-2's or BERT's.

        "[MASK]", "[CLS]" and the like in the text are plain characters (unless the model file itself declares them as
        user-defined symbols, which no released file does).

        Args:
          parse_mask: read each "[MASK]" as the mask token, which stands for a piece and the space before it. The text
            behind it starts a new word only where white space does, so that "is [MASK]." ends in the same "." as the
            unmasked sentence.
        """
        return self._encode(text, parse_mask=parse_mask, return_offsets=False)[0]

    def _encode(self, text: str, *, parse_mask: bool, return_offsets: bool) -> tuple[list[int], list[Offset]]:
        """The ids, and as many offsets or none."""
        ids, offsets, at = [], [], 0
        parts = text.split(MASK) if parse_mask else [text]
        for i, part in enumerate(parts):
            if i > 0:
                ids.append(self.mask_id)
                offsets.append((at, at + len(MASK)))
                at += len(MASK)
            words = part if i == len(parts) - 1 else part.removesuffix(" ")
            ids += self._vocabulary.encode(words, after_mask=i > 0)
            if return_offsets:
                for start, end in self._vocabulary.offsets(words, after_mask=i > 0):
                    offsets.append((at + start, at + end))
            at += len(part)
        return ids, offsets if return_offsets else []

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores. Raises ValueError for a single string, whose letters are not texts."""
        if isinstance(texts, str):
            raise UserError("encode_batch was given one string; give a list of strings, or call encode")
        return self._vocabulary.encode_batch(texts)

    def __call__(
        self,
        text: str,
        pair: str | None = None,
        *,
        max_length: int | None = None,
        parse_mask: bool = False,
        return_offsets: bool = False,
    ) -> Encoding:
        """Encodes a text or a pair of texts with [CLS] and [SEP].

        What exceeds `max_length` is cut from the end of the longer text until both are equally long, then from both
        in turn, B first. Deliberate difference: the official `_truncate_segments` puts the shorter text first once it
        truncates, which swaps A and B, and cuts from the front or the back at random; here A stays A.

        Args:
          max_length: the most ids, special tokens included; None: no limit.
          parse_mask: see `encode`.
          return_offsets: fill `Encoding.offsets`, which takes longer than the ids.

        Raises:
          ValueError: max_length is too small for the special tokens alone.
        """
        a, a_offsets = self._encode(text, parse_mask=parse_mask, return_offsets=return_offsets)
        b, b_offsets = self._encode(pair or "", parse_mask=parse_mask, return_offsets=return_offsets)
        if max_length is not None:
            specials = 2 if pair is None else 2 + self.pair_separators
            if max_length < specials:
                raise UserError(
                    f"max_length is {max_length}; it must be at least {specials}, the special tokens around "
                    f"{'a text' if pair is None else 'a pair'}"
                )
            a, b = _truncate(a, b, max_length - specials)
        input_ids, token_type_ids = self.join(a, None if pair is None else b)
        offsets = None
        if return_offsets:
            offsets = [None, *a_offsets[: len(a)], None]
            offsets += [] if pair is None else [*[None] * (self.pair_separators - 1), *b_offsets[: len(b)], None]
        return Encoding(input_ids, token_type_ids, offsets)

    def join(self, a: Iterable[int], b: Iterable[int] | None = None) -> tuple[list[int], list[int]]:
        """The ids and the token types of a text, or of a pair, given as ids without special tokens."""
        head = [self.cls_id, *a, self.sep_id]
        tail = [] if b is None else [*[self.sep_id] * (self.pair_separators - 1), *b, self.sep_id]
        return head + tail, [0] * len(head) + [1] * len(tail)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids. Normalization is not undone: "ﬁ" comes back as "fi".

        Args:
          skip_special: leave the special tokens out, [UNK] included; otherwise they are written by name, with a space
            on either side unless a word goes on behind them.

        Raises:
          ValueError: an id is not in 0..vocab_size-1.
        """
        known, special_ids = self._checked(ids), set(self._vocabulary.special_ids.values())
        if skip_special:
            return self._vocabulary.decode([i for i in known if i not in special_ids])
        text = ""
        for special, group in itertools.groupby(known, key=special_ids.__contains__):
            run = list(group)
            if special:
                text += " " * bool(text) + " ".join(self.pieces(run))
            else:
                text += self._vocabulary.decode(run, after_special=bool(text))
        return text

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece of each id, such as "▁the". Raises ValueError for an id that is not in 0..vocab_size-1."""
        return [self._vocabulary.piece(i) for i in self._checked(ids)]

    def _checked(self, ids: Iterable[int]) -> list[int]:
        """The ids as Python's own integers."""
        known = [operator.index(i) for i in ids]
        for i in known:
            if not 0 <= i < self.vocab_size:
                raise UserError(f"id {i} has no piece; ids of this tokenizer are 0 to {self.vocab_size - 1}")
        return known


def _truncate(a: list[int], b: list[int], budget: int) -> tuple[list[int], list[int]]:
    """Cuts the ends off, longest first, so that both together have at most `budget` ids."""
    if len(a) + len(b) <= budget:
        return a, b
    keep = min(len(a), max(budget - len(b), budget - budget // 2))
    return a[:keep], b[: budget - keep]


def _vocab_type(path: Path) -> object:
    """What a tokenizer_config.json says of the kind of vocabulary, if anything."""
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return config.get("vocab_type") if isinstance(config, dict) else None
