"""What the kinds of tokenizer file, SentencePiece, byte-level BPE and WordPiece, offer to `Tokenizer`."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Protocol

PAD, CLS, SEP, UNK, MASK = "[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"
CONFIG_FILE = "tokenizer_config.json"

Offset = tuple[int, int]


class Vocabulary(Protocol):
    """Pieces with ids, and the way from text to ids and back. Knows nothing of [CLS] A [SEP] B [SEP]; can be pickled.

    Attributes:
      special_ids: ids of [PAD], [CLS], [SEP], [UNK] and [MASK], whatever the vocabulary calls them.
      size: the highest id + 1.
      fingerprint: SHA-256 of what the files say, hexadecimal.
      vocab_type: "spm" or "gpt2", the names of the official configurations; "roberta" or "wordpiece".
      pair_separators: how many separators stand between two texts.
      settings: what transformers' tokenizer_config.json says besides the special tokens.
    """

    special_ids: Mapping[str, int]
    size: int
    fingerprint: str
    vocab_type: str
    pair_separators: int
    settings: Mapping[str, object]

    def encode(self, text: str, *, after_mask: bool = False) -> list[int]:
        """The ids of a text that begins a sentence, or follows a mask."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        ...

    def offsets(self, text: str, *, after_mask: bool = False) -> list[Offset]:
        """Where in the text each id of `encode` comes from; see `Encoding.offsets`."""
        ...

    def decode(self, ids: Sequence[int], *, after_special: bool = False) -> str:
        """The text of ids, none of them special; with the space that separates it from a special token before it."""
        ...

    def piece(self, token: int) -> str:
        """The piece of an id below `size`."""
        ...

    def starts_word(self, token: int) -> bool:
        """Whether a whole-word mask may begin at this piece. Source: `part_of_whole_word`, negated."""
        ...

    def files(self) -> dict[str, bytes]:
        """File name -> content: what `from_folder` reads again, transformers too."""
        ...


def stands_alone(piece: str) -> bool:
    """A single white-space, control or punctuation character; ASCII symbols such as $ count as punctuation."""
    if len(piece) != 1:
        return False
    ascii_symbol = "!" <= piece <= "~" and not piece.isalnum()
    return ascii_symbol or piece.isspace() or unicodedata.category(piece)[0] in "CP"
