"""Runs pipelines over any number of items: places the parameters, compiles programs, and keeps the devices busy."""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import UserError
from ..int8 import int8_model
from ..models import Deberta
from ..parameter_check import check_finite
from ..sharding import batch_devices, batch_sharding, compiler_options, make_mesh, named_shardings
from .batching import Batch, BatchSizes, Entry, in_order, plan_ahead
from .checks import check_at_least_one, check_one_of
from .loaded_model import LoadedModel
from .pipeline import Pipeline

Item = TypeVar("Item")
Result = TypeVar("Result")

DTYPES = ("float32", "bfloat16")
WEIGHTS = ("float32", "int8")
_TRACED_LENGTH = 7  # no padded row has it


def check_types(dtype: str, weights: str) -> None:
    """Raises UserError if there is no such dtype of the computation, or of the weights."""
    check_one_of("dtype", dtype, DTYPES)
    check_one_of("weights", weights, WEIGHTS)


@dataclasses.dataclass(frozen=True, eq=False)
class Runner(LoadedModel):
    """A model on all devices of this process.

    Attributes:
      dtype: The dtype of the computation, "float32" or "bfloat16". Parameters, scores and logits are float32.
      batch_size: Number of rows of 128 tokens in a batch on each device. A batch of shorter rows has more of them, of
        longer rows fewer (default: 8 on a CPU, 64 on other devices).
      weights: "int8" if the parameters are those of `int8.int8_parameters`, else "float32".

    Raises:
      UserError: The dtype or the kind of weights is unknown, the batch size is below 1, JAX runs in several processes,
        or as `LoadedModel`.
    """

    dtype: str = "float32"
    batch_size: int | None = None
    weights: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_types(self.dtype, self.weights)
        check_at_least_one(batch_size=self.batch_size)
        if jax.process_count() > 1:
            raise UserError(
                f"prediction runs in one process, but JAX runs in {jax.process_count()}; start one process, and give "
                "each host a part of the texts"
            )

    def run(
        self,
        pipeline: Pipeline[Item, Result],
        items: Iterable[Item],
        *,
        skip: Callable[[int, UserError], None] | None = None,
    ) -> Iterator[Result]:
        """Returns an iterator of the result of every item, in their order.

        Items are read ahead: at most two windows of them, and their results, are in memory.

        Args:
          pipeline: What to do with an item.
          items: The items, which may be an endless iterator.
          skip: Called, in order, with the number and the error of each item that cannot be used; such an item has no
            result (default: the error is raised).

        Raises:
          UserError: The model does not have the heads of the pipeline, an item cannot be used, or the model returns
            numbers that are NaN or infinite.
        """
        parts = self.parts(pipeline.heads)
        pipeline.check(self)
        return self._stream(self._program(pipeline, parts), pipeline, items, skip)

    def _stream(
        self,
        program: "Program",
        pipeline: Pipeline[Item, Result],
        items: Iterable[Item],
        skip: Callable[[int, UserError], None] | None,
    ) -> Iterator[Result]:
        sizes = self._batch_sizes()
        waiting: deque[Entry[Item]] = deque()
        batches = plan_ahead(self._entries(pipeline, items, all_items=skip is not None), sizes, waiting)
        for entry in in_order(batches, waiting, program.dispatch, program.receive):
            if not isinstance(entry.rows, UserError):
                yield pipeline.decode(self, entry.item, entry.rows, entry.outputs)
            elif skip is None:
                raise entry.rows
            else:
                skip(entry.index, entry.rows)

    def _entries(self, pipeline: Pipeline[Item, Any], items: Iterable[Item], *, all_items: bool) -> Iterator[Entry]:
        """Encodes items. An item that cannot be used is the last, unless all items are wanted."""
        limit = self.max_tokens(pipeline.heads)
        for index, item in enumerate(items):
            try:
                rows = pipeline.encode(self, item)
                longest = max((len(row.input_ids) for row in rows.rows), default=0)
                if limit is not None and longest > limit:
                    raise UserError(
                        f"the text has {longest} tokens, but {self.source} has positions for {limit}; shorten it"
                    )
            except UserError as error:
                yield Entry(index, item, error)
                if not all_items:
                    return
            else:
                yield Entry(index, item, rows)

    # ------------------------------------------------------------------------------------ parameters and programs

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return make_mesh()

    def _batch_sizes(self) -> BatchSizes:
        # A CPU is busy with few tokens, and it compiles fast: small batches of many lengths have the least padding.
        small = self._mesh.devices.flat[0].platform == "cpu"
        batch_size = self.batch_size or (8 if small else 64)
        return BatchSizes(batch_size, batch_devices(self._mesh), steps=4 if small else 2)

    @functools.cached_property
    def _placed(self) -> dict[str, Any]:
        """The parts of the parameters that are on the devices, by name; filled when they are used."""
        return {}

    @functools.cached_property
    def _programs(self) -> dict[Any, "Program"]:
        return {}

    def _parameters(self, names: Iterable[str]) -> dict[str, Any]:
        """Returns parts of the parameters, on all devices."""
        for name in names:
            if name not in self._placed:
                part = {name: self.params[name]}
                # The table has no rules for 8 bits. On a mesh of data alone, it replicates all parameters as well.
                everywhere = NamedSharding(self._mesh, PartitionSpec())
                placement = named_shardings(part, self._mesh) if self.weights == "float32" else everywhere
                self._placed.update(jax.device_put(part, placement))
        return {name: self._placed[name] for name in names}

    def _program(self, pipeline: Pipeline[Any, Any], parts: Sequence[str]) -> "Program":
        """Returns the compiled form of a pipeline, the same for pipelines that compute the same."""
        key = pipeline.traced_settings()
        if key not in self._programs:
            params = self._parameters(parts)
            model = pipeline.model(self.config, dtype=jnp.dtype(self.dtype))
            if isinstance(model, Deberta):
                params = params["deberta"]
            if self.weights == "int8":
                model = int8_model(model)
            self._programs[key] = Program(self, params, model, pipeline)
        return self._programs[key]


