"""Converts text to ids and back, exactly as for the released models: with SentencePiece for v2, v3 and mDeBERTa,
byte-level BPE for v1 and RoBERTa, WordPiece for BERT and ELECTRA, SentencePiece with other rules for XLNet.

Why not transformers' tokenizers: that of v2 and v3 drops byte fallback and SentencePiece's own normalization, so that
text the released models were trained on ("ﬁ", "①", full-width letters, no-break spaces, emoji) becomes [UNK]; that of
v1 puts two [SEP] between the texts of a pair, where the models saw one.
"""

import dataclasses
import itertools
import json
import operator
import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Self, overload

import numpy as np
from jaxtyping import Bool

from ..errors import UserError
from ..mirrors import local_folder, written_to
from .batch import PaddedBatch, Padding, as_list, check_text, pad, texts_and_pairs
from .folder import check_files, read_vocabulary, write_files
from .spm import SentencePiece
from .vocabulary import CLS, CONFIG_FILE, MASK, PAD, SENTENCE_FIELDS, SEP, SPECIAL_FIELDS, UNK, Offset, Vocabulary


@dataclasses.dataclass(frozen=True)
class Encoding:
    """One input of a model without padding: `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`; RoBERTa has two [SEP] before B.

    XLNet has [CLS] at the end: `A [SEP] [CLS]` or `A [SEP] B [SEP] [CLS]`.

    Attributes:
      input_ids: The ids.
      token_type_ids: For each id, 0 up to the first [SEP] and 1 after it, and 2 for a [CLS] at the end. Released
        DeBERTas and RoBERTa ignore them.
      offsets: For each id, the (start, end) of the text that the piece comes from, so that it is `text[start:end]`;
        None for [CLS] and [SEP]. None as a whole unless `return_offsets` was set. Offsets count characters of the
        original text, of B where token_type_ids is 1. They leave out white space around a piece; a piece of nothing
        else has start == end. Pieces that share a character (the bytes of an emoji, the letters of "ﬁ") each have all
        of it.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    offsets: list[Offset | None] | None = None


class JoinedIds(NamedTuple):
    """The ids of one or two texts with special tokens, and as many token types; see `Encoding`."""

    input_ids: list[int]
    token_type_ids: list[int]


class Tokenizer:
    """A vocabulary with its special tokens: SentencePiece (DeBERTa v2, v3, mDeBERTa, XLNet), byte-level BPE (v1,
    RoBERTa) or WordPiece (BERT, ELECTRA).

    It can be pickled. The ids of the special tokens are those of the released models; see `SentencePiece`,
    `ByteLevelBPE` and `WordPiece`. They are called [PAD], [CLS], [SEP], [UNK] and [MASK] here, whatever their pieces
    are.

    Attributes:
      vocab_size: The highest id + 1, [MASK] included. The tables of released models have spare rows beyond it.
      pad_id, cls_id, sep_id, unk_id, mask_id: Ids of the special tokens.
      pair_separators: Number of [SEP] between the two texts of a pair: 2 for RoBERTa, otherwise 1.
      cls_last: Whether [CLS] is the last token, as in XLNet, whose padding is on the left; otherwise it is the first.
      vocab_type: "spm", "gpt2" (the byte-level BPE of v1), "roberta", "wordpiece" or "xlnet".
      fingerprint: SHA-256 of the model file or, for the other kinds, of the content of their files, in hexadecimal.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Makes a tokenizer of a vocabulary; see `from_folder`, `from_file` and `from_bytes` for files."""
        self._vocabulary = vocabulary
        special = vocabulary.special_ids
        self.pad_id, self.cls_id, self.sep_id, self.unk_id, self.mask_id = (
            special[name] for name in (PAD, CLS, SEP, UNK, MASK)
        )
        self.pair_separators, self.cls_last = vocabulary.pair_separators, vocabulary.cls_last
        self.vocab_size = vocabulary.size
        self.vocab_type = vocabulary.vocab_type
        self.fingerprint = vocabulary.fingerprint

    @property
    def vocabulary(self) -> Vocabulary:
        """The pieces, without [CLS] and [SEP] around a text."""
        return self._vocabulary

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._vocabulary,)

    @classmethod
    def from_bytes(cls, model: bytes, *, source: str = "the model") -> Self:
        """Returns the tokenizer of a SentencePiece model in memory.

        Args:
          model: The content of an `spm.model`.
          source: Name of the model, for error messages.

        Raises:
          UserError: The bytes are not a SentencePiece model, or lack DeBERTa's special pieces.
        """
        return cls(SentencePiece(model, source=source))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a SentencePiece model from a file of any name.

        Raises:
          MissingFileError: There is no such file.
          UserError: The file is not a SentencePiece model, lacks DeBERTa's special pieces, or has the size of a
            released file but other content.
        """
        return cls(SentencePiece.from_file(path))

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads the vocabulary of a folder: `spm.model`, `vocab.json` and `merges.txt`, `bpe_encoder.bin`,
        `vocab.txt`, `spiece.model`, or `tokenizer.json`; and the tokens that were added to it.

        tokenizer.json is used if the folder has nothing else, or other pieces in it than in the other files. If the
        folder has several kinds, `vocab_type` ("spm", "gpt2", "roberta", "wordpiece" or "xlnet") in its
        tokenizer_config.json selects one. That file also defines capitals and accents, punctuation, and the tokens
        that were added. "deberta-v3-tiny" names the tokenizer of the model in the package.

        Raises:
          MissingFileError: The folder has no vocabulary.
          MissingPackageError: Any kind but spm.model was found, and the package tokenizers is not installed.
          UserError: A file is damaged, was not saved with the model in the folder, or belongs to another kind of model;
            a setting or the class of the tokenizer is not supported; or several vocabularies were found and
            `vocab_type` is not set.
        """
        folder = local_folder(folder)
        check_files(folder)
        return cls(read_vocabulary(folder))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files of the vocabulary, and the tokenizer_config.json that transformers reads.

        The files are spm.model, spiece.model or tokenizer.json, byte for byte as it was read; or vocab.json and
        merges.txt; or vocab.txt. Added tokens are in tokenizer_config.json. The folder is created if it does not exist,
        and files of these names are replaced together: a process that is killed leaves the old tokenizer or the new
        one.
        tokenizer.json, added_tokens.json and special_tokens_map.json of another tokenizer are removed, because they
        would be read too. In the folder of a model, the digests in model.sha256 are updated.

        Raises:
          OSError: The folder cannot be written.
          UserError: model.sha256 is damaged.
        """
        with written_to(folder) as local:
            write_files(local, self.files())

    def files(self) -> dict[str, bytes]:
        """Returns the content of the files that `save` writes, by name."""
        vocabulary = self._vocabulary
        fields = {**SENTENCE_FIELDS, **SPECIAL_FIELDS}
        tokens = {field: vocabulary.piece(vocabulary.special_ids[name]) for field, name in fields.items()}
        tokens |= {field: vocabulary.settings[field] for field in SENTENCE_FIELDS if field in vocabulary.settings}
        config = {**vocabulary.settings, "vocab_type": vocabulary.vocab_type, **tokens}
        return vocabulary.files() | {CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode()}

    @property
    def is_special(self) -> Bool[np.ndarray, "V"]:
        """Whether each id is [PAD], [CLS], [SEP], [UNK], [MASK] or an added token that is special. Read-only."""
        special = np.zeros(self.vocab_size, bool)
        special[list(self._vocabulary.hidden_ids)] = True
        special.setflags(write=False)
        return special

    @property
    def starts_word(self) -> Bool[np.ndarray, "V"]:
        """Whether a whole-word mask may begin at each id. Read-only. Source: `part_of_whole_word`, negated.

        True for pieces that begin with the space before a word ("▁", in v1 "Ġ") or, in a WordPiece, without "##"; for
        single punctuation, control and white-space characters; and for special tokens.
        """
        starts = np.array([self._vocabulary.starts_word(i) for i in range(self.vocab_size)])
        starts |= self.is_special
        starts.setflags(write=False)
        return starts

    def encode(self, text: str, *, parse_mask: bool = False) -> list[int]:
        """Returns the ids of a text without special tokens, as SentencePiece, GPT-2 or BERT themselves encode it.

        "[MASK]", "[CLS]" and the like in the text are plain characters (unless the model file itself declares them as
        user-defined symbols, which no released file does).

        Args:
          text: The text.
          parse_mask: Read each "[MASK]" as the mask token, which replaces a piece and the space before it. The text
            after it starts a new word only after white space, so that "is [MASK]." ends in the same "." as the
            unmasked sentence.
        """
        return self._encode(text, parse_mask=parse_mask, return_offsets=False)[0]

    def _encode(self, text: str, *, parse_mask: bool, return_offsets: bool) -> tuple[list[int], list[Offset]]:
        """Returns the ids, and as many offsets or none."""
        check_text(text, "text")
        ids, offsets, position = [], [], 0
        parts = text.split(MASK) if parse_mask else [text]
        for i, part in enumerate(parts):
            if i > 0:
                ids.append(self.mask_id)
                offsets.append((position, position + len(MASK)))
                position += len(MASK)
            words = part if i == len(parts) - 1 else part.removesuffix(" ")  # the mask replaces the space before it
            ids += self._vocabulary.encode(words, after_mask=i > 0)
            if return_offsets:
                for start, end in self._vocabulary.offsets(words, after_mask=i > 0):
                    offsets.append((position + start, position + end))
            position += len(part)
        return ids, offsets if return_offsets else []

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, as `encode` does, computed on all cores.

        Raises:
          ValueError: `texts` is a single string, whose characters would be taken for texts.
        """
        if isinstance(texts, str):
            raise UserError("encode_batch was given a single string; give a list of strings, or call encode")
        items = as_list(texts, "texts")
        for i, text in enumerate(items):
            check_text(text, f"text {i}")
        return self._vocabulary.encode_batch(items)

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload] (a string is a sequence of strings)
        self,
        text: str,
        pair: str | None = None,
        *,
        max_length: int | None = None,
        parse_mask: bool = False,
        return_offsets: bool = False,
    ) -> Encoding: ...

    @overload
    def __call__(
        self,
        text: Sequence[str] | Sequence[Sequence[str]],
        pair: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        parse_mask: bool = False,
        return_offsets: bool = False,
        padding: Literal[False] = False,
    ) -> list[Encoding]: ...

    @overload
    def __call__(
        self,
        text: Sequence[str] | Sequence[Sequence[str]],
        pair: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        parse_mask: bool = False,
        padding: Literal[True, "longest", "max_length"],
    ) -> PaddedBatch: ...

    def __call__(
        self,
        text: str | Sequence[str] | Sequence[Sequence[str]],
        pair: str | Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        parse_mask: bool = False,
        return_offsets: bool = False,
        padding: Padding = False,
    ) -> Encoding | list[Encoding] | PaddedBatch:
        """Encodes a text, a pair of texts, or a batch of either, with [CLS] and [SEP].

        `tokenizer("a b")` and `tokenizer("a b", "c")` return an `Encoding`; `tokenizer(["a b", "c"])`,
        `tokenizer(["a b", "c"], ["d", "e"])` and `tokenizer([("a b", "d"), ("c", "e")])` a list of them or, with
        `padding`, arrays.

        A pair that exceeds `max_length` is cut at the end of the longer text until both are equally long, then at the
        end of both in turn, B first. Deliberate difference: the official `_truncate_segments` puts the shorter text
        first if it truncates, which swaps A and B, and cuts the front or the back at random; here A stays A.

        Args:
          text: Text A, or a list of texts or of pairs.
          pair: Text B, or a list of as many texts.
          max_length: Maximum number of ids, including special tokens (default: no limit).
          parse_mask: See `encode`.
          return_offsets: Fill `Encoding.offsets`, which takes longer than the ids.
          padding: Return a batch as a `PaddedBatch`: True or "longest" pads to the longest input, "max_length" to
            `max_length`.

        Raises:
          UserError: `max_length` is too small for the special tokens alone, something is not a string, or `padding`
            does not fit the other arguments.
        """
        if not isinstance(text, str):
            options = {"max_length": max_length, "parse_mask": parse_mask, "return_offsets": return_offsets}
            encodings = [self._encode_input(*item, **options) for item in texts_and_pairs(text, pair)]
            if padding is False:
                return encodings
            if return_offsets:
                raise UserError("return_offsets has no arrays; call without padding to get the offsets of each text")
            rows = [(encoding.input_ids, encoding.token_type_ids) for encoding in encodings]
            return pad(rows, padding=padding, max_length=max_length, pad_id=self.pad_id, on_left=self.cls_last)
        if padding is not False:
            raise UserError(f"padding is {padding!r} for a single text; give a list, such as [text]")
        second = None if pair is None else check_text(pair, "the pair")
        return self._encode_input(
            text, second, max_length=max_length, parse_mask=parse_mask, return_offsets=return_offsets
        )

    def _encode_input(
        self, text: str, pair: str | None, *, max_length: int | None, parse_mask: bool, return_offsets: bool
    ) -> Encoding:
        a, a_offsets = self._encode(text, parse_mask=parse_mask, return_offsets=return_offsets)
        b, b_offsets = self._encode(pair or "", parse_mask=parse_mask, return_offsets=return_offsets)
        if max_length is not None:
            special = 2 if pair is None else 2 + self.pair_separators
            if max_length < special:
                raise UserError(
                    f"max_length is {max_length}; it must be at least {special}, the number of special tokens around "
                    f"{'a text' if pair is None else 'a pair'}"
                )
            a, b = _truncate(a, b, max_length - special)
        input_ids, token_type_ids = self.with_special_tokens(a, None if pair is None else b)
        offsets = None
        if return_offsets:
            offsets = [*a_offsets[: len(a)], None]
            offsets += [] if pair is None else [*[None] * (self.pair_separators - 1), *b_offsets[: len(b)], None]
            offsets = [*offsets, None] if self.cls_last else [None, *offsets]
        return Encoding(input_ids, token_type_ids, offsets)

    def with_special_tokens(self, a: Iterable[int], b: Iterable[int] | None = None) -> JoinedIds:
        """Returns the ids of a text, or of a pair of texts, with [CLS] and [SEP] around them."""
        head = [*a, self.sep_id]
        tail = [] if b is None else [*[self.sep_id] * (self.pair_separators - 1), *b, self.sep_id]
        ids, types = head + tail, [0] * len(head) + [1] * len(tail)
        if self.cls_last:
            return JoinedIds([*ids, self.cls_id], [*types, 2])
        return JoinedIds([self.cls_id, *ids], [0, *types])

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Returns the text of ids. Normalization is not reverted: "ﬁ" becomes "fi".

        Args:
          ids: The ids.
          skip_special: Leave out special tokens, [UNK] included (default). Otherwise they are written by name, with a
            space on either side unless the next piece continues a word.

        Raises:
          ValueError: An id is not in 0..vocab_size-1.
        """
        tokens, special_ids = self._checked(ids), set(self._vocabulary.special_ids.values())
        if skip_special:
            return self._vocabulary.decode([i for i in tokens if i not in self._vocabulary.hidden_ids])
        text = ""
        for special, group in itertools.groupby(tokens, key=special_ids.__contains__):
            run = list(group)
            if special:
                text += " " * bool(text) + " ".join(self.pieces(run))
            else:
                text += self._vocabulary.decode(run, after_special=bool(text))
        return text

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Returns the piece of each id, such as "▁the".

        Raises:
          ValueError: An id is not in 0..vocab_size-1.
        """
        return [self._vocabulary.piece(i) for i in self._checked(ids)]

    def _checked(self, ids: Iterable[int]) -> list[int]:
        """Returns the ids as Python integers, or raises ValueError if one is out of range."""
        tokens = [operator.index(i) for i in ids]
        for i in tokens:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} has no piece; ids of this tokenizer are 0 to {self.vocab_size - 1}")
        return tokens


def _truncate(a: list[int], b: list[int], budget: int) -> tuple[list[int], list[int]]:
    """Cuts the ends of two lists, the longer first, so that both together have at most `budget` ids."""
    if len(a) + len(b) <= budget:
        return a, b
    keep = min(len(a), max(budget - len(b), budget - budget // 2))
    return a[:keep], b[: budget - keep]
