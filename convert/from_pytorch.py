"""Reads PyTorch files: `load_pytorch`, and the command `deberta-jax convert SOURCE DESTINATION`."""

import dataclasses
import functools
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import tyro
from jaxtyping import Shaped

from deberta_jax.config import DebertaConfig
from deberta_jax.config_json import read_json_object
from deberta_jax.embedded import embedded_folder
from deberta_jax.errors import MissingFileError, MissingPackageError, UserError
from deberta_jax.file_digests import TOKENIZER_FILES
from deberta_jax.mirrors import local_copy, local_folder
from deberta_jax.parameter_check import check_finite
from deberta_jax.terminal import list_names, quote_names, say
from deberta_jax.tokenizers.tokenizer import Tokenizer

from . import hub
from .containers import remove_prefixes
from .errors import ConversionError
from .folders import check_destination
from .hub import inner_folder
from .mapping import PARTS, Params, to_params
from .pickle_reader import read_bin
from .quirks import adapt_heads, quantized_error

_LOG = logging.getLogger("deberta_jax")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Beginnings of the names of PyTorch files that Trainer, accelerate and others write beside the weights.
_BESIDE_WEIGHTS = r"training_args|optimizer|scheduler|scaler|random_states|rng_state|sparse_linear"


def load_pytorch(
    source: str | os.PathLike[str], *, filename: str | None = None, include: Collection[str] | None = None
) -> tuple[DebertaConfig, Params]:
    """Reads a published or self-made PyTorch model; PyTorch itself is not needed.

    The model is a DeBERTa, or a BERT, RoBERTa, ELECTRA or XLNet if the `model_type` in its config.json says so.

    Args:
      source: A folder with a configuration and weights (`*.safetensors` or `*.bin`, one file, or shards with an index),
        in the layout of Microsoft or of any version of transformers; or the name of a repository on the Hugging Face
        hub, such as "microsoft/deberta-v3-base".
      filename: Name of the weight file, if it is not one of the usual names. "pytorch_model.generator.bin" reads the
        generator of a replaced token detection pair, with its `generator_config.json`.
      include: The parts to load, from `mapping.PARTS` (default: every part in the file). ("deberta",) reads an encoder
        out of any container and ignores all other parameters.

    Returns:
      The configuration, and a nested dict of float32 NumPy arrays with the encoder under `deberta` and the heads beside
      it. Half precision is widened and float64 is rounded. Peak memory is the result plus one tensor.
      The weights decide some fields of the configuration: `num_labels` is the number of rows of the classifier (see
      `with_classes_of`), `mlm_head` and `token_projection` follow from the parameter names (see `quirks.adapt_heads`).
      Prefixes such as `module.` are removed from the names, and a warning of the logger "deberta_jax" names them.
      A discriminator's file that contains only GDES differences gives tables called `delta`, which are useful only with
      its generator.

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
    weights = find_weights(folder, filename)
    state = _LazyMapping(remove_prefixes(open_weights(weights), encoder_only=set(include or ()) == {"deberta"}))
    config = adapt_heads(read_config(find_config(folder, weights)), state.keys())
    params = to_params(state, config, include=include)
    return with_classes_of(params, config), params


def with_classes_of(params: Params, config: DebertaConfig) -> DebertaConfig:
    """Returns the configuration with the number of classes of the classifier.

    A head for spans or for multiple choice, fine-tuned from a classifier, often has the names of that classifier's
    classes in its configuration. Names of another number of classes are not kept.
    """
    head = params.get("classifier") or params.get("span_classifier")
    count = config.num_labels if head is None else head["bias"].size
    if count == config.num_labels:
        return config
    if config.label_names:
        _LOG.warning(
            "the head has %s outputs; the %s names in config.json belong to another head and are not kept: %s",
            *(count, len(config.label_names), list_names(config.label_names)),
        )
    problem = None if config.problem_type == "single_label_classification" and count == 1 else config.problem_type
    return config.replace(num_labels=count, label_names=(), problem_type=problem)


# --------------------------------------------------------------------------------------------------------- files


def find_folder(source: str | os.PathLike[str], *, filename: str | None = None) -> Path:
    """Returns the folder with a model's files, which may be a folder in the cache of `huggingface_hub`.

    Args:
      source: A folder, or the name of a hub repository if there is no such folder. NAME@REVISION names a branch, tag or
        commit of it. Folders of early versions of sentence-transformers have the files in a subfolder. The name of an
        embedded model gives its copy in the cache of converted models.
      filename: The only weight file to download (default: safetensors files or, without any, `*.bin`).

    Raises:
      MissingFileError: Neither exists, the name is empty, `huggingface_hub` is not installed, or the hub cannot be
        reached.
    """
    if source == "":  # which `Path` takes for the current folder
        raise MissingFileError("the model is empty; give a folder or the name of a hub repository")
    folder = local_copy(source)
    if folder.is_dir():
        return inner_folder(folder)
    if folder.exists():
        raise MissingFileError(f"{source} is a file; pass its folder, and the file's name as filename")
    if embedded_folder(source) is not None:
        from .cache import pytorch_copy  # which imports this module

        return pytorch_copy(source)
    return inner_folder(hub.download(str(source), filename=filename, files=TOKENIZER_FILES))


def find_tokenizer_folder(source: str | os.PathLike[str]) -> Path:
    """Returns the folder with a tokenizer's files: as `find_folder`, but without downloading weights."""
    folder = local_folder(source)
    return inner_folder(folder if folder.is_dir() else hub.download_tokenizer(str(source), files=TOKENIZER_FILES))


