"""Byte-level BPE: the vocabulary of RoBERTa and DeBERTa v1 (`vocab.json`, `merges.txt`; Microsoft's `bpe_encoder.bin`).

The pieces are GPT-2's: each byte of UTF-8 is written as a visible character ("Ġ" for the space), so every text can be
encoded. The ids are those of RoBERTa's dictionary, with the special tokens of RoBERTa or DeBERTa around them.
"""

import functools
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeGuard

from .. import safe_pickle
from ..errors import MissingFileError, UserError
from .vocabulary import (
    CLS,
    MASK,
    PAD,
    ROBERTA_PIECES,
    SEP,
    UNK,
    Offset,
    import_tokenizers,
    is_space_or_punctuation,
    list_special_ids,
    read_flag,
    read_json,
    read_tokenizer_config,
)

VOCAB_FILE, MERGES_FILE, ENCODER_FILE = "vocab.json", "merges.txt", "bpe_encoder.bin"
FORMS = ((VOCAB_FILE, MERGES_FILE), (ENCODER_FILE,))  # each of them is a complete vocabulary

_HEADER = "#version: 0.2"
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first value in a file that torch.save wrote before PyTorch 1.6
_PICKLE_LIMIT = 64 * 2**20  # bytes; the released file has 4 MB


class ByteLevelBPE:
    """GPT-2's byte-level BPE with the ids of DeBERTa v1 or, if it has their names, of RoBERTa; a `Vocabulary`.

    DeBERTa v1: [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3, then the pieces, then [MASK], which has id 50264 in the released
    models. RoBERTa: <s> 0, <pad> 1, </s> 2, <unk> 3, the same pieces, <mask> 50264, and two </s> between the texts of a
    pair. Source: `deberta/gpt2_tokenizer.py`, GPT2Tokenizer; fairseq's `models/roberta/hub_interface.py`.
    """

    cls_last = False
    keeps_spaces = True
    space_id: int | None = None

    def __init__(
        self,
        ids: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        add_prefix_space: bool = False,
        source: str,
    ) -> None:
        """Makes a vocabulary of ids and merges.

        Args:
          ids: The id of each piece.
          merges: The pairs of pieces to join, in the order of their priority.
          add_prefix_space: Put a space before a text that begins with none, as in models for words in a list.
          source: Name of the file, for error messages.

        Raises:
          MissingPackageError: The package tokenizers is not installed.
          UserError: A special token is missing, ids are duplicate or far from consecutive, a merge has a piece without
            an id, or a piece is not valid Unicode.
        """
        is_roberta = CLS not in ids and set(ROBERTA_PIECES.values()) <= ids.keys()
        self.vocab_type, self.pair_separators = ("roberta", 2) if is_roberta else ("gpt2", 1)
        special_ids = _special_ids(ids, is_roberta=is_roberta, source=source)
        _check_pieces(ids, merges, source=source)
        self._ids, self._merges, self._adds_space = dict(ids), list(merges), add_prefix_space
        self._pieces = {i: piece for piece, i in ids.items()}
        self._bpe, self._bytes = _build(self._ids, self._merges, unknown=self._pieces[special_ids[UNK]])
        highest = max(self._pieces)
        self.special_ids: Mapping[str, int] = {MASK: highest + 1} | special_ids
        self.hidden_ids = frozenset(self.special_ids.values())
        self.size = max(highest, self.special_ids[MASK]) + 1
        self.settings: Mapping[str, object] = (
            {"tokenizer_class": "RobertaTokenizer"}
            if is_roberta
            else {"tokenizer_class": "DebertaTokenizer", "do_lower_case": False, "split_by_punct": False}
        )
        if add_prefix_space:
            self.settings = {**self.settings, "add_prefix_space": True}
        content = [*self.files().values(), b"add_prefix_space" * add_prefix_space]
        self.fingerprint = hashlib.sha256(b"".join(content)).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        restore = functools.partial(type(self), add_prefix_space=self._adds_space, source="the vocabulary")
        return restore, (self._ids, self._merges)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads `vocab.json` and `merges.txt`, otherwise `bpe_encoder.bin`: two forms of the same vocabulary.

        Raises:
          MissingFileError: The folder has neither form.
          MissingPackageError: The package tokenizers is not installed.
          UserError: A file is damaged, or is not a vocabulary of DeBERTa v1 or RoBERTa.
        """
        folder = Path(folder)
        adds_space = read_flag(read_tokenizer_config(folder), "add_prefix_space", folder)
        vocab, merges, encoder = folder / VOCAB_FILE, folder / MERGES_FILE, folder / ENCODER_FILE
        if vocab.is_file() and merges.is_file():
            return cls(_read_vocab(vocab), _read_merges(merges), add_prefix_space=adds_space, source=str(vocab))
        if encoder.is_file():
            return cls(*_read_encoder(encoder), add_prefix_space=adds_space, source=str(encoder))
        raise MissingFileError(
            f"{folder} has neither {VOCAB_FILE} and {MERGES_FILE} nor {ENCODER_FILE}; copy them there"
        )

    def encode(self, text: str, *, after_mask: bool = False) -> list[int]:
        return self._bpe.encode(self._prefix(text, after_mask) + text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        spaced = [self._prefix(text, False) + text for text in texts]
        return [encoding.ids for encoding in self._bpe.encode_batch_fast(spaced, add_special_tokens=False)]

    def _prefix(self, text: str, after_mask: bool) -> str:
        """Returns what to put before a text: a space, or nothing."""
        return " " if self._adds_space and text and not after_mask and not text.startswith(" ") else ""

    def offsets(self, text: str, *, after_mask: bool = False) -> list[Offset]:
        offsets = []
        prefix = self._prefix(text, after_mask)
        for start, end in self._bpe.encode(prefix + text, add_special_tokens=False).offsets:
            # A piece includes the space before its word; offsets leave it out.
            stop = end - len(prefix)
            word = text[max(0, start - len(prefix)) : stop].lstrip()
            offsets.append((stop - len(word), stop - len(word) + len(word.rstrip())))
        return offsets

    def decode(self, ids: Sequence[int], *, after_special: bool = False) -> str:
        # `after_special` changes nothing, because a piece includes the space before it.
        return self._bytes.decode([self.piece(i) for i in ids])

    def piece(self, token: int) -> str:
        return self._pieces.get(token, MASK if token == self.special_ids[MASK] else "")

    def id_of(self, piece: str) -> int | None:
        return self._ids.get(piece)

    def normalizer(self) -> Any:
        return None

    def starts_word(self, token: int) -> bool:
        """Returns whether a piece begins with a space. The first word of a text has none, but follows [CLS]."""
        text = self.decode([token])
        return text.startswith(" ") or is_space_or_punctuation(text)

    def files(self) -> dict[str, bytes]:
        """Returns `vocab.json`, in the order of the ids, and `merges.txt`, whichever form was read."""
        vocab = {piece: i for i, piece in sorted(self._pieces.items())}
        merges = [_HEADER, *(f"{left} {right}" for left, right in self._merges)]
        return {
            VOCAB_FILE: (json.dumps(vocab, ensure_ascii=False) + "\n").encode(),
            MERGES_FILE: ("\n".join(merges) + "\n").encode(),
        }


def _special_ids(ids: Mapping[str, int], *, is_roberta: bool, source: str) -> dict[str, int]:
    """Returns the ids of the special tokens by DeBERTa's names, or raises UserError if one is missing or misplaced."""
    if is_roberta:
        special_ids = {name: ids[roberta_name] for name, roberta_name in ROBERTA_PIECES.items()}
        if special_ids[PAD] != 1:
            raise UserError(f"{source} has <pad> {special_ids[PAD]}; it must be 1, as in every RoBERTa")
        return special_ids
    special_ids = {name: ids[name] for name in ROBERTA_PIECES if name in ids}
    if special_ids.get(PAD) != 0 or not {CLS, SEP, UNK} <= special_ids.keys():
        raise UserError(
            f"{source} has {list_special_ids(special_ids)}; DeBERTa v1 needs the pieces [PAD] with id 0, [CLS], [SEP] "
            f"and [UNK], RoBERTa {', '.join(ROBERTA_PIECES.values())}"
        )
    return special_ids


