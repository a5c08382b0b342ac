"""Reads PyTorch files: `load_pytorch`, and the command `deberta-jax convert SOURCE DESTINATION`."""

import dataclasses
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jaxtyping import Shaped

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import MissingFileError, MissingPackageError, UserError
from deberta_jax.tokenizers.tokenizer import Tokenizer

from .errors import ConversionError, first_line
from .mapping import PARTS, Params, to_params
from .pickle_reader import read_bin
from .quirks import adapt_mlm_head

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TOKENIZER_FILES = (
    *("spm.model", "vocab.json", "merges.txt", "bpe_encoder.bin", "vocab.txt", "tokenizer.json"),
    *("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
)


def load_pytorch(
    source: str | os.PathLike[str], *, filename: str | None = None, include: Collection[str] | None = None
) -> tuple[DebertaConfig, Params]:
    """Reads a published or self-made PyTorch model; PyTorch itself is not needed.

    The model is a DeBERTa, or a BERT, RoBERTa or ELECTRA if the `model_type` in its config.json says so.

    Args:
      source: A folder with a configuration and weights (`*.safetensors` or `*.bin`, one file, or shards with an index),
        in the layout of Microsoft or of any version of transformers; or the name of a repository on the Hugging Face
        hub, such as "microsoft/deberta-v3-base".
      filename: Name of the weight file, if it is not one of the usual names. "pytorch_model.generator.bin" reads the
        generator of a replaced token detection pair, with its `generator_config.json`.
      include: The parts to load, from `mapping.PARTS`, such as ("deberta",) (default: every part in the file).

    Returns:
      The configuration, and a nested dict of float32 NumPy arrays with the encoder under `deberta` and the heads beside
      it. Half precision is widened and float64 is rounded. Peak memory is the result plus one tensor.
      The weights decide two fields of the configuration: `num_labels` is the number of rows of the classifier, and
      `mlm_head` follows from the parameter names (see `quirks.adapt_mlm_head`). A discriminator's file that contains
      only GDES differences gives tables called `delta`, which are useful only with its generator.

    Raises:
      MissingFileError: The folder or file does not exist, or the hub cannot be reached or does not have it.
      ConversionError: The weights are damaged or do not match the configuration; the message lists the keys.
      MissingPackageError: The file needs safetensors, which is not installed.
      UserError: The configuration is invalid, or `include` has an unknown name.
    """
    unknown = sorted(set(include or ()) - set(PARTS))
    if unknown:
        raise UserError(f"include has {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    folder = find_folder(source, filename=filename)
    weights = _find_weights(folder, filename)
    state = _open_weights(weights)
    config = adapt_mlm_head(DebertaConfig.from_json(_find_config(folder, weights)), state.keys())
    params = to_params(state, config, include=include)
    if "classifier" in params:
        config = config.replace(num_labels=params["classifier"]["bias"].size)
    return config, params


# --------------------------------------------------------------------------------------------------------- files


def find_folder(source: str | os.PathLike[str], *, filename: str | None = None) -> Path:
    """Returns the folder itself, or downloads the files of a hub repository to the cache of `huggingface_hub`.

    Args:
      source: A folder or the name of a hub repository.
      filename: The only weight file to download (default: safetensors files or, without any, `pytorch_model*.bin`).

    Raises:
      MissingFileError: Neither exists, `huggingface_hub` is not installed, or the hub cannot be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise MissingFileError(f"{source} is a file; pass its folder, and the file's name as filename")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)):
        raise MissingFileError(f"no folder {source}; pass one, or a hub name such as microsoft/deberta-v3-base")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingFileError(
            f"no folder {source}; to download it from the hub, install deberta-jax[convert]"
        ) from None
    try:
        for patterns in [[filename]] if filename else [["*.safetensors*"], ["pytorch_model*.bin*"]]:
            folder = Path(
                snapshot_download(
                    str(source),
                    allow_patterns=["*config.json", *_TOKENIZER_FILES, *patterns],
                    ignore_patterns=None if filename else ["*generator*"],
                )
            )
            if any(path.match(pattern) for path in folder.iterdir() for pattern in patterns):
                break
    except Exception as error:  # errors of the hub, of its HTTP client and of its storage have no common class
        raise MissingFileError(
            f"no folder {source}, and downloading it from the hub failed: {first_line(error)}"
        ) from None
    return folder


def _find_weights(folder: Path, filename: str | None) -> Path:
    if filename is not None:
        if not (folder / filename).is_file():
            raise MissingFileError(f"no file {filename} in {folder}")
        return folder / filename
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    for pattern in ("*.safetensors", "*.bin"):
        files = sorted(path for path in folder.glob(pattern) if path.name not in _TOKENIZER_FILES)
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(path.name for path in files)
            raise MissingFileError(f"{folder} has several weight files ({names}); name one as filename")
    raise MissingFileError(f"{folder} has no weights; it needs {', '.join(_WEIGHT_FILES)}, *.safetensors or *.bin")


def _find_config(folder: Path, weights: Path) -> Path:
    names = ("generator_config.json",) if "generator" in weights.name else ("config.json", "model_config.json")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingFileError(f"{folder} has no {' or '.join(names)}, which {weights.name} needs")


def _open_weights(path: Path) -> Mapping[str, Any]:
    """Opens one file or an index of shards. Tensors are read on access."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConversionError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    state = _open_safetensors(path) if path.suffix == ".safetensors" else read_bin(path)
    invalid = next((key for key in state if len(key) > 200 or not key.isprintable()), None)
    if invalid is not None:
        raise ConversionError(f"{path} has a tensor called {invalid!r:.80}, which is not the name of a parameter")
    return state


def _open_shards(index: Path) -> Mapping[str, Any]:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(shard_of.values()))
        invalid = [name for name in names if not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", name)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConversionError(
            f"{index} is not an index of shards, a JSON object with a weight_map; download it again"
        ) from None
    if invalid:
        raise ConversionError(
            f"{index} names the shard {invalid[0]!r:.80}; shards must be *.safetensors or *.bin files in its folder"
        )
    merged: dict[str, Any] = {}
    for name in names:
        if not (index.parent / name).is_file():
            raise MissingFileError(f"{index} names the shard {name}, which does not exist; download it")
        shard = _open_weights(index.parent / name)
        listed = {key for key in shard_of if shard_of[key] == name}
        if listed != set(shard):
            raise ConversionError(
                f"{index.parent / name} does not contain the tensors that {index.name} lists: "
                f"{sorted(listed ^ set(shard))[:4]}"
            )
        merged |= {key: functools.partial(shard.__getitem__, key) for key in shard}
    return _LazyMapping(merged)


class _LazyMapping(Mapping[str, Any]):
    """Reads each value on access."""

    def __init__(self, readers: dict[str, Callable[[], Any]]):
        self._readers = readers

    def __getitem__(self, key: str) -> Any:
        return self._readers[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def _open_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise MissingPackageError(
            f"reading {path} needs the package safetensors; install deberta-jax[convert]"
        ) from None

    def read(key: str) -> Shaped[np.ndarray, "*shape"]:
        try:
            # Opened for each tensor: an open file would keep the pages of all earlier tensors in memory.
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor(key)  # including bfloat16, which jax registers with NumPy
        except (SafetensorError, TypeError, AttributeError) as error:
            raise ConversionError(f"{path}: {key} cannot be read: {error}") from None

    try:
        with safe_open(path, framework="numpy") as file:
            return _LazyMapping({key: functools.partial(read, key) for key in file.keys()})  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path} is damaged or not a safetensors file: {error}; download it again") from None


# ------------------------------------------------------------------------------------------------------- command


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Convert PyTorch weights to a deberta-jax folder."""

    source: tyro.conf.Positional[str]
    """Folder or hub name with config.json and *.safetensors or *.bin"""
    destination: tyro.conf.Positional[Path]
    """Folder to write"""
    filename: str | None = None
    """Weight file, e.g. pytorch_model.generator.bin (None: the usual names)"""


def main(config: ConvertConfig) -> None:
    """Runs `deberta-jax convert`.

    Raises:
      Exception: As `load_pytorch`, before anything is written, and as `save_pretrained`.
    """
    from deberta_jax.checkpoint import save_pretrained

    folder = find_folder(config.source, filename=config.filename)
    has_tokenizer = check_tokenizer(folder)
    model_config, params = load_pytorch(folder, filename=config.filename)
    save_pretrained(config.destination, model_config, params)
    if has_tokenizer:
        copy_tokenizer(folder, config.destination)
    print(f"wrote {config.destination}: {describe(params)}")
    if "mlm_head" in params:
        print(f"the form of its masked LM head is {model_config.mlm_head!r}")
    if "delta" in params["deberta"]["embeddings"]["word_embeddings"]:
        print("its embeddings are differences to those of a generator (GDES), so it is useful only with that generator")


def check_tokenizer(folder: Path) -> bool:
    """Returns whether a folder has a tokenizer that this library reads. If it has not, prints why."""
    try:
        Tokenizer.from_folder(folder)
    except MissingPackageError as error:
        print(f"the tokenizer is copied, but was not read: {error}")
    except UserError as error:
        print(f"only the weights are converted, without a tokenizer: {error}")
        return False
    return True


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copies the tokenizer files that `source` contains."""
    if source.resolve() == destination.resolve():
        return
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)


def describe(params: Params) -> str:
    """Returns the number of parameters and the names of the parts, to be printed."""
    count = sum(array.size for array in jax.tree.leaves(params))
    return f"{count:,} parameters ({', '.join(params)})"
