"""WordPiece: the vocabulary of BERT and ELECTRA (`vocab.txt`)."""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..errors import UserError
from .vocabulary import CLS, CONFIG_FILE, MASK, PAD, SEP, UNK, Offset, stands_alone

if TYPE_CHECKING:
    import tokenizers

VOCAB_FILE = "vocab.txt"

_INSIDE = "##"  # what a piece begins with that goes on with a word
# Of tokenizer_config.json, with transformers' defaults: None strips accents where letters are made small.
_SETTINGS = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}


class WordPiece:
    """BERT's cuts at white space, punctuation and Chinese characters, then the longest pieces; a `Vocabulary`.

    The work is done by the package tokenizers. A word that the pieces cannot spell is [UNK] as a whole.
    Source: `tokenization.py` of google-research/bert, FullTokenizer.
    """

    vocab_type = "wordpiece"
    pair_separators = 1

    def __init__(self, pieces: Sequence[str], settings: Mapping[str, bool | None], *, source: str) -> None:
        """Takes the pieces in the order of their ids, and which letters are the same; `source` names them in errors.

        Args:
          settings: do_lower_case, strip_accents (None: as do_lower_case) and tokenize_chinese_chars, of which those
            left out are as in transformers.

        Raises:
          ImportError: the package tokenizers is not installed.
          ValueError: no special tokens, or settings of another kind.
        """
        ids = {piece: i for i, piece in enumerate(pieces)}
        found = {name: ids[name] for name in (PAD, CLS, SEP, UNK, MASK) if name in ids}
        if found.get(PAD) != 0 or len(found) < 5:
            present = ", ".join(f"{name} {i}" for name, i in found.items()) or "none of them"
            raise UserError(
                f"{source} has {present}; BERT and ELECTRA need the pieces [PAD] with id 0, [CLS], [SEP], [UNK] and "
                "[MASK]; it may be damaged, or a Git LFS pointer instead of the file; fetch it again"
            )
        for name, value in settings.items():
            if not isinstance(value, bool) and not (name == "strip_accents" and value is None):
                raise UserError(f"{source}: {name} is {value!r}; it must be true or false")
        self._pieces, self._settings = list(pieces), {**_SETTINGS, **settings}
        self._wordpiece, self._decoder = _load(ids, self._settings)
        self.special_ids: Mapping[str, int] = found
        self.size = len(self._pieces)
        self.settings: Mapping[str, object] = {"tokenizer_class": "BertTokenizer", **self._settings}
        content = [*self.files().values(), json.dumps(self._settings, sort_keys=True).encode()]
        self.fingerprint = hashlib.sha256(b"".join(content)).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), source="the vocabulary"), (self._pieces, self._settings)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads `vocab.txt`, and the settings in `tokenizer_config.json` where it is there.

        Raises:
          FileNotFoundError: the folder has no vocab.txt.
          ImportError, ValueError: as `WordPiece` does; or a file is damaged.
        """
        folder = Path(folder)
        path = folder / VOCAB_FILE
        try:
            lines = path.read_bytes().decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            raise UserError(f"{path} is damaged: it is not UTF-8; fetch it again") from None
        return cls(lines, _read_settings(folder / CONFIG_FILE), source=str(path))

    def encode(self, text: str, *, after_mask: bool = False) -> list[int]:
        return self._wordpiece.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._wordpiece.encode_batch_fast(list(texts), add_special_tokens=False)]

    def offsets(self, text: str, *, after_mask: bool = False) -> list[Offset]:
        return list(self._wordpiece.encode(text, add_special_tokens=False).offsets)

    def decode(self, ids: Sequence[int], *, after_special: bool = False) -> str:
        """Words with a space between them, but none before a full stop and the like."""
        pieces = [self.piece(i) for i in ids]
        text = self._decoder.decode(pieces)
        return f" {text}" if after_special and pieces and not pieces[0].startswith(_INSIDE) else text

    def piece(self, token: int) -> str:
        return self._pieces[token]

    def starts_word(self, token: int) -> bool:
        piece = self.piece(token)
        return not piece.startswith(_INSIDE) or stands_alone(piece)

    def files(self) -> dict[str, bytes]:
        """`vocab.txt`."""
        return {VOCAB_FILE: ("\n".join(self._pieces) + "\n").encode()}


def _load(
    ids: dict[str, int], settings: dict[str, Any]
) -> "tuple[tokenizers.Tokenizer, tokenizers.decoders.WordPiece]":
    try:
        import tokenizers
    except ImportError:
        raise ImportError("BERT's tokenizer needs the package tokenizers: pip install tokenizers") from None
    wordpiece = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab=ids, unk_token=UNK))
    wordpiece.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings["tokenize_chinese_chars"],
        strip_accents=settings["strip_accents"],
        lowercase=settings["do_lower_case"],
    )
    wordpiece.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return wordpiece, tokenizers.decoders.WordPiece(prefix=_INSIDE)


def _read_settings(path: Path) -> dict[str, bool | None]:
    """Those of a tokenizer_config.json; none without the file, which leaves them to the defaults."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path} is no table of settings; it says whether letters are made small; fetch it again")
    return {name: config[name] for name in _SETTINGS if name in config}
