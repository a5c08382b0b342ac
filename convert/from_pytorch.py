"""PyTorch weights to ours: `load_pytorch`, and the command `deberta-jax convert SRC DST`."""

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

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import MissingFileError, UserError

from .mapping import PARTS, Params, to_params
from .pickle_reader import read_bin
from .quirks import ConversionError, masked_lm_form

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TOKENIZER_FILES = ("spm.model", "vocab.json", "merges.txt", "bpe_encoder.bin", "vocab.txt", "tokenizer_config.json")


def load_pytorch(
    source: str | os.PathLike[str], *, filename: str | None = None, include: Collection[str] | None = None
) -> tuple[DebertaConfig, Params]:
    """Reads a published or self-made PyTorch model; PyTorch itself is not needed.

    It is a DeBERTa, or with the `model_type` in its config.json a BERT, a RoBERTa or an ELECTRA.

    Args:
      source: a folder with a configuration and weights (`*.safetensors` or `*.bin`, one file or shards with their
        index), in the layout of Microsoft or of transformers, any version; or the name of a repository on the
        Hugging Face hub, such as "microsoft/deberta-v3-base".
      filename: which weights, where the usual names do not say: "pytorch_model.generator.bin" reads the generator of
        a replaced token detection pair, with its `generator_config.json`.
      include: the parts to load, of `mapping.PARTS`, such as ("deberta",); None: everything in the file.

    Returns:
      The configuration and a nested dict of float32 NumPy arrays with the encoder under `deberta` and the heads beside
      it. Half precision is widened, float64 rounded. Memory at its peak: the result and one tensor.
      The configuration's `num_labels` is the classifier's number of rows, and its `mlm_head` the
      form that the names in the file tell: "legacy" for `cls.predictions`, "bert" where the position table of the
      enhanced mask decoder is missing. A discriminator's file that has only GDES differences gives tables called
      `delta`, which need its generator.

    Raises:
      FileNotFoundError: no such folder or file, or the hub cannot be reached or lacks it.
      ConversionError: weights that are damaged or do not match the configuration; the message lists the keys.
      ValueError: a configuration that cannot be read, or an unknown name in `include`.
    """
    unknown = sorted(set(include or ()) - set(PARTS))
    if unknown:
        raise UserError(f"include has {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    folder = find_folder(source, filename=filename)
    weights = _find_weights(folder, filename)
    state = _open_weights(weights)
    config = masked_lm_form(state.keys(), DebertaConfig.from_json(_find_config(folder, weights)))
    params = to_params(state, config, include=include)
    if "classifier" in params:
        config = config.replace(num_labels=params["classifier"]["bias"].size)
    return config, params


# --------------------------------------------------------------------------------------------------------- files


def find_folder(source: str | os.PathLike[str], *, filename: str | None = None) -> Path:
    """The folder itself, or the hub repository's files in the local cache of `huggingface_hub`.

    Raises:
      FileNotFoundError: neither is there, `huggingface_hub` is not installed, or the hub cannot be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise MissingFileError(f"{source} is a file; give its folder, and the file's name as filename")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)):
        raise MissingFileError(f"no folder {source}; give one, or a hub name such as microsoft/deberta-v3-base")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingFileError(f"no folder {source}; to fetch it from the hub, pip install huggingface_hub") from None
    beside = ["*config.json", *_TOKENIZER_FILES]
    wanted = [[filename]] if filename else [["*.safetensors*"], ["pytorch_model*.bin*"]]
    try:
        for patterns in wanted:
            ignored = None if filename else ["*generator*"]
            folder = Path(snapshot_download(str(source), allow_patterns=beside + patterns, ignore_patterns=ignored))
            if any(path.match(pattern) for path in folder.iterdir() for pattern in patterns):
                break
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingFileError(f"no folder {source}, and the hub did not give it: {reason}") from None
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
        found = sorted(path for path in folder.glob(pattern) if path.name not in _TOKENIZER_FILES)
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise MissingFileError(f"{folder} has several weight files ({names}); name one as filename")
    raise MissingFileError(f"{folder} has no weights; looked for {', '.join(_WEIGHT_FILES)}, *.safetensors and *.bin")


def _find_config(folder: Path, weights: Path) -> Path:
    names = ("generator_config.json",) if "generator" in weights.name else ("config.json", "model_config.json")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingFileError(f"{folder} has no {' or '.join(names)}, which {weights.name} needs")


def _open_weights(path: Path) -> Mapping[str, Any]:
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    state = _open_safetensors(path) if path.suffix == ".safetensors" else read_bin(path)
    odd = next((key for key in state if len(key) > 200 or not key.isprintable()), None)
    if odd is not None:
        raise ConversionError(f"{path} has a tensor called {odd!r:.80}, which is no name of a parameter")
    return state


def _open_shards(index: Path) -> Mapping[str, Any]:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(shard_of.values()))
        odd = [name for name in names if not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", name)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConversionError(f"{index} is no index of shards: it needs a table called weight_map") from None
    if odd:
        raise ConversionError(
            f"{index} names {odd[0]!r:.80}; shards must stand beside their index, as *.safetensors or *.bin"
        )
    merged: dict[str, Any] = {}
    for name in names:
        if not (index.parent / name).is_file():
            raise MissingFileError(f"{index} names the shard {name}, which is not there")
        shard = _open_weights(index.parent / name)
        listed = {key for key in shard_of if shard_of[key] == name}
        if listed != set(shard):
            raise ConversionError(
                f"{index.parent / name} does not hold what the index says: {sorted(listed ^ set(shard))[:4]}"
            )
        merged |= {key: functools.partial(shard.__getitem__, key) for key in shard}
    return _Lazy(merged)


class _Lazy(Mapping[str, Any]):
    """Reads each value when it is asked for."""

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
        raise ConversionError(f"reading {path} needs safetensors (pip install 'deberta-jax[convert]')") from None

    def read(key: str) -> np.ndarray:
        try:
            with safe_open(path, framework="numpy") as file:  # anew, so that the pages go with the tensor
                return file.get_tensor(key)  # bfloat16 too: jax has registered it with NumPy
        except (SafetensorError, TypeError, AttributeError) as error:
            raise ConversionError(f"{path}: {key} cannot be read: {error}") from None

    try:
        with safe_open(path, framework="numpy") as file:
            return _Lazy({key: functools.partial(read, key) for key in file.keys()})  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path} is damaged or no safetensors file: {error}; fetch it again") from None


# ------------------------------------------------------------------------------------------------------- command


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Convert PyTorch weights to a folder for deberta-jax."""

    source: tyro.conf.Positional[str]
    """Folder or hub name with config.json and *.safetensors or *.bin."""
    destination: tyro.conf.Positional[Path]
    """Folder to write."""
    filename: str | None = None
    """Which weights, e.g. pytorch_model.generator.bin; the default finds the usual names."""


def main(config: ConvertConfig) -> None:
    """Runs `deberta-jax convert`. Raises what `load_pytorch`, before anything is written, and `save_pretrained` do."""
    from deberta_jax.checkpoint import save_pretrained

    folder = find_folder(config.source, filename=config.filename)
    deberta, params = load_pytorch(folder, filename=config.filename)
    save_pretrained(config.destination, deberta, params)
    copy_tokenizer(folder, config.destination)
    print(f"wrote {config.destination}: {describe(params)}")
    if "mlm_head" in params:
        print(f"its masked LM head is of the form {deberta.mlm_head!r}")
    if "delta" in params["deberta"]["embeddings"]["word_embeddings"]:
        print("its embeddings are differences to those of a generator (GDES): it is of use only together with that one")


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copies the tokenizer's files that `source` has."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)


def describe(params: Params) -> str:
    """Number of parameters and the parts, for people."""
    count = sum(array.size for array in jax.tree.leaves(params))
    return f"{count:,} parameters ({', '.join(params)})"