def _check_pieces(ids: Mapping[str, int], merges: Sequence[tuple[str, str]], *, source: str) -> None:
    """Raises UserError if ids, pieces or merges are not those of a vocabulary."""
    # A few ids without a piece do no harm, but an id of 10**12 would need tables of that size.
    if min(ids.values()) < 0 or max(ids.values()) >= 2 * len(ids) or len(set(ids.values())) < len(ids):
        raise UserError(f"{source} is damaged: the ids of its {len(ids)} pieces are not 0 to {len(ids) - 1}")
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:  # JSON and pickle can both spell one half of a surrogate pair
        raise UserError(f"{source} is damaged: one of its pieces is not valid Unicode; download it again") from None
    for left, right in merges:
        for piece in (left, right, left + right):
            if piece not in ids:
                raise UserError(f"{source} is damaged: it merges {left!r} and {right!r}, but {piece!r} has no id")


def _build(ids: dict[str, int], merges: list[tuple[str, str]], *, unknown: str) -> tuple[Any, Any]:
    """Returns the tokenizer and the decoder of the package tokenizers."""
    tokenizers = import_tokenizers("byte-level BPE (DeBERTa v1, RoBERTa)")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=merges, unk_token=unknown))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return bpe, tokenizers.decoders.ByteLevel()


