"""`Predictor`: a model that is put to use, from text to results."""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ..errors import UserError
from ..models import Deberta
from ..parameter_check import check_finite
from ..sharding import batch_devices, batch_sharding, make_mesh, named_shardings
from ..tokenizers.batch import as_list, check_text, texts_and_pairs
from .batching import Batch, BatchSizes, Entry, in_order, plan_ahead
from .classification import Classification, ClassifyTexts, ScoreTexts
from .fill_mask import FillMask, TokenCandidate
from .loaded_model import LoadedModel
from .open_model import open_model
from .pipeline import Pipeline, TextPair
from .replaced_tokens import DetectReplacedTokens, TokenScore
from .windows import Combination, Windows

Item = TypeVar("Item")
Result = TypeVar("Result")

DTYPES = ("float32", "bfloat16")
_BATCH_SIZE = {"cpu": 8}  # a CPU is busy with few tokens, and small batches have less padding
_LARGE_BATCH_SIZE = 64
_TRACED_LENGTH = 8  # shorter than every padded row


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor(LoadedModel):
    """A model put to use on all devices of this process.

    Attributes:
      dtype: The dtype of the computation, "float32" or "bfloat16". Parameters, scores and logits are float32.
      batch_size: Number of rows of 128 tokens in a batch on each device. A batch of shorter rows has more of them, of
        longer rows fewer (default: 8 on a CPU, 64 on other devices).

    Raises:
      UserError: The dtype is unknown, the batch size is below 1, JAX runs in several processes, or as `LoadedModel`.

    Example:
      Predictor.load("runs/sst2").classify(["a gripping film"])
    """

    dtype: str = "float32"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in DTYPES:
            raise UserError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; it must be at least 1")
        if jax.process_count() > 1:
            raise UserError(
                f"prediction runs in one process, but JAX runs in {jax.process_count()}; start one process, and give "
                "each host a part of the texts"
            )

    @classmethod
    def load(
        cls,
        source: str,
        *,
        filename: str | None = None,
        tokenizer: Any = None,
        dtype: str = "float32",
        batch_size: int | None = None,
    ) -> Self:
        """Opens a model.

        Args:
          source: A folder of this library or of PyTorch files, or a hub name such as "microsoft/deberta-v3-base";
            NAME@REVISION names a branch, tag or commit.
          filename: Name of the PyTorch weight file, if it is not one of the usual names.
          tokenizer: A `Tokenizer`, or a folder or hub name that has one (default: that of the model).
          dtype: See the class.
          batch_size: See the class.

        Raises:
          Exception: As `open_model`, or as the class.
        """
        model = open_model(source, filename=filename, tokenizer=tokenizer)
        return cls(model.source, model.config, model.params, model.tokenizer, dtype, batch_size)

    def run(
        self,
        pipeline: Pipeline[Item, Result],
        items: Iterable[Item],
        *,
        skip: Callable[[int, UserError], None] | None = None,
    ) -> Iterator[Result]:
        """Yields the result of every item, in their order.

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
        program = self._program(pipeline)
        pipeline.check(self)
        sizes = BatchSizes(self.batch_size or _BATCH_SIZE.get(self._platform, _LARGE_BATCH_SIZE), self._devices)
        waiting: deque[Entry[Item]] = deque()
        batches = plan_ahead(self._entries(pipeline, items, all_items=skip is not None), sizes, waiting)
        for entry in in_order(batches, waiting, program.dispatch, program.receive):
            if entry.error is None and entry.rows is not None:
                yield pipeline.decode(self, entry.item, entry.rows, entry.outputs)
            elif skip is None:
                raise entry.error  # type: ignore[misc]
            else:
                skip(entry.index, entry.error)  # type: ignore[arg-type]

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
                yield Entry(index, item, None, error)
                if not all_items:
                    return
            else:
                yield Entry(index, item, rows, None)

    def _results(self, pipeline: Pipeline[Item, Result], items: Sequence[Item]) -> list[Result]:
        """Returns the results of a list. An error names the item if there are several."""

        def fail(index: int, error: UserError) -> None:
            raise error if len(items) == 1 else type(error)(f"text {index}: {error}")

        return list(self.run(pipeline, items, skip=fail))

    # ----------------------------------------------------------------------------------------------- the uses

    def classify(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        pairs: Sequence[str] | None = None,
        *,
        top_k: int | None = None,
        max_length: int | None = None,
        windows: Combination = "mean",
        stride: int | None = None,
    ) -> list[Classification]:
        """Returns the class and the probabilities of each text or pair; see `ClassifyTexts`.

        Args:
          texts: The texts, or pairs of texts.
          pairs: The second text of each pair.
          top_k: Number of classes in the results (default: all).
          max_length: Largest number of tokens of a row; a longer text is read in windows. See `Windows`.
          windows: "mean" or "max" of the probabilities of the windows, "truncate" or "error".
          stride: Number of tokens between the starts of two windows (default: half of a window).

        Raises:
          UserError: Something is not text, the model has no such head, or a value is out of range.
        """
        pipeline = ClassifyTexts(Windows(max_length, windows, stride), top_k)
        return self._results(pipeline, _pairs(texts, pairs))

    def score(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        pairs: Sequence[str] | None = None,
        *,
        raw: bool | None = None,
        max_length: int | None = None,
        windows: Combination = "mean",
        stride: int | None = None,
    ) -> list[float]:
        """Returns the score that a model of one logit gives to each text or pair; see `ScoreTexts`.

        Args:
          texts: The texts, or pairs of texts.
          pairs: The second text of each pair.
          raw: Return the logits (default: for regression; otherwise their sigmoid).
          max_length: As for `classify`.
          windows: As for `classify`.
          stride: As for `classify`.

        Raises:
          UserError: As `classify`.
        """
        pipeline = ScoreTexts(Windows(max_length, windows, stride), raw)
        return self._results(pipeline, _pairs(texts, pairs))

    def fill_mask(self, texts: Sequence[str], *, top_k: int = 5) -> list[list[list[TokenCandidate]]]:
        """Returns the `top_k` most probable tokens for each [MASK] of each text; see `FillMask`.

        Raises:
          UserError: Something is not text or has no [MASK], the model has no masked LM head, or `top_k` is too large.
        """
        return self._results(FillMask(self.tokenizer.vocab_size, top_k), _texts(texts))

    def replaced_tokens(self, texts: Sequence[str]) -> list[list[TokenScore]]:
        """Returns for each token of each text how likely it is that it was replaced; see `DetectReplacedTokens`.

        Raises:
          UserError: Something is not text or has no tokens, or the model has no replaced token head.
        """
        return self._results(DetectReplacedTokens(), _texts(texts))

    # ------------------------------------------------------------------------------------ parameters and programs

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return make_mesh()

    @property
    def _platform(self) -> str:
        return self._mesh.devices.flat[0].platform

    @property
    def _devices(self) -> int:
        return batch_devices(self._mesh)

    @functools.cached_property
    def _placed(self) -> dict[str, Any]:
        """The parts of the parameters that are on the devices, by name; filled when they are used."""
        return {}

    @functools.cached_property
    def _programs(self) -> dict[Any, "_Program"]:
        return {}

    def _parameters(self, names: Iterable[str]) -> dict[str, Any]:
        """Returns parts of the parameters, on all devices."""
        for name in names:
            if name not in self._placed:
                part = {name: self.params[name]}
                self._placed.update(jax.device_put(part, named_shardings(part, self._mesh)))
        return {name: self._placed[name] for name in names}

    def _program(self, pipeline: Pipeline[Any, Any]) -> "_Program":
        """Returns the compiled form of a pipeline, the same for pipelines that compute the same."""
        key = type(pipeline), pipeline.traced_settings()
        if key not in self._programs:
            params = self._parameters(self.parts(pipeline.heads))
            model = pipeline.model(self.config, dtype=jnp.dtype(self.dtype))
            if isinstance(model, Deberta):
                params = params["deberta"]
            self._programs[key] = _Program(self, params, model, pipeline)
        return self._programs[key]


def _texts(texts: Sequence[str]) -> list[str]:
    return [check_text(text, f"text {i}") for i, text in enumerate(as_list(texts, "texts"))]


def _pairs(texts: Sequence[Any], pairs: Sequence[str] | None) -> list[TextPair]:
    return [TextPair(*pair) for pair in texts_and_pairs(texts, pairs)]


class _Program:
    """A model with its parameters and what a pipeline reads of its output, compiled once for each shape."""

    def __init__(self, predictor: Predictor, params: Any, model: Any, pipeline: Pipeline[Any, Any]) -> None:
        self._predictor, self._params = predictor, params

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

        self._compute = jax.jit(compute)
        self._token_axes: dict[str, int | None] | None = None

    def dispatch(self, batch: Batch) -> dict[str, jax.Array]:
        """Starts the computation of a batch and returns its outputs, which may not be ready."""
        mesh = self._predictor._mesh
        arrays = jax.device_put(batch.arrays(self._predictor.tokenizer.pad_id), batch_sharding(mesh))
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
            source = self._predictor.source
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
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(arrays, (rows, _TRACED_LENGTH))
        if "masked_positions" in arrays:
            shapes["masked_positions"] = arrays["masked_positions"].shape
        others = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
        if not any(length in output.shape[1:] for output in outputs.values()):
            return dict.fromkeys(outputs)
        shorter = jax.eval_shape(self._compute, self._params, others)
        return {
            name: next((axis for axis, size in enumerate(output.shape) if size != shorter[name].shape[axis]), None)
            for name, output in outputs.items()
        }
