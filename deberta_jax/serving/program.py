"""A model and its head as a StableHLO program that `jax.export` writes: for several platforms, of any batch and length.

The weights are arguments of the program, not constants in it: a program of constants could not exceed 2 GB, would hold
the weights several times while it is compiled, and would need a copy of them for each shape.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.export import Exported, export, symbolic_shape
from jaxtyping import Array, Int, Shaped

from ..config import DebertaConfig
from ..errors import UserError
from ..models import (
    Deberta,
    DebertaForMaskedLM,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
)
from ..sharding import parameter_path
from ..terminal import list_names

TaskName = Literal["classification", "choice", "tokens", "span", "masked-lm", "replaced-tokens", "encoder"]
Platform = Literal["cpu", "tpu", "cuda", "rocm"]
Arrays = Mapping[str, Shaped[Array | np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class ServedTask:
    """One use of a model.

    Attributes:
      model: The model's class.
      head: The parts of the parameters that it needs besides the encoder.
      axes: Names of the axes of `input_ids`.
      outputs: Names of the outputs.
    """

    model: type[nn.Module]
    head: tuple[str, ...]
    axes: tuple[str, ...] = ("batch", "length")
    outputs: tuple[str, ...] = ("logits",)


TASKS: dict[TaskName, ServedTask] = {
    "classification": ServedTask(DebertaForSequenceClassification, ("pooler", "classifier")),
    "choice": ServedTask(DebertaForMultipleChoice, ("pooler", "classifier"), axes=("batch", "choices", "length")),
    "tokens": ServedTask(DebertaForTokenClassification, ("classifier",)),
    "span": ServedTask(DebertaForQuestionAnswering, ("span_classifier",), outputs=("start_logits", "end_logits")),
    "masked-lm": ServedTask(DebertaForMaskedLM, ("mlm_head",)),
    "replaced-tokens": ServedTask(DebertaForReplacedTokenDetection, ("rtd_head",)),
    "encoder": ServedTask(Deberta, (), outputs=("last_hidden_state",)),
}


@dataclasses.dataclass(frozen=True)
class ServingProgram:
    """An exported model.

    Its function takes the weights and the inputs, two dicts of arrays by name, and returns a dict of arrays. As
    arguments of StableHLO these are the weights in the order of their names, then the inputs in the order of theirs.

    Attributes:
      task: Its use.
      exported: The program, without weights.
      weights: The parameters that it takes, float32, by paths such as "deberta/embeddings/layer_norm/scale".
      dtype: Of the activations.
      longest: The largest number of tokens of a row; None if there is no limit.
      model: The model, to compare with.
    """

    task: TaskName
    exported: Exported
    weights: dict[str, Any]
    dtype: str
    longest: int | None
    model: nn.Module

    def run_model(self, inputs: Arrays) -> dict[str, Array]:
        """Returns what the model itself, compiled for the shapes of the inputs, gives for them."""
        return jax.jit(_function(self.task, self.model))(self.weights, dict(inputs))

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Returns what the program gives for these inputs, on the default device."""
        return jax.jit(self.exported.call)(self.weights, dict(inputs))


def find_task(params: Mapping[str, Any], task: TaskName | None, *, where: str) -> TaskName:
    """Returns the use of a model: the one that is given, if the model has its head, else the one that its head tells.

    A classifier is taken for one of texts where there is a pooler, even with a single output, which a model of
    choices has as well.

    Args:
      params: The parameters, with the encoder under "deberta".
      task: The use, or None.
      where: The model, for messages.

    Raises:
      UserError: The model lacks the head of the task, or has the heads of several.
    """
    heads = set(params) - {"deberta"}
    if task is not None:
        if missing := [part for part in TASKS[task].head if part not in heads]:
            fitting = [name for name, other in TASKS.items() if set(other.head) <= heads]
            raise UserError(
                f"{where} has no {list_names(missing)}, which {task} needs; with the parts that it has it can be "
                f"serialized as {list_names(fitting)}"
            )
        return task
    if "classifier" in heads:
        return "classification" if "pooler" in heads else "tokens"
    single: tuple[TaskName, ...] = ("span", "masked-lm", "replaced-tokens")
    found: list[TaskName] = [name for name in single if set(TASKS[name].head) <= heads]
    if len(found) > 1:
        raise UserError(f"{where} has the heads of {list_names(found)}; choose one with --task")
    return found[0] if found else "encoder"


