"""Tokens that were added to a vocabulary, as `add_tokens` of transformers does: "[ENT]", a line break, and the like."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..errors import UserError
from .vocabulary import MASK, Offset, Vocabulary, import_tokenizers

DECODER = "added_tokens_decoder"  # the field of tokenizer_config.json


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A string with a separate id wherever it occurs in a text. The flags are those of the package tokenizers.

    Attributes:
      content: The string.
      lstrip, rstrip: The token includes the white space on its left, or on its right.
      normalized: The string is looked for in the normalized text, in its own normalized form.
      single_word: The token is found only where no letter or digit touches it.
      special: Decoded text leaves the token out, and no mask replaces it.
    """

    content: str
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False
    special: bool = False


AddedTokens = Mapping[int, AddedToken]


class ExtendedVocabulary:
    """A vocabulary and the tokens that were added to it; a `Vocabulary`.

    The package tokenizers finds the added tokens in a text, by the rules of transformers. The vocabulary encodes the
    text between them. [PAD], [CLS], [SEP], [UNK] and [MASK] are not looked for, so no text can contain them.
    """

    def __init__(self, base: Vocabulary, tokens: AddedTokens, *, source: str) -> None:
        """Makes a vocabulary of another one and its added tokens.

        Args:
          base: The vocabulary.
          tokens: The added tokens by their ids. They may include the special tokens.
          source: Name of the file or folder, for error messages.

        Raises:
          MissingPackageError: The package tokenizers is not installed.
          UserError: Two tokens have the same content, or a token has the id of a piece or a piece has its content.
        """
        _check_ids(base, tokens, source=source)
        self._base, self._tokens = base, dict(sorted(tokens.items()))
        self.special_ids: Mapping[str, int] = {**base.special_ids, MASK: _mask_id(base, tokens)}
        special = {i: name for name, i in self.special_ids.items()}
        self._added = {i: token for i, token in self._tokens.items() if i not in special}
        self.hidden_ids = frozenset(special) | {i for i, token in self._added.items() if token.special}
        self.size = max(base.size, max([*special, *self._added]) + 1)
        self.vocab_type, self.pair_separators = base.vocab_type, base.pair_separators
        self.keeps_spaces, self.space_id = base.keeps_spaces, base.space_id
        declared = {
            # transformers has the mask of a byte-level BPE replace the space before it.
            i: AddedToken(base.piece(base.special_ids[name]), lstrip=name == MASK and base.keeps_spaces, special=True)
            for i, name in special.items()
        } | self._tokens
        decoder = {str(i): dataclasses.asdict(declared[i]) for i in sorted(declared)}
        self.settings: Mapping[str, object] = {**base.settings, DECODER: decoder}
        content = base.fingerprint + json.dumps(decoder, sort_keys=True)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()
        self._splitter, self._id_of, self._normalized = _build_splitter(base, self._added)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._base, self._tokens)

    def extended(self, tokens: AddedTokens) -> "ExtendedVocabulary":
        """Returns the vocabulary with further added tokens. Raises as the constructor."""
        return ExtendedVocabulary(self._base, {**self._tokens, **tokens}, source="the vocabulary")

    def normalizer(self) -> Any:
        return self._base.normalizer()

    def encode(self, text: str, *, after_mask: bool = False) -> list[int]:
        ids: list[int] = []
        for start, end, token, ends_with_space in self._split(text):
            if token is not None:
                ids.append(token)
                continue
            ids += self._base.encode(text[start:end], after_mask=after_mask and start == 0)
            ids += [self._base.space_id] if ends_with_space and self._base.space_id is not None else []
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def offsets(self, text: str, *, after_mask: bool = False) -> list[Offset]:
        offsets: list[Offset] = []
        for start, end, token, ends_with_space in self._split(text):
            if token is not None:
                offsets.append(without_spaces(text, start, end))
                continue
            part = self._base.offsets(text[start:end], after_mask=after_mask and start == 0)
            offsets += [(start + first, start + last) for first, last in part]
            offsets += [(end, end)] if ends_with_space and self._base.space_id is not None else []
        return offsets

    def _split(self, text: str) -> Iterable[tuple[int, int, int | None, bool]]:
        """Returns the parts of a text.

        Returns:
          For each part: its start, its end, the id if it is an added token, and whether it ends with a space that
          the package tokenizers keeps as a piece, which it does before a normalized token.
        """
        found = self._splitter.encode(text, add_special_tokens=False)
        parts: list[tuple[int, int, int | None, bool]] = []
        position = 0
        for number, (start, end) in zip(found.ids, found.offsets, strict=True):
            token = self._id_of.get(number)
            if token is None:
                continue
            if start > position:
                is_apart = token in self._normalized and not self._added[token].lstrip
                has_space = is_apart and text[start - 1].isspace()
                parts.append((position, start, None, has_space))
            parts.append((start, end, token, False))
            position = end
        if position < len(text):
            parts.append((position, len(text), None, False))
        return parts

    def decode(self, ids: Sequence[int], *, after_special: bool = False) -> str:
        def decode_run(run: list[int], after: bool) -> str:
            known = [i for i in run if i < self._base.size and i != self._base.special_ids[MASK]]
            return self._base.decode(known, after_special=after)

        return decode_parts(ids, self._added, decode_run, keeps_spaces=self.keeps_spaces, after_special=after_special)

    def piece(self, token: int) -> str:
        if token in self._tokens:
            return self._tokens[token].content
        if token == self.special_ids[MASK]:
            return self._base.piece(self._base.special_ids[MASK])
        return self._base.piece(token) if token < self._base.size else ""

    def id_of(self, piece: str) -> int | None:
        return next((i for i, token in self._tokens.items() if token.content == piece), self._base.id_of(piece))

    def starts_word(self, token: int) -> bool:
        return token in self._added or (token < self._base.size and self._base.starts_word(token))

    def files(self) -> dict[str, bytes]:
        """Returns the files of the vocabulary. The added tokens are in `settings`."""
        return self._base.files()