# ---------------------------------------------------------------- vocab.json and merges.txt


def _read_vocab(path: Path) -> dict[str, int]:
    ids = read_json(path)
    if not _is_vocab(ids):
        raise UserError(
            f"{path} is not a JSON object of pieces and ids ({path.stat().st_size} bytes); it may be damaged, "
            "or a Git LFS pointer in place of the file; download it again"
        )
    return ids


def _is_vocab(ids: Any) -> TypeGuard[dict[str, int]]:
    return isinstance(ids, dict) and all(isinstance(piece, str) and type(i) is int for piece, i in ids.items())


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_bytes().decode().split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not UTF-8; download it again") from None
    merges = []
    for number, line in enumerate(lines, 1):
        pair = line.rstrip("\r").split(" ")
        if (number == 1 and line.startswith("#version")) or pair == [""]:
            continue
        if len(pair) != 2:
            raise UserError(f"{path} is damaged: line {number} is {line[:80]!r}, not two pieces; download it again")
        merges.append((pair[0], pair[1]))
    return merges


# ---------------------------------------------------------------- bpe_encoder.bin


def _read_encoder(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reads `encoder` (piece -> GPT-2's id), `vocab` (merges) and `dict_map` ((GPT-2's id, count), ...).

    The ids of the model are the positions in dict_map, including those of its "madeupword" entries, which fill the
    dictionary up to a multiple of 8.
    """
    try:
        state = _read_torch_file(path.read_bytes())
        if not _is_vocab(state["encoder"]):
            raise TypeError("encoder is not a dict of pieces and ids")
        pieces = {str(i): piece for piece, i in state["encoder"].items()}
        words = [_plain_name(word) for word, _ in state["dict_map"]]
        ids: dict[str, int] = {}
        for name in (PAD, CLS, SEP, UNK, *(pieces.get(word, word) for word in words), MASK):
            ids.setdefault(name, len(ids))
        merges = [(_plain_name(left), _plain_name(right)) for left, right in state["vocab"]]
    except Exception as error:  # a damaged archive or pickle can raise almost anything
        reason = "".join(filter(str.isprintable, str(error)))[:200] or "no details"
        raise UserError(
            f"{path} is damaged or not a bpe_encoder.bin: {type(error).__name__}: {reason}; download it again"
        ) from None
    return ids, merges


def _plain_name(value: Any) -> str:
    """Returns a string or an integer as a string.

    Anything else is refused: a pickle can nest tuples so that hashing or printing one would take forever.
    """
    if not isinstance(value, str | int):
        raise TypeError(f"it has a {type(value).__name__} in place of a string")
    return str(value)


def _read_torch_file(content: bytes) -> Any:
    """Returns the object in a file of `torch.save`, in the zip format or the one before PyTorch 1.6, or in a pickle."""
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [info for info in archive.infolist() if info.filename.split("/")[-1] == "data.pkl"]
            if len(members) != 1 or members[0].file_size > _PICKLE_LIMIT:
                raise ValueError("it is not an archive of PyTorch")
            with archive.open(members[0]) as member:
                content = member.read(members[0].file_size)  # a member may unpack to more than it declares
    file = io.BytesIO(content)
    state = safe_pickle.load(file)
    if state == _TORCH_MAGIC:  # then come the version of the format and the machine's byte order, then the object
        _, _, state = (safe_pickle.load(file) for _ in range(3))
    return state