def find_weights(folder: Path, filename: str | None = None) -> Path:
    """Returns the weight file, or the index of shards, in a folder.

    Raises:
      MissingFileError: There is none, or there are several and no filename.
    """
    if filename is not None:
        if not (folder / filename).is_file():
            raise MissingFileError(f"no file {filename} in {folder}")
        return folder / filename
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    for pattern in ("*.safetensors", "*.bin", "*.ckpt", "*.pt", "*.pth"):
        files = sorted(path for path in folder.glob(pattern) if not _is_no_model(path.name))
        if len(files) == 1:
            return files[0]
        if files:
            names = list_names([path.name for path in files])
            raise MissingFileError(f"{folder} has several weight files ({names}); name one as filename")
    raise MissingFileError(
        f"{folder} has no weights; it needs {', '.join(WEIGHT_FILES)}, *.safetensors, *.bin, *.pt or *.ckpt"
        f"{_what_is_there(folder)}"
    )


def _is_no_model(name: str) -> bool:
    """Returns whether a file beside the weights is known to be something else, in spite of its suffix."""
    return name in TOKENIZER_FILES or re.match(_BESIDE_WEIGHTS, name) is not None


def _what_is_there(folder: Path) -> str:
    """Returns what a folder without weights holds instead, as the end of a message."""
    entries = sorted(folder.iterdir())
    foreign = hub.foreign_weights([entry.name for entry in entries])
    if foreign:
        return f". It has only {foreign}"
    inner = [entry.name for entry in entries if entry.is_dir() and (entry / "config.json").is_file()]
    if inner:
        models = list_names([str(folder / name) for name in inner])
        return f". Models are in {models}; give {'it' if len(inner) == 1 else 'one of them'}"
    return f". It holds: {list_names([entry.name for entry in entries])}"


def find_config(folder: Path, weights: Path) -> Path:
    """Returns the configuration that belongs to a weight file.

    Raises:
      MissingFileError: There is none.
    """
    names = (
        ("generator_config.json",)
        if "generator" in weights.name
        else ("config.json", "model_config.json", "gliner_config.json")
    )
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingFileError(f"{folder} has no {' or '.join(names[:2])}, which {weights.name} needs")


def read_config(path: Path) -> DebertaConfig:
    """Reads what `find_config` found: the configuration of a model, or of GLiNER, which has that of its encoder."""
    if path.name != "gliner_config.json":
        return DebertaConfig.from_json(path)
    fields = read_json_object(path)
    if not isinstance(fields.get("encoder_config"), Mapping):
        raise ConversionError(
            f"{path} has no encoder_config; copy the config.json of {fields.get('model_name')} into its folder"
        )
    return DebertaConfig.from_json(fields["encoder_config"])


def open_weights(path: Path) -> Mapping[str, Any]:
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
        shard = open_weights(index.parent / name)
        listed = {key for key in shard_of if shard_of[key] == name}
        if listed != set(shard):
            raise ConversionError(
                f"{index.parent / name} does not contain the tensors that {index.name} lists: "
                f"{quote_names(sorted(listed ^ set(shard)))}"
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
                if (kind := file.get_slice(key).get_dtype()).startswith("F8"):  # which NumPy cannot represent
                    raise quantized_error(key, kind)
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

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "microsoft/deberta-v3-small v3-small",
        "downloads/v3-large v3-large-generator --filename pytorch_model.generator.bin",
    )

    source: tyro.conf.Positional[str]
    """Folder or hub name with config.json and *.safetensors or *.bin"""
    destination: tyro.conf.Positional[Path]
    """Folder to write"""
    filename: str | None = None
    """Weight file, e.g. pytorch_model.generator.bin (default: the usual names)"""
    include: tuple[str, ...] | None = None
    """Parts to convert, e.g. deberta for the encoder in a model of another library (default: all of them)"""


def main(config: ConvertConfig) -> None:
    """Runs `deberta-jax convert`.

    Raises:
      Exception: As `load_pytorch`, before anything is written, and as `save_pretrained`.
    """
    from deberta_jax.checkpoint import save_pretrained

    check_destination(config.destination, Path(config.source), foreign=WEIGHT_FILES)
    folder = find_folder(config.source, filename=config.filename)
    has_tokenizer = check_tokenizer(folder)
    model_config, params = load_pytorch(folder, filename=config.filename, include=config.include)
    check_finite(params, where=str(find_weights(folder, config.filename)))
    tokenizer = read_tokenizer(folder) if has_tokenizer else {}
    save_pretrained(config.destination, model_config, params, tokenizer=tokenizer)
    say(f"wrote {config.destination}: {describe(params)}")
    if "mlm_head" in params:
        say(f"the form of its masked LM head is {model_config.mlm_head!r}")
    if "delta" in params["deberta"]["embeddings"]["word_embeddings"]:
        say("its embeddings are differences to those of a generator (GDES), so it is useful only with that generator")


def check_tokenizer(folder: Path) -> bool:
    """Returns whether a folder has a tokenizer that this library reads. If it has not, prints why."""
    try:
        Tokenizer.from_folder(folder)
    except MissingPackageError as error:
        say(f"the tokenizer is copied, but was not read: {error}")
    except UserError as error:
        say(f"only the weights are converted, without a tokenizer: {error}")
        return False
    return True


def read_tokenizer(folder: Path) -> dict[str, bytes]:
    """Returns the content of the tokenizer files that a folder contains, by name."""
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}


def describe(params: Params) -> str:
    """Returns the number of parameters and the names of the parts, to be printed."""
    count = sum(array.size for array in jax.tree.leaves(params))
    return f"{count:,} parameters ({', '.join(params)})"
