"""Byte-level BPE: the vocabulary of RoBERTa and DeBERTa v1 (`vocab.json`, `merges.txt`; Microsoft's `bpe_encoder.bin`).

The pieces are GPT-2's: a byte of UTF-8 is a visible character ("Ġ" the space), and every text has ids. The ids are
those of RoBERTa's dictionary, with RoBERTa's or DeBERTa's special tokens around them.
"""

import functools
import hashlib
import io
import json
import os
import pickle
import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeGuard

from ..errors import UserError
from .vocabulary import CLS, MASK, PAD, SEP, UNK, Offset, stands_alone

if TYPE_CHECKING:
    import tokenizers

VOCAB_FILE, MERGES_FILE, ENCODER_FILE = "vocab.json", "merges.txt", "bpe_encoder.bin"
FORMS = ((VOCAB_FILE, MERGES_FILE), (ENCODER_FILE,))  # either is a whole vocabulary

_ROBERTA = {PAD: "<pad>", CLS: "<s>", SEP: "</s>", UNK: "<unk>", MASK: "<mask>"}
_HEADER = "#version: 0.2"
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # what a file of torch.save begins with before PyTorch 1.6
_PICKLE_LIMIT = 64 * 2**20  # bytes; the released file has 4 MB


class ByteLevelBPE:
    """GPT-2's byte-level BPE with the ids of DeBERTa v1 or, where it has the names, of RoBERTa; a `Vocabulary`.

    [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3, then the pieces, then [MASK]: 50264 in the released models, whose file names it.
    RoBERTa: <s> 0, <pad> 1, </s> 2, <unk> 3, the same pieces, <mask> 50264; two </s> between the texts of a pair.
    Source: `deberta/gpt2_tokenizer.py`, GPT2Tokenizer; fairseq's `models/roberta/hub_interface.py`.
    """

    def __init__(self, ids: Mapping[str, int], merges: Sequence[tuple[str, str]], *, source: str) -> None:
        """Takes the id of each piece, and the pairs to join, most urgent first; `source` names them in errors.

        Raises:
          ImportError: the package tokenizers is not installed.
          ValueError: ids that come twice or leave most numbers out, a merge of unknown pieces, or no special tokens.
        """
        roberta = CLS not in ids and set(_ROBERTA.values()) <= ids.keys()
        self.vocab_type, self.pair_separators = ("roberta", 2) if roberta else ("gpt2", 1)
        found = {name: ids[_ROBERTA[name] if roberta else name] for name in _ROBERTA if roberta or name in ids}
        if roberta and found[PAD] != 1:
            raise UserError(f"{source} has <pad> {found[PAD]}; it must be 1, as in every RoBERTa")
        if not roberta and (found.get(PAD) != 0 or not {CLS, SEP, UNK} <= found.keys()):
            present = ", ".join(f"{name} {i}" for name, i in found.items()) or "none of them"
            raise UserError(
                f"{source} has {present}; DeBERTa v1 needs the pieces [PAD] with id 0, [CLS], [SEP] and [UNK], RoBERTa "
                f"{', '.join(_ROBERTA.values())}"
            )
        # A few ids without a piece do no harm, but an id of 10**12 would ask for tables of that size.
        if min(ids.values()) < 0 or max(ids.values()) >= 2 * len(ids) or len(set(ids.values())) < len(ids):
            raise UserError(f"{source} is damaged: the ids of its {len(ids)} pieces are not 0 to {len(ids) - 1}")
        for left, right in merges:
            for piece in (left, right, left + right):
                if piece not in ids:
                    raise UserError(f"{source} is damaged: it merges {left!r} and {right!r}, but {piece!r} has no id")
        self._ids, self._merges = dict(ids), list(merges)
        self._pieces = {i: piece for piece, i in ids.items()}
        self._bpe, self._bytes = _load(self._ids, self._merges, unknown=self._pieces[found[UNK]])
        highest = max(self._pieces)
        self.special_ids: Mapping[str, int] = {MASK: highest + 1} | found
        self.size = max(highest, self.special_ids[MASK]) + 1
        self.settings: Mapping[str, object] = (
            {"tokenizer_class": "RobertaTokenizer"}
            if roberta
            else {"tokenizer_class": "DebertaTokenizer", "do_lower_case": False, "split_by_punct": False}
        )
        self.fingerprint = hashlib.sha256(b"".join(self.files().values())).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), source="the vocabulary"), (self._ids, self._merges)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads `vocab.json` and `merges.txt`, otherwise `bpe_encoder.bin`: the same vocabulary in two forms.

        Raises:
          FileNotFoundError: the folder has neither.
          ImportError, ValueError: as `ByteLevelBPE` does; or a file is damaged.
        """
        folder = Path(folder)
        vocab, merges, encoder = folder / VOCAB_FILE, folder / MERGES_FILE, folder / ENCODER_FILE
        if not (vocab.is_file() and merges.is_file()) and encoder.is_file():
            return cls(*_read_encoder(encoder), source=str(encoder))
        return cls(_read_vocab(vocab), _read_merges(merges), source=str(vocab))

    def encode(self, text: str, *, after_mask: bool = False) -> list[int]:
        return self._bpe.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)]

    def offsets(self, text: str, *, after_mask: bool = False) -> list[Offset]:
        offsets = []
        for start, end in self._bpe.encode(text, add_special_tokens=False).offsets:
            words = text[start:end].lstrip()
            offsets.append((end - len(words), end - len(words) + len(words.rstrip())))
        return offsets

    def decode(self, ids: Sequence[int], *, after_special: bool = False) -> str:
        return self._bytes.decode([self.piece(i) for i in ids])  # a space is a part of its piece

    def piece(self, token: int) -> str:
        return self._pieces.get(token, MASK if token == self.special_ids[MASK] else "")

    def starts_word(self, token: int) -> bool:
        """A piece that begins with a space. The first word of a text has none, and follows [CLS]."""
        text = self.decode([token])
        return text.startswith(" ") or stands_alone(text)

    def files(self) -> dict[str, bytes]:
        """`vocab.json` in the order of the ids, and `merges.txt`, whatever they were read from."""
        vocab = {piece: i for i, piece in sorted(self._pieces.items())}
        merges = [_HEADER, *(f"{left} {right}" for left, right in self._merges)]
        return {
            VOCAB_FILE: (json.dumps(vocab, ensure_ascii=False) + "\n").encode(),
            MERGES_FILE: ("\n".join(merges) + "\n").encode(),
        }


def _load(
    ids: dict[str, int], merges: list[tuple[str, str]], *, unknown: str
) -> "tuple[tokenizers.Tokenizer, tokenizers.decoders.ByteLevel]":
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            "byte-level BPE (DeBERTa v1, RoBERTa) needs the package tokenizers: pip install tokenizers"
        ) from None
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=merges, unk_token=unknown))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return bpe, tokenizers.decoders.ByteLevel()


def _read_vocab(path: Path) -> dict[str, int]:
    try:
        ids = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # not JSON, or not UTF-8
        ids = None
    if not _is_vocab(ids):
        raise UserError(
            f"{path} is no table from pieces to ids ({path.stat().st_size} bytes); it may be damaged, "
            "or a Git LFS pointer instead of the file; fetch it again"
        )
    return ids


def _is_vocab(ids: Any) -> TypeGuard[dict[str, int]]:
    return isinstance(ids, dict) and all(isinstance(piece, str) and type(i) is int for piece, i in ids.items())


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_bytes().decode().split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not UTF-8; fetch it again") from None
    merges = []
    for number, line in enumerate(lines, 1):
        pair = line.rstrip("\r").split(" ")
        if (number == 1 and line.startswith("#version")) or pair == [""]:
            continue
        if len(pair) != 2:
            raise UserError(f"{path} is damaged: line {number} is {line[:80]!r}, not two pieces; fetch it again")
        merges.append((pair[0], pair[1]))
    return merges


def _read_encoder(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """`bpe_encoder.bin`: `encoder` (piece -> GPT-2's id), `vocab` (merges) and `dict_map` ((GPT-2's id, count), ...).

    The ids of the model are the places in dict_map. Its made-up words, which fill it up to a multiple of 8, stay.
    """
    try:
        state = _unpickle(path.read_bytes())
        if not _is_vocab(state["encoder"]):
            raise TypeError("encoder is no table from pieces to ids")
        pieces = {str(i): piece for piece, i in state["encoder"].items()}
        names = [pieces.get(str(word), str(word)) for word, _ in state["dict_map"]]
        ids: dict[str, int] = {}
        for name in (PAD, CLS, SEP, UNK, *names, MASK):
            ids.setdefault(name, len(ids))
        merges = [(left, right) for left, right in state["vocab"]]
    except Exception as error:  # whatever a damaged archive or pickle leads to is a damaged file
        reason = (str(error).splitlines() or ["no details"])[0][:200]
        raise UserError(
            f"{path} is damaged or no bpe_encoder.bin: {type(error).__name__}: {reason}; fetch it again"
        ) from None
    return ids, merges


def _unpickle(content: bytes) -> Any:
    """What `torch.save` wrote, in its zip format or the one before PyTorch 1.6; or a plain pickle."""
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [info for info in archive.infolist() if info.filename.split("/")[-1] == "data.pkl"]
            if len(members) != 1 or members[0].file_size > _PICKLE_LIMIT:
                raise UserError("it is no archive of PyTorch")
            content = archive.read(members[0])
    file = io.BytesIO(content)
    state = _load_pickle(file)
    if state == _TORCH_MAGIC:  # the version and the machine come next, then the object
        _, _, state = (_load_pickle(file) for _ in range(3))
    return state


def _load_pickle(file: io.BytesIO) -> Any:
    start = file.tell()
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("BINPUT", "LONG_BINPUT") and (argument or 0) > file.getbuffer().nbytes:
            raise UserError("it numbers more values than it has bytes")  # the table of them would fill the memory
    file.seek(start)
    return _PlainUnpickler(file).load()


class _PlainUnpickler(pickle.Unpickler):
    """Tables, lists, texts and numbers only, so that nothing of the file is run."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise UserError(f"it asks for {module_name}.{global_name}, which no vocabulary needs; nothing of it was run")