def serving_program(
    config: DebertaConfig,
    params: Mapping[str, Any],
    *,
    task: TaskName,
    dtype: str = "float32",
    platforms: Sequence[Platform] = ("cpu", "tpu", "cuda"),
    batch_size: int | None = None,
    length: int | None = None,
) -> ServingProgram:
    """Exports a model with one of its heads. It needs none of the devices that it exports for.

    Attention is the one of plain XLA on all platforms: the fused kernels are made for one length and one kind of TPU.

    Args:
      config: The configuration.
      params: The parameters, with the encoder under "deberta"; heads that the task does not read are left out.
      task: The use.
      dtype: Of the activations, float32 or bfloat16. Weights and outputs stay float32; the encoder's output is
        of `dtype`.
      platforms: What the program can be compiled for.
      batch_size: The number of rows (default: any number).
      length: The number of tokens of a row (default: any number, up to the number of absolute positions if the model
        reads them).

    Raises:
      UserError: A size is below 1, or the model has no absolute positions for so many tokens.

    Example:
      serving_program(config, params, task="classification").exported.serialize()
    """
    for name, size in (("batch_size", batch_size), ("length", length)):
        if size is not None and size < 1:
            raise UserError(f"{name} is {size}; it must be at least 1")
    limit = config.max_tokens if config.reads_positions(masked_lm=task == "masked-lm") else None
    if limit is not None and length is not None and length > limit:
        raise UserError(f"length is {length}, but the model has positions for {limit} tokens")
    read = {name: params[name] for name in ("deberta", *_parts(config, task))}
    leaves = jax.tree.leaves_with_path(read["deberta"] if task == "encoder" else read)
    weights = {parameter_path(path): leaf for path, leaf in leaves}
    model = TASKS[task].model(config, dtype=jnp.dtype(dtype), attention_implementation="xla")  # type: ignore[call-arg]
    shapes = (
        {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()},
        _input_shapes(config, task, batch_size=batch_size, length=length, limit=limit),
    )
    # Every argument is kept, so that those of the StableHLO function are exactly the weights and the inputs.
    function = jax.jit(_function(task, model), keep_unused=True)
    return ServingProgram(task, export(function, platforms=list(platforms))(*shapes), weights, dtype, limit, model)


def _parts(config: DebertaConfig, task: TaskName) -> tuple[str, ...]:
    projection = ("token_proj",) if task == "tokens" and config.token_projection else ()
    return (*projection, *TASKS[task].head)


def _function(task: TaskName, model: nn.Module) -> Any:
    """Returns the function of weights and inputs that is exported."""

    def serve(weights: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        others = {name: array for name, array in inputs.items() if name not in ("input_ids", "attention_mask")}
        variables = {"params": unflatten_dict(weights, sep="/")}
        out: Any = model.apply(variables, inputs["input_ids"], inputs["attention_mask"], **others)
        return {name: getattr(out, name) for name in TASKS[task].outputs}

    return serve


def _input_shapes(
    config: DebertaConfig, task: TaskName, *, batch_size: int | None, length: int | None, limit: int | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the inputs; an axis without a size is a variable."""
    sizes = {"batch": batch_size, "length": length, "masks": None, "choices": None}
    names = [name for name, size in sizes.items() if size is None]
    constraints = [f"length <= {limit}"] if limit is not None and length is None else []
    variables = dict(zip(names, symbolic_shape(", ".join(names), constraints=constraints), strict=True))

    def shape(axes: Sequence[str]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(variables.get(name, sizes[name]) for name in axes), jnp.int32)

    axes = TASKS[task].axes
    inputs = {"input_ids": shape(axes), "attention_mask": shape(axes)}
    if config.reads_token_types:
        inputs["token_type_ids"] = shape(axes)
    if task == "masked-lm":
        inputs["masked_positions"] = shape(("batch", "masks"))
    return inputs


def example_inputs(
    program: ServingProgram, rows: Sequence[Sequence[int]], *, pad_id: int
) -> dict[str, Int[np.ndarray, "..."]]:
    """Returns inputs of the program for rows of ids: one batch, or one with two choices for a program of choices.

    Sizes that are fixed are filled up or cut. Every second token is marked as masked where a program takes positions.
    """
    shapes = inputs_of(program)
    batch, *choices, length = shapes["input_ids"]
    length = length if isinstance(length, int) else max(map(len, rows))
    count = (batch if isinstance(batch, int) else len(rows)) * (2 if choices else 1)
    ids = np.full((count, length), pad_id, np.int32)
    for number, row in enumerate(ids):
        source = rows[number % len(rows)][:length]
        row[: len(source)] = source
    mask = (ids != pad_id).astype(np.int32)
    types = np.broadcast_to(np.arange(length) >= length // 2, ids.shape).astype(np.int32)
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    if choices:
        arrays = {name: array.reshape(-1, 2, length) for name, array in arrays.items()}
    arrays["masked_positions"] = np.tile(np.arange(0, min(map(len, rows)), 2, dtype=np.int32), (count, 1))
    return {name: arrays[name] for name in shapes}


def inputs_of(program: ServingProgram) -> dict[str, tuple[int | str, ...]]:
    """Returns the shapes of a program's inputs by name; axes of any size have names."""
    (_, inputs), _ = jax.tree.unflatten(program.exported.in_tree, program.exported.in_avals)
    return {name: axes_of(aval) for name, aval in inputs.items()}


def outputs_of(program: ServingProgram) -> dict[str, Any]:
    """Returns shape and dtype of a program's outputs by name."""
    return jax.tree.unflatten(program.exported.out_tree, program.exported.out_avals)


def axes_of(aval: Any) -> tuple[int | str, ...]:
    """Returns the sizes of the axes of an array; those of any size by name."""
    return tuple(size if isinstance(size, int) else str(size) for size in aval.shape)
