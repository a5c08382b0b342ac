"""Reads sets of the package `datasets`, by their names on the Hugging Face hub or from a local folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deberta_jax.errors import MissingFileError, MissingPackageError, UserError, one_line
from deberta_jax.terminal import list_names

from .cells import Cells
from .table import Table

# Published sets that `published` describes too, by the part of the name before the configuration. Their columns, labels
# and splits on the hub are those of tensorflow_datasets.
_FAMILIES = {
    "glue": "glue",
    "nyu-mll/glue": "glue",
    "snli": "snli",
    "stanfordnlp/snli": "snli",
    "squad": "squad/v1.1",
    "rajpurkar/squad": "squad/v1.1",
    "squad_v2": "squad/v2.0",
    "rajpurkar/squad_v2": "squad/v2.0",
}
# Sets of the hub without an owner that have configurations, so that glue/sst2 is no name of an owner and a set.
_OLD_NAMES = {"glue", "super_glue", "xnli", "anli", "race", "paws-x", "xtreme", "tweet_eval", "wikitext"}
SAVED_SETS = ("dataset_dict.json", "state.json")  # of save_to_disk


class HubSet(NamedTuple):
    """A parsed name: `NAME[/CONFIG][:REVISION]`, or a local folder.

    Attributes:
      name: the name on the hub, or the path of a folder.
      config: the configuration, or None for the only one.
      revision: a branch, tag or commit, or None for the newest.
      is_local: whether `name` is a folder.
    """

    name: str
    config: str | None
    revision: str | None
    is_local: bool

    @property
    def published(self) -> str | None:
        """The name in `published`, if the set is described there."""
        family = _FAMILIES.get(self.name)
        return f"{family}/{self.config}" if family == "glue" and self.config else family


def parse_hub_set(given: str) -> HubSet:
    """Returns a parsed name, given without `hf:` and `@SPLIT`. Two parts are an owner and a set, or an old set's.

    Raises:
      UserError: it has no such form.
    """
    if given.startswith((".", "/", "~")) or (given and Path(given).is_dir()):
        return HubSet(given, None, None, True)
    name, colon, revision = given.partition(":")
    parts = name.split("/")
    if not all(parts) or len(parts) > 3 or (colon and not revision):
        raise UserError(f"hf:{given} is not a source; write hf:NAME[/CONFIG][:REVISION][@SPLIT], or hf:FOLDER")
    owned = 2 if len(parts) > 1 and parts[0] not in _OLD_NAMES else 1
    return HubSet("/".join(parts[:owned]), "/".join(parts[owned:]) or None, revision or None, False)


def open_hub_set(given: str, *, split: str, label_column: str, data_dir: Path | None) -> Table:
    """Returns the rows of a split, which is downloaded first if necessary. They stay in files, mapped into memory.

    Args:
      given: the name, without `hf:` and `@SPLIT`.
      split: a split, or a part of one, such as train[:10%].
      label_column: the column of the labels.
      data_dir: the folder of prepared sets (default: that of `datasets`).

    Raises:
      MissingFileError: there is no such folder.
      MissingPackageError: `datasets` is not installed.
      UserError: the set cannot be loaded, or it has no such split.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise MissingPackageError(f"hf:{given} needs a package: pip install 'deberta-jax[datasets]'") from None
    name = f"hf:{given}@{split}"
    records = _load(datasets, given, split=split, data_dir=data_dir)
    label = records.features.get(label_column)
    label = getattr(label, "feature", label)  # of a list of labels
    class_names = tuple(label.names) if isinstance(label, datasets.ClassLabel) else ()

    def rows() -> Iterator[tuple[int, Cells]]:
        for number in range(len(records)):
            try:
                yield number, records[number]
            except (OSError, ValueError) as error:  # of Arrow, for a damaged file
                raise UserError(
                    f"{name}, record {number}: damaged ({one_line(error):.200}); load the set again"
                ) from None

    wanted = parse_hub_set(given)
    # A label of -1 is hidden, but in SNLI the annotators did not agree.
    hidden = bool(class_names) and wanted.published != "snli"
    return Table(name, "record", rows(), class_names, published=not wanted.is_local, hidden_label=hidden)


def _load(datasets: Any, given: str, *, split: str, data_dir: Path | None) -> Any:
    """Returns one split as `datasets.Dataset`."""
    wanted = parse_hub_set(given)
    folder = Path(wanted.name).expanduser()
    if wanted.is_local and not folder.is_dir():
        raise MissingFileError(f"hf:{given}: no such folder")
    cache = str(data_dir) if data_dir else None
    try:
        with _no_progress_bars(datasets):
            if wanted.is_local and any((folder / name).is_file() for name in SAVED_SETS):
                return _saved_split(datasets, folder, split, given)
            source = str(folder) if wanted.is_local else wanted.name
            return datasets.load_dataset(source, wanted.config, split=split, revision=wanted.revision, cache_dir=cache)
    except UserError:
        raise
    except Exception as error:  # a download, a parser or Arrow raises whatever it raises
        raise UserError(_reason(error, given, split)) from error


def _saved_split(datasets: Any, folder: Path, split: str, given: str) -> Any:
    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, datasets.DatasetDict):
        if split not in ("train", str(saved.split)):
            raise UserError(f"hf:{given} has no split {split!r}; the folder has a single one, which is read as train")
        return saved
    if split not in saved:
        raise UserError(_no_split(given, split, list(saved)))
    return saved[split]


def _no_split(given: str, split: str, names: Any) -> str:
    return (
        f"hf:{given} has no split {split!r}; there are {list_names(names)}: write hf:{given}@SPLIT (a revision is "
        "written hf:NAME:REVISION)"
    )


def _reason(error: Exception, given: str, split: str) -> str:
    """Returns on one line why a set cannot be loaded, and what to do."""
    kind, text = type(error).__name__, one_line(error)
    name = f"hf:{given}"
    if "Unknown split" in text:
        names = text.partition("Should be one of ")[2].strip(" .[]").replace("'", "").split(", ")
        reason = _no_split(given, split, [name for name in names if name])
    elif "Config name is missing" in text or "BuilderConfig" in text:
        reason = f"{name}: {text:.500}; write hf:NAME/CONFIG"
    elif "gated" in text.lower() or "gated" in kind.lower():
        reason = f"{name} is gated: accept its terms on the hub, then run `hf auth login` or set HF_TOKEN"
    elif "scripts" in text:
        reason = f"{name} needs a script to be read, which `datasets` does not run; use tfds:, or download its files"
    elif isinstance(error, ConnectionError) or "Connect" in kind or "Offline" in kind:
        reason = (
            f"{name}: there is no such folder, the hub cannot be reached, and the set is not in the cache ({text:.200})"
        )
    elif "NotFound" in kind or isinstance(error, FileNotFoundError):
        reason = f"{name}: there is no such set or revision, or it needs `hf auth login` ({text:.200})"
    else:
        reason = f"{name} cannot be loaded ({kind}: {text:.300})"
    return reason


@contextlib.contextmanager
def _no_progress_bars(datasets: Any) -> Iterator[None]:
    """Hides the bars of `datasets`, of which there is one per split and step."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
