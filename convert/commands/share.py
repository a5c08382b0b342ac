"""The command `deberta-jax share FOLDER REPOSITORY`: uploads a model with its card to the Hugging Face hub."""

import dataclasses
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from deberta_jax.checkpoint import CONFIG_FILE, PARAMETERS_FOLDER, holds_model, load_pretrained
from deberta_jax.embedded import PACKED_FILE, embedded_folder
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.file_digests import DIGESTS_FILE, TOKENIZER_FILES, files_below
from deberta_jax.parameter_check import check_finite
from deberta_jax.terminal import say

from ..from_pytorch import WEIGHT_FILES, read_tokenizer
from ..hub import upload
from ..model_card import CARD, CardOptions, is_ours, model_card, revised_card
from ..run_record import RunRecord, model_of_run
from ..to_pytorch import save_pytorch

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclasses.dataclass(frozen=True)
class ShareConfig:
    """Upload a model with a model card to the Hugging Face hub. Without --upload, shows what would be uploaded."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "runs/mine me/my-deberta --license mit --language en",
        "runs/mine me/my-deberta --license mit --language en --upload",
    )

    folder: tyro.conf.Positional[Path]
    """Folder of a run, of a model, or one that `deberta-jax export` wrote"""
    repository: tyro.conf.Positional[str]
    """Repository on the hub, as OWNER/NAME"""
    upload: bool = False
    """Upload the files; log in with `hf auth login` before"""
    license: str | None = None
    """License, an identifier of the hub such as mit or apache-2.0 (default: the card says that it is unknown)"""
    language: tuple[str, ...] = ()
    """Languages of the model, such as en de (default: the card does not say)"""
    format: Literal["transformers", "deberta-jax"] = "transformers"
    """transformers: safetensors, which the hub shows and this library reads too; or the folder as it is"""
    private: bool = False
    """Create a private repository"""
    update: bool = False
    """Commit to a repository that exists"""


def main(config: ShareConfig) -> None:
    """Runs `deberta-jax share`.

    Raises:
      MissingFileError: The folder is no model.
      UserError: The name or the license is not one of the hub, or the upload failed: the hub cannot be reached, the
        user is not logged in or may not write there, or the repository exists and `update` is not set.
    """
    if not _NAME.fullmatch(config.repository) or len(config.repository) > 96:
        raise UserError(f"the repository is {config.repository!r}; give OWNER/NAME, such as me/my-deberta")
    if config.license is not None and not _LICENSE.fullmatch(config.license):
        raise UserError(f"license is {config.license!r}; give an identifier of the hub, such as mit or apache-2.0")
    source = embedded_folder(config.folder) or config.folder
    if not source.is_dir():
        raise MissingFileError(f"no folder {config.folder}; give the folder of a run or of a model")
    folder, record = model_of_run(source)
    with tempfile.TemporaryDirectory() as scratch:
        files = dict(_prepare(folder, record, config, Path(scratch)))
        _show(files, config)
        if not config.upload:
            say(f"nothing was uploaded; add --upload to create {config.repository} with these files")
            return
        address = upload(config.repository, files, private=config.private, update=config.update)
    say(f"uploaded to {address}")


def _prepare(folder: Path, record: RunRecord, config: ShareConfig, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Yields the files to upload by their names in the repository; new ones are written to `scratch`."""
    options = CardOptions(config.repository, config.license, config.language, config.format)
    if not holds_model(folder):
        yield from _exported(folder, config, scratch)
        return
    model_config, params = load_pretrained(folder)
    check_finite(params, where=str(folder))
    if config.format == "transformers":
        tokenizer = read_tokenizer(folder)
        save_pytorch(scratch, model_config, params, tokenizer=tokenizer)
        yield from ((name, scratch / name) for name in (CONFIG_FILE, "model.safetensors", *tokenizer))
    else:
        single = (CONFIG_FILE, DIGESTS_FILE, PACKED_FILE, *TOKENIZER_FILES)
        names = [name for name in single if (folder / name).is_file()]
        yield from ((name, folder / name) for name in (*names, *files_below(folder, PARAMETERS_FOLDER)))
    if is_ours(folder):
        (scratch / CARD).write_text(model_card(model_config, params, record, options), encoding="utf-8")
        yield CARD, scratch / CARD
    else:
        yield CARD, _own_card(folder, config)


def _exported(folder: Path, config: ShareConfig, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Yields the files of a folder that `deberta-jax export` wrote, with its card."""
    weights = [name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not weights or not (folder / CONFIG_FILE).is_file():
        raise MissingFileError(
            f"{folder} has no finished model; give the folder of a run, of a model, or one that `export` wrote"
        )
    if config.format == "deberta-jax":
        raise UserError(f"{folder} has the format of transformers; leave out --format deberta-jax, or `convert` it")
    shards = sorted(
        path.name for pattern in ("model*.safetensors*", "pytorch_model*.bin*") for path in folder.glob(pattern)
    )
    names = [name for name in (CONFIG_FILE, *TOKENIZER_FILES) if (folder / name).is_file()]
    yield from ((name, folder / name) for name in (*names, *shards))
    if not (folder / CARD).is_file():
        raise MissingFileError(f"{folder} has no {CARD}; run `deberta-jax export` again, or write one")
    if not is_ours(folder):
        yield CARD, _own_card(folder, config)
        return
    options = CardOptions(config.repository, config.license, config.language)
    card = revised_card((folder / CARD).read_text(encoding="utf-8"), options)
    (scratch / CARD).write_text(card, encoding="utf-8")
    yield CARD, scratch / CARD


def _own_card(folder: Path, config: ShareConfig) -> Path:
    if config.license or config.language:
        raise UserError(
            f"{folder / CARD} is yours and is uploaded as it is; leave out --license and --language, and write them "
            "into its metadata"
        )
    return folder / CARD


def _show(files: dict[str, Path], config: ShareConfig) -> None:
    sizes: dict[str, Any] = {name: path.stat().st_size for name, path in files.items()}
    say("\n".join(f"{size / 1e6:12,.3f} MB  {name}" for name, size in sizes.items()))
    say(f"{sum(sizes.values()) / 1e6:12,.3f} MB  in {len(sizes)} files for {config.repository}\n")
    say(files[CARD].read_text(encoding="utf-8"))
    if "\nlicense: unknown\n" in files[CARD].read_text(encoding="utf-8"):
        say("the license is unknown; give one with --license, such as --license mit")