def decode_parts(
    ids: Sequence[int],
    added: AddedTokens,
    decode_run: Callable[[list[int], bool], str],
    *,
    keeps_spaces: bool,
    after_special: bool,
) -> str:
    """Returns the text of ids.

    Args:
      ids: The ids of the text.
      added: The added tokens. They are written as they are, with a space on either side unless `keeps_spaces`.
      decode_run: Returns the text of ids without added tokens; its second argument is the `after_special` of
        `Vocabulary.decode`.
      keeps_spaces, after_special: See `Vocabulary`.
    """
    text = ""
    for is_added, group in itertools.groupby(ids, key=added.__contains__):
        if not is_added:
            text += decode_run(list(group), not text[-1:].isspace() if text else after_special)
            continue
        for content in (added[i].content for i in group):
            follows_word = not text[-1:].isspace() if text else after_special
            text += " " * (follows_word and not keeps_spaces and not content[0].isspace()) + content
    return text


def _restore(base: Vocabulary, tokens: AddedTokens) -> ExtendedVocabulary:
    return ExtendedVocabulary(base, tokens, source="the vocabulary")


def _mask_id(base: Vocabulary, tokens: AddedTokens) -> int:
    """Returns the id of the mask token: the declared one, otherwise the vocabulary's."""
    mask = base.special_ids[MASK]
    return next((i for i, token in tokens.items() if token.content == base.piece(mask)), mask)


def _check_ids(base: Vocabulary, tokens: AddedTokens, *, source: str) -> None:
    """Raises UserError if an id or a content is used twice, or an id is far beyond the pieces."""
    ids: dict[str, int] = {}
    for i, token in tokens.items():
        known = ids.setdefault(token.content, i)
        piece_id = base.id_of(token.content)
        known = known if piece_id is None else piece_id
        if known != i:
            raise UserError(
                f"{source} gives the token {token.content!r} the ids {known} and {i}; it must have one id; remove the "
                "wrong one, or copy all files of the tokenizer from the same folder"
            )
        piece = base.piece(i) if i < base.size else ""
        if piece not in ("", token.content) and base.id_of(piece) is not None:
            raise UserError(
                f"{source} gives the added token {token.content!r} the id {i}, which is the piece {piece!r}; copy all "
                "files of the tokenizer from the same folder"
            )
        if i >= 2 * base.size + 100_000:
            raise UserError(
                f"{source} gives the added token {token.content!r} the id {i}, far beyond the {base.size} pieces"
            )


def _build_splitter(base: Vocabulary, added: AddedTokens) -> tuple[Any, dict[int, int], frozenset[int]]:
    """Returns a tokenizer that knows the added tokens only, their ids by those that it gives them, and the ids of the
    tokens that it looks for in the normalized text.
    """
    tokenizers = import_tokenizers("a vocabulary with added tokens")
    splitter = tokenizers.Tokenizer(tokenizers.models.WordLevel({"": 0}, unk_token=""))
    normalizer = base.normalizer()
    if normalizer is not None:  # before the tokens, whose normalized form tokenizers 0.22 computes when they are added
        splitter.normalizer = normalizer
    normalized = set()
    for i, token in added.items():
        # A line break is a space when it is normalized. transformers fails here; it is looked for as it is.
        blank = normalizer is not None and not normalizer.normalize_str(token.content).strip()
        if token.normalized and not blank:
            normalized.add(i)
        flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
        splitter.add_tokens([tokenizers.AddedToken(token.content, normalized=i in normalized, **flags)])
    id_of = {splitter.token_to_id(token.content): i for i, token in added.items()}
    return splitter, id_of, frozenset(normalized)


def without_spaces(text: str, start: int, end: int) -> Offset:
    """Returns the place of a token without the white space around it, unless it consists of white space."""
    token = text[start:end]
    if not token.strip():
        return start, end
    return start + len(token) - len(token.lstrip()), start + len(token.rstrip())
