"""Finds the kind of vocabulary that a folder holds, and reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import MissingFileError, UserError
from .bpe import FORMS, ByteLevelBPE
from .spm import MODEL_FILE, SentencePiece
from .vocabulary import CONFIG_FILE, Vocabulary, read_tokenizer_config
from .wordpiece import VOCAB_FILE, WordPiece


class _Kind(NamedTuple):
    """A kind of vocabulary that a folder may hold.

    Attributes:
      label: Name of the kind, for error messages.
      forms: Sets of files, each of which is a complete vocabulary.
      vocab_types: Values of `vocab_type` that select this kind.
      read: Reads the vocabulary from a folder.
    """

    label: str
    forms: tuple[tuple[str, ...], ...]
    vocab_types: tuple[str, ...]
    read: Callable[[Path], Vocabulary]

    def is_in(self, folder: Path) -> bool:
        return any(all((folder / name).is_file() for name in form) for form in self.forms)


_KINDS = (
    _Kind(MODEL_FILE, ((MODEL_FILE,),), ("spm",), lambda folder: SentencePiece.from_file(folder / MODEL_FILE)),
    _Kind("byte-level BPE", FORMS, ("gpt2", "roberta"), ByteLevelBPE.from_folder),
    _Kind(f"WordPiece's {VOCAB_FILE}", ((VOCAB_FILE,),), ("wordpiece",), WordPiece.from_folder),
)


def read_vocabulary(folder: Path) -> Vocabulary:
    """Reads the vocabulary of a folder; see `Tokenizer.from_folder`.

    Raises:
      MissingFileError: The folder has no vocabulary.
      MissingPackageError: Any kind but spm.model was found, and the package tokenizers is not installed.
      UserError: A file is damaged or belongs to another kind of model, or several vocabularies were found and
        `vocab_type` is not set.
    """
    kinds = [kind for kind in _KINDS if kind.is_in(folder)]
    if not kinds:
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
        wanted = " or ".join(" with ".join(form) for kind in _KINDS for form in kind.forms)
        raise MissingFileError(
            f"{folder} has no {wanted} (it holds: {names or 'nothing'}); copy it there from the released model, or "
            "train a SentencePiece model with `deberta-jax tokenizer`"
        )
    return (kinds[0] if len(kinds) == 1 else _select(kinds, folder)).read(folder)


def _select(kinds: list[_Kind], folder: Path) -> _Kind:
    """Returns the kind of vocabulary that a folder's tokenizer_config.json selects.

    Raises:
      UserError: It selects none of them, or is damaged.
    """
    vocab_type = read_tokenizer_config(folder).get("vocab_type")
    for kind in kinds:
        if vocab_type in kind.vocab_types:
            return kind
    labels = " and ".join(kind.label for kind in kinds)
    choices = " or ".join(f'"{name}"' for kind in kinds for name in kind.vocab_types)
    state = "is not set" if vocab_type is None else f"is {vocab_type!r}"
    raise UserError(
        f"several vocabularies were found in {folder} ({labels}) and `vocab_type` {state} in its {CONFIG_FILE}; set it "
        f"to {choices}, or remove the files of the others"
    )