class Program:
    """A model with its parameters and what a pipeline reads of its output, compiled once for each shape."""

    def __init__(self, runner: Runner, params: Any, model: Any, pipeline: Pipeline[Any, Any]) -> None:
        self._runner, self._params = runner, params

        def compute(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            options = {name: batch[name] for name in ("masked_positions",) if name in batch}
            out = model.apply(
                {"params": params},
                batch["input_ids"],
                batch["attention_mask"],
                token_type_ids=batch["token_type_ids"],
                **options,
            )
            return pipeline.outputs(out, batch)

        self._compute = jax.jit(compute, compiler_options=compiler_options(runner._mesh))
        self._token_axes: dict[str, int | None] | None = None

    def dispatch(self, batch: Batch) -> dict[str, jax.Array]:
        """Starts the computation of a batch and returns its outputs, which may not be ready."""
        mesh = self._runner._mesh
        arrays = jax.device_put(batch.arrays(self._runner.tokenizer.pad_id), batch_sharding(mesh))
        with jax.set_mesh(mesh):
            outputs = self._compute(self._params, arrays)
            if self._token_axes is None:
                self._token_axes = self._find_token_axes(arrays, outputs)
        return outputs

    def receive(self, batch: Batch, outputs: dict[str, jax.Array]) -> None:
        """Waits for the outputs of a batch and hands them to its entries.

        Raises:
          UserError: They are NaN or infinite.
        """
        assert self._token_axes is not None
        try:
            batch.deliver(jax.device_get(outputs), self._token_axes)
        except FloatingPointError:
            source = self._runner.source
            check_finite(self._params, where=source)  # names them
            raise UserError(
                f"the logits of {source} are NaN or infinite, because its parameters are too large"
            ) from None

    def _find_token_axes(
        self, arrays: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]
    ) -> dict[str, int | None]:
        """Returns the axis of each output that has as many elements as rows have tokens, or None.

        A number of classes may equal the number of tokens by chance, so the program is traced with another length.
        """
        rows, length = arrays["input_ids"].shape
        if not any(length in output.shape[1:] for output in outputs.values()):
            return dict.fromkeys(outputs)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(arrays, (rows, _TRACED_LENGTH))
        if "masked_positions" in arrays:
            shapes["masked_positions"] = arrays["masked_positions"].shape
        others = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
        shorter = jax.eval_shape(self._compute, self._params, others)
        return {
            name: next((axis for axis, size in enumerate(output.shape) if size != shorter[name].shape[axis]), None)
            for name, output in outputs.items()
        }
