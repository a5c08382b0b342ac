"""The command `deberta-jax serialize MODEL OUTPUT`: a folder that runs with jax alone (see `deberta_jax.serving`)."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np
import tyro

from deberta_jax.atomic_folder import replace_entries
from deberta_jax.checkpoint import PARAMETERS_FOLDER, load_pretrained
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import MissingPackageError, UserError
from deberta_jax.file_digests import DIGESTS_FILE, TOKENIZER_FILES, file_digests, format_digests
from deberta_jax.parameter_check import check_finite
from deberta_jax.serving import load
from deberta_jax.serving.program import (
    Platform,
    ServingProgram,
    TaskName,
    axes_of,
    example_inputs,
    find_task,
    inputs_of,
    outputs_of,
    serving_program,
)
from deberta_jax.terminal import say
from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.versions import version_of

from ..cache import local_model
from ..folders import check_destination
from ..from_pytorch import WEIGHT_FILES, read_tokenizer
from ..run_record import model_of_run
from ..to_pytorch import write_tensors

_EXAMPLE = ("A program for every device.", "It reads texts of any length, and as many of them as there are.")


@dataclasses.dataclass(frozen=True)
class SerializeConfig:
    """Write a model as a StableHLO program that runs on CPU, TPU and GPU with jax alone (load.py in its folder)."""

    EXAMPLES: ClassVar[tuple[str, ...]] = ("runs/mine served", "microsoft/deberta-v3-small served --task encoder")

    model: tyro.conf.Positional[str]
    """Folder of a run or a model (deberta-jax or PyTorch), a hub name such as microsoft/deberta-v3-base, or
    deberta-v3-tiny, which is part of the package"""
    output: tyro.conf.Positional[Path]
    """Folder to write"""
    format: Literal["stablehlo"] = "stablehlo"
    """Format of the program. For ONNX see docs/serving.md"""
    task: TaskName | None = None
    """What the program computes (default: what the model's head tells; a classifier with one output scores texts,
    unless you give choice)"""
    platforms: tuple[Platform, ...] = ("cpu", "tpu", "cuda")
    """What the program can be compiled for"""
    batch_size: int | None = None
    """Fixed number of rows (default: any number)"""
    length: int | None = None
    """Fixed number of tokens per row (default: any number, up to the model's absolute positions if it reads them)"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of activations; weights stay float32"""
    filename: str | None = None
    """PyTorch weight file, e.g. pytorch_model.generator.bin (default: the usual names)"""


def main(config: SerializeConfig) -> None:
    """Runs `deberta-jax serialize`: exports the model, compares the program with the model, and writes the folder.

    Raises:
      UserError: The model does not have the head of the task, or `output` holds something else.
      Exception: As `local_model`, `load_pretrained` and `serving_program`.
    """
    check_destination(config.output, Path(config.model), foreign=[PARAMETERS_FOLDER, *WEIGHT_FILES])
    _check_packages()
    if not config.platforms:
        raise UserError("platforms is empty; give at least one of cpu, tpu, cuda and rocm")
    source = Path(config.model)
    folder = local_model(model_of_run(source)[0] if source.is_dir() else source, filename=config.filename)
    model_config, params = load_pretrained(folder)
    check_finite(params, where=config.model)
    tokenizer = read_tokenizer(folder)
    program = serving_program(
        model_config,
        params,
        task=find_task(params, config.task, where=config.model),
        dtype=config.dtype,
        platforms=config.platforms,
        batch_size=config.batch_size,
        length=config.length,
    )
    text = Tokenizer.from_folder(folder) if tokenizer else None
    rows = [text(line).input_ids for line in _EXAMPLE] if text else [[5, 6, 7], [5, 6]]
    inputs = example_inputs(program, rows, pad_id=model_config.pad_token_id)
    expected = program.run_model(inputs)
    checked = "not run here, because it is for another platform"
    if jax.default_backend() in program.exported.platforms or _is_cuda(program):
        checked = f"differs from the model by {_compare(program, inputs, expected):.1e} of the largest output"
    description = describe_program(program, model_config, text)
    _write(config.output, program, description, model_config, tokenizer, {**inputs, **jax.device_get(expected)})
    say(f"wrote {config.output}: {_summary(program, description)}")
    say(f"checked: {checked}. Run `python {config.output / 'load.py'}` where it is to be served")


def _check_packages() -> None:
    """Raises MissingPackageError before the model is read, if its files cannot be written afterwards."""
    try:
        import flatbuffers  # noqa: F401 (jax.export uses it)
        import safetensors  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"serialize needs the package {error.name!r}, which is not installed: pip install 'deberta-jax[convert]'"
        ) from None


