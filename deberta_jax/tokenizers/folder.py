"""Finds the kind of vocabulary that a folder holds, reads it, and writes one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..atomic_folder import interrupted_save, replace_entries
from ..errors import MissingFileError, UserError
from ..file_digests import DIGESTS_FILE, TOKENIZER_FILES, check_file, file_digests, format_digests, read_digests
from ..terminal import list_names
from .added_token_files import ADDED_FILE, JSON_FILE, MAP_FILE, read_added_tokens, read_object
from .added_tokens import ExtendedVocabulary
from .bpe import FORMS, ByteLevelBPE
from .settings import CLASSES, JSON_CLASSES, check_settings, check_special_names, tokenizer_class
from .spm import MODEL_FILE, SentencePiece
from .tokenizer_json import TokenizerJson, model_pieces
from .vocabulary import CONFIG_FILE, MASK, Vocabulary, read_tokenizer_config
from .wordpiece import VOCAB_FILE, WordPiece
from .xlnet import XLNET_FILE, XLNetPieces


class _Kind(NamedTuple):
    """A kind of vocabulary that a folder may hold.

    Attributes:
      label: Name of the kind, for error messages.
      forms: Sets of files, each of which is a complete vocabulary.
      vocab_types: Values of `vocab_type` that select this kind.
      classes: The classes of transformers that read it.
      read: Reads the vocabulary from a folder.
    """

    label: str
    forms: tuple[tuple[str, ...], ...]
    vocab_types: tuple[str, ...]
    classes: tuple[str, ...]
    read: Callable[[Path], Vocabulary]

    def is_in(self, folder: Path) -> bool:
        return any(all((folder / name).is_file() for name in form) for form in self.forms)


_KINDS = (
    _Kind(MODEL_FILE, ((MODEL_FILE,),), ("spm",), CLASSES["spm"], SentencePiece.from_folder),
    _Kind("byte-level BPE", FORMS, ("gpt2", "roberta"), CLASSES["bpe"], ByteLevelBPE.from_folder),
    _Kind(f"WordPiece's {VOCAB_FILE}", ((VOCAB_FILE,),), ("wordpiece",), CLASSES["wordpiece"], WordPiece.from_folder),
    _Kind(XLNET_FILE, ((XLNET_FILE,),), ("xlnet",), CLASSES["xlnet"], XLNetPieces.from_folder),
)


def check_files(folder: Path) -> None:
    """Raises if the files of a tokenizer are not those that were saved with the model in the folder.

    Raises:
      UserError: A file has changed, or a process was killed while it replaced the files.
    """
    interrupted = interrupted_save(folder, TOKENIZER_FILES)
    if interrupted is not None:
        raise UserError(
            f"a save into {folder} was interrupted while it replaced the tokenizer; move the files in {interrupted} "
            "back into the folder, or save again"
        )
    digests = read_digests(folder / DIGESTS_FILE)
    for name in digests.keys() & set(TOKENIZER_FILES):
        check_file(folder, name, digests)


def read_vocabulary(folder: Path) -> Vocabulary:
    """Reads the vocabulary of a folder; see `Tokenizer.from_folder`.

    tokenizer.json is read if the folder has no other vocabulary, if it has other pieces than the other one, or if
    tokenizer_config.json names a class of transformers that reads nothing else.

    Raises:
      MissingFileError: The folder has no vocabulary.
      MissingPackageError: Any kind but spm.model was found, or added tokens, and the package tokenizers is not
        installed.
      UserError: A file is damaged or belongs to another kind of model, a setting or the tokenizer's class is not
        supported, or several vocabularies were found and `vocab_type` is not set.
    """
    config = read_tokenizer_config(folder)
    name = tokenizer_class(folder, config)
    check_settings(folder, config)
    kinds = [kind for kind in _KINDS if kind.is_in(folder)]
    has_json = (folder / JSON_FILE).is_file()
    if not kinds and not has_json:
        raise _missing(folder)
    if has_json and (not kinds or name in JSON_CLASSES):
        return _extended(TokenizerJson.from_folder(folder), folder, config)
    kind = kinds[0] if len(kinds) == 1 else _select(kinds, folder, config)
    if name is not None and name not in (*kind.classes, *JSON_CLASSES):
        raise UserError(
            f"{folder} has tokenizer_class {name!r} but the files of {kind.label}, which {' or '.join(kind.classes)} "
            "reads; copy all files of the tokenizer from the same folder"
        )
    vocabulary = kind.read(folder)
    if has_json and not _has_pieces_of(vocabulary, read_object(folder / JSON_FILE)):
        return _extended(TokenizerJson.from_folder(folder), folder, config)
    return _extended(vocabulary, folder, config)


def _missing(folder: Path) -> MissingFileError:
    names = list_names(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
    wanted = " or ".join([*(" with ".join(form) for kind in _KINDS for form in kind.forms), JSON_FILE])
    # Another tokenizer than that of its training makes a trained model useless.
    has_model = (folder / "config.json").is_file()
    advice = "" if has_model else ", or train a SentencePiece model with `deberta-jax tokenizer` for a new model"
    return MissingFileError(
        f"{folder} has no {wanted} (it holds: {names}); copy the files of the tokenizer there from the "
        f"model whose weights you use{advice}"
    )


def _extended(vocabulary: Vocabulary, folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Returns the vocabulary with the added tokens of its folder, if there are any."""
    check_special_names(folder, config, vocabulary)
    tokens = read_added_tokens(folder, config, vocabulary)
    special = {vocabulary.piece(i): i for i in vocabulary.hidden_ids}
    if isinstance(vocabulary, TokenizerJson):
        tokens = {i: token for i, token in tokens.items() if vocabulary.id_of(token.content) is None}
    if all(special.get(token.content) == i for i, token in tokens.items()):
        return vocabulary
    return ExtendedVocabulary(vocabulary, tokens, source=str(folder))


def _has_pieces_of(vocabulary: Vocabulary, description: Mapping[str, Any]) -> bool:
    """Returns whether the model in a tokenizer.json has the ids of a vocabulary."""
    try:
        pieces = model_pieces(description)
    except (LookupError, TypeError, ValueError):
        return True  # damaged; transformers reads the other files too
    known = vocabulary.size - (vocabulary.id_of(vocabulary.piece(vocabulary.special_ids[MASK])) is None)
    return len(pieces) <= known and all(vocabulary.id_of(piece) == i for piece, i in pieces.items())


def _select(kinds: list[_Kind], folder: Path, config: Mapping[str, Any]) -> _Kind:
    """Returns the kind of vocabulary that a folder's tokenizer_config.json selects.

    Raises:
      UserError: It selects none of them.
    """
    vocab_type = config.get("vocab_type")
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


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Writes the files of a tokenizer together, removes those of another one, and updates the digests of a model.

    Raises:
      OSError: The folder cannot be written.
      UserError: model.sha256 is damaged.
    """
    obsolete = {JSON_FILE, ADDED_FILE, MAP_FILE} - files.keys()
    digests = read_digests(folder / DIGESTS_FILE)
    last = DIGESTS_FILE if digests else CONFIG_FILE
    with replace_entries(folder, last=last, remove=sorted(obsolete)) as new:
        for name, content in files.items():
            (new / name).write_bytes(content)
        if digests:
            kept = {name: digest for name, digest in digests.items() if name not in obsolete}
            (new / DIGESTS_FILE).write_text(format_digests(kept | file_digests(new, files)), encoding="utf-8")
