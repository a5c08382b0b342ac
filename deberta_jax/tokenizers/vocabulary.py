"""The protocol of SentencePiece, byte-level BPE and WordPiece vocabularies, and helpers that they share."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import MissingPackageError, UserError

PAD, CLS, SEP, UNK, MASK = "[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"
# What transformers calls the special tokens in its files; the sentence marks are other names of two of them.
SPECIAL_FIELDS = {"cls_token": CLS, "sep_token": SEP, "pad_token": PAD, "unk_token": UNK, "mask_token": MASK}
SENTENCE_FIELDS = {"bos_token": CLS, "eos_token": SEP}
XLNET_PIECES = {PAD: "<pad>", CLS: "<cls>", SEP: "<sep>", UNK: "<unk>", MASK: "<mask>"}
ROBERTA_PIECES = {PAD: "<pad>", CLS: "<s>", SEP: "</s>", UNK: "<unk>", MASK: "<mask>"}
CONFIG_FILE = "tokenizer_config.json"

Offset = tuple[int, int]


class Vocabulary(Protocol):
    """Pieces with ids, and the conversion of text to ids and back, without [CLS] and [SEP]. Can be pickled.

    Attributes:
      special_ids: Ids of [PAD], [CLS], [SEP], [UNK] and [MASK], whatever the vocabulary calls them.
      hidden_ids: Ids that decoded text leaves out and no mask replaces: the special tokens, and added tokens that are
        declared as special.
      size: The highest id + 1.
      fingerprint: SHA-256 of the content of the files, in hexadecimal.
      vocab_type: "spm" or "gpt2", as in the official configurations; "roberta", "wordpiece" or "xlnet".
      pair_separators: Number of separators between the two texts of a pair.
      cls_last: Whether [CLS] is the last token, as in XLNet, and not the first.
      settings: Fields of transformers' tokenizer_config.json other than the special tokens.
      keeps_spaces: Whether pieces contain the spaces of the text, so that decoding adds none.
      space_id: The piece for a space before an added token, if the vocabulary has one.
    """

    special_ids: Mapping[str, int]
    hidden_ids: frozenset[int]
    size: int
    fingerprint: str
    vocab_type: str
    pair_separators: int
    cls_last: bool
    settings: Mapping[str, object]
    keeps_spaces: bool
    space_id: int | None

    def encode(self, text: str, *, after_mask: bool = False) -> list[int]:
        """Returns the ids of a text that begins a sentence, or that follows a mask token."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, as `encode` does."""
        ...

    def offsets(self, text: str, *, after_mask: bool = False) -> list[Offset]:
        """Returns the place in the text that each id of `encode` comes from; see `Encoding.offsets`."""
        ...

    def decode(self, ids: Sequence[int], *, after_special: bool = False) -> str:
        """Returns the text of ids, none of them special.

        Args:
          ids: The ids of the text.
          after_special: Begin with the space that separates the text from a special token before it.
        """
        ...

    def piece(self, token: int) -> str:
        """Returns the piece of an id below `size`."""
        ...

    def id_of(self, piece: str) -> int | None:
        """Returns the id of a piece, or None if the files of the vocabulary do not have it."""
        ...

    def normalizer(self) -> Any:
        """Returns the normalizer of the package tokenizers by which added tokens are found, or None."""
        ...

    def starts_word(self, token: int) -> bool:
        """Returns whether a whole-word mask may begin at this piece. Source: `part_of_whole_word`, negated."""
        ...

    def files(self) -> dict[str, bytes]:
        """Returns the content of each file, by name; both `from_folder` and transformers read them."""
        ...


def is_space_or_punctuation(piece: str) -> bool:
    """Returns whether a piece is a single white-space, control or punctuation character.

    ASCII symbols such as $ count as punctuation.
    """
    if len(piece) != 1:
        return False
    ascii_symbol = "!" <= piece <= "~" and not piece.isalnum()
    return ascii_symbol or piece.isspace() or unicodedata.category(piece)[0] in "CP"


def list_special_ids(special_ids: Mapping[str, int]) -> str:
    """Returns the special tokens of a vocabulary and their ids, for error messages."""
    return ", ".join(f"{name} {i}" for name, i in special_ids.items()) or "none of them"


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Reads a folder's tokenizer_config.json. Returns an empty dict if the folder has none.

    Raises:
      UserError: The file is not a JSON object.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(
            f"{path} is damaged: expected a JSON object, which defines `vocab_type` and `do_lower_case`; download it "
            "again"
        )
    return config


def read_flag(config: Mapping[str, Any], name: str, folder: Path) -> bool:
    """Returns a setting of a folder's tokenizer_config.json that is true or false (default: false).

    Raises:
      UserError: It is something else.
    """
    value = config.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"{folder / CONFIG_FILE}: {name} is {value!r}; it must be true or false")
    return value


def read_json(path: Path) -> Any:
    """Reads a JSON file. Returns None if it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # ValueError: not JSON or not UTF-8; RecursionError: nested too deeply
        return None


def import_tokenizers(needed_by: str) -> Any:
    """Imports the package tokenizers, which is not a dependency of the library alone.

    Raises:
      MissingPackageError: The package is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise MissingPackageError(
            f"{needed_by} needs the package tokenizers: pip install tokenizers, or install deberta-jax[train] or "
            "deberta-jax[convert]"
        ) from None
    return tokenizers