def _is_cuda(program: ServingProgram) -> bool:
    return jax.default_backend() == "gpu" and bool({"cuda", "rocm"} & set(program.exported.platforms))


def _compare(program: ServingProgram, inputs: dict[str, Any], expected: dict[str, Any]) -> float:
    """Returns the largest difference between the outputs of the program and of the model.

    Raises:
      RuntimeError: It is larger than rounding explains.
    """
    difference = load.difference(program.run(inputs), expected)
    if not difference <= load.tolerance(program.dtype):
        raise RuntimeError(f"the program differs from the model by {difference:.1e} of the largest output")
    return difference


def describe_program(program: ServingProgram, config: DebertaConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Returns the content of serving.json: what a program reads and returns, and what made it."""
    special = ("pad_id", "cls_id", "sep_id", "unk_id", "mask_id", "pair_separators")
    labels = list(config.label_names) if program.task in ("classification", "tokens") else []
    return {
        "format": "jax.export",
        "task": program.task,
        "dtype": program.dtype,
        "inputs": {name: {"dtype": "int32", "shape": list(shape)} for name, shape in inputs_of(program).items()},
        "outputs": {
            name: {"dtype": str(aval.dtype), "shape": list(axes_of(aval))} for name, aval in outputs_of(program).items()
        },
        "activation": activation(program.task, config),
        "labels": labels or None,
        "max_length": program.longest,
        "tokenizer": tokenizer and {name: getattr(tokenizer, name) for name in special},
        "platforms": list(program.exported.platforms),
        "calling_convention_version": program.exported.calling_convention_version,
        "versions": {name: version_of(name) for name in ("deberta-jax", "jax", "jaxlib")},
    }


def activation(task: TaskName, config: DebertaConfig) -> Literal["softmax", "sigmoid"] | None:
    """Returns what makes probabilities of the logits along their last axis; None if they are scores as they are."""
    if task == "replaced-tokens" or config.is_multi_label:
        return "sigmoid"
    if task == "encoder" or (
        task == "classification" and (config.num_labels == 1 or config.problem_type == "regression")
    ):
        return None
    return "softmax"


def _write(
    folder: Path,
    program: ServingProgram,
    description: dict[str, Any],
    config: DebertaConfig,
    tokenizer: dict[str, bytes],
    example: dict[str, Any],
) -> None:
    """Writes the folder; files of the same names are replaced together."""
    obsolete = [name for name in TOKENIZER_FILES if name not in tokenizer]
    with replace_entries(folder, last=DIGESTS_FILE, remove=obsolete) as new:
        (new / "model.stablehlo").write_bytes(program.exported.serialize())
        weights = {name: np.ascontiguousarray(array, np.float32) for name, array in program.weights.items()}
        write_tensors(new / "weights.safetensors", weights, where=folder)
        for name, value in {"config.json": config.to_json(), "serving.json": description}.items():
            (new / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        arrays: Any = {name: np.asarray(array, _storable(array)) for name, array in example.items()}
        np.savez(new / "example.npz", **arrays)
        (new / "load.py").write_bytes(Path(load.__file__).read_bytes())
        for name, content in tokenizer.items():
            (new / name).write_bytes(content)
        names = [entry.name for entry in new.iterdir()]
        (new / DIGESTS_FILE).write_text(format_digests(file_digests(new, names)), encoding="utf-8")


def _storable(array: Any) -> Any:
    """Returns the type in which NumPy's files hold an array: they have no bfloat16."""
    return np.float32 if array.dtype == jax.numpy.bfloat16 else array.dtype


def _summary(program: ServingProgram, description: dict[str, Any]) -> str:
    def shapes(kind: str) -> str:
        return ", ".join(f"{name} [{', '.join(map(str, v['shape']))}]" for name, v in description[kind].items())

    size = sum(array.size for array in program.weights.values()) * 4 / 1e6
    limit = f", up to {program.longest} tokens" if program.longest else ""
    return (
        f"{program.task} for {', '.join(description['platforms'])}, {size:,.1f} MB of weights; "
        f"{shapes('inputs')}{limit} -> {shapes('outputs')}"
    )
