"""How many layers keep their attention probabilities for the backward pass: as many as fit into a TPU's memory.

A layer that keeps them computes neither scores nor softmax again (see `deberta_jax.kernels`), and takes memory from the
forward to the backward pass. How much a step needs besides, only its compilation tells. So the step is compiled with
all layers, which is usually all that it takes; if it does not fit, without any, and then with as many as there is room
for.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, Self, TypeVar

import jax
from jax.sharding import Mesh

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import is_out_of_device_memory
from deberta_jax.kernels import kept_bytes
from deberta_jax.sharding import LOGICAL_AXES, batch_devices

_MIB = 1 << 20

Program = TypeVar("Program")


@dataclasses.dataclass(frozen=True)
class KeptLayers:
    """What a step's layers take to keep their probabilities.

    Attributes:
      layers: of the deepest model of the step.
      layer_bytes: what one more layer of each model takes on a device; 0 where the kernels cannot keep probabilities.
    """

    layers: int
    layer_bytes: int

    @classmethod
    def of_batch(
        cls,
        models: Sequence[DebertaConfig],
        shape: Sequence[int],
        mesh: Mesh,
        *,
        accumulation: int,
        dtype: Any,
        together: bool = False,
    ) -> Self:
        """Returns what the layers of some models take for a batch.

        Args:
          models: the models of the step.
          shape: of the batch's token ids, [B, ..., S].
          mesh: of the devices.
          accumulation: number of accumulation steps.
          dtype: of the computation.
          together: all models are in the memory at the same time, because one loss has gradients for all of them.
        """
        *batch, length = shape
        heads_axis = mesh.shape.get(LOGICAL_AXES["heads"], 1)
        each = []
        for config in models:
            kind = mesh.devices.flat[0].device_kind
            rows = math.ceil(math.prod(batch) / (accumulation * batch_devices(mesh)))
            size = kept_bytes(config, rows, length, dtype=dtype, device_kind=kind)
            splits = config.num_attention_heads % heads_axis == 0
            each.append(0 if config.model_type == "xlnet" else size // heads_axis if splits else size)
        return cls(max(config.num_hidden_layers for config in models), sum(each) if together else max(each))


@dataclasses.dataclass(frozen=True)
class FittedProgram(Generic[Program]):
    """A program with as many kept layers as fit, and one line about why so many.

    The program is None if it does not fit even without any.
    """

    program: Program | None
    kept_layers: int
    reason: str


def fit_kept_layers(
    compile_with: Callable[[int], Program | None],
    needed_bytes: Callable[[Program], int],
    kept: KeptLayers,
    available: int,
) -> FittedProgram[Program]:
    """Compiles a step with as many kept layers as fit into the memory of a device.

    Args:
      compile_with: compiles the step with so many kept layers; None if the compiler finds that it does not fit.
      needed_bytes: memory that a compiled step needs on a device.
      kept: what a layer takes.
      available: bytes of memory of a device.
    """
    size = f"{kept.layer_bytes / _MIB:.0f} MiB each"
    if not kept.layer_bytes:
        return FittedProgram(compile_with(0), 0, "the kernels keep nothing for these rows")
    program = compile_with(kept.layers)
    if program is not None and needed_bytes(program) <= available:
        return FittedProgram(program, kept.layers, f"all fit into memory, {size}")
    del program  # the host's memory for compiling is scarce, too
    without = compile_with(0)
    if without is None:
        return FittedProgram(None, 0, "the step does not fit into memory even so")
    room = max(available - needed_bytes(without), 0)
    layers = min(room // kept.layer_bytes, kept.layers)
    reason = f"{room / _MIB:.0f} MiB of memory are left without any, and they take {size}"
    program = compile_with(layers) if layers else None
    if program is None or needed_bytes(program) > available:
        return FittedProgram(without, 0, reason)
    return FittedProgram(program, layers, reason)


@dataclasses.dataclass
class FittingStep:
    """A training step that is compiled anew for each shape of the batch, with as many kept layers as fit.

    Attributes:
      build: returns the jitted step in which so many layers of each model keep their probabilities.
      kept: what the layers take for a batch whose token ids have this shape.
      log: takes one line for each shape.
    """

    build: Callable[[int], Any]
    kept: Callable[[Sequence[int]], KeptLayers]
    log: Callable[[str], None]
    _compiled: dict[tuple[int, ...], Any] = dataclasses.field(default_factory=dict)

    def __call__(self, state: Any, batch: dict[str, jax.Array], **arguments: Any) -> Any:
        shape = batch["input_ids"].shape  # the other fields follow from it
        if shape not in self._compiled:
            self._compiled[shape] = self._fit(state, batch, arguments)
        return self._compiled[shape](state, batch, **arguments)

    def _fit(self, state: Any, batch: dict[str, jax.Array], arguments: dict[str, Any]) -> Any:
        def compile_with(layers: int) -> Any:
            try:
                return self.build(layers).lower(state, batch, **arguments).compile()
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_device_memory(error):
                    raise
                return None

        shape = batch["input_ids"].shape
        kept = self.kept(shape)
        fitted = fit_kept_layers(compile_with, _needed_bytes, kept, _device_memory())
        rows = " x ".join(map(str, shape))
        self.log(
            f"{fitted.kept_layers} of {kept.layers} layers keep their attention probabilities for batches of {rows} "
            f"tokens: {fitted.reason}"
        )
        # Without memory for the step, the call raises the compiler's error with its figures.
        return self.build(0) if fitted.program is None else fitted.program


def training_step(
    build: Callable[[int], Any],
    kept: Callable[[Sequence[int]], KeptLayers],
    *,
    kept_layers: int | None,
    mesh: Mesh,
    log: Callable[[str], None],
) -> Callable[..., Any]:
    """Returns the step of a run.

    Args:
      build, kept, log: see `FittingStep`.
      kept_layers: the setting of the run; None means as many as fit on a TPU and none elsewhere.
      mesh: of the run.
    """
    if kept_layers is not None:
        if kept_layers:
            log(f"{kept_layers} layers keep their attention probabilities where the kernels can (kept_layers)")
        return build(kept_layers)
    if "TPU" not in mesh.devices.flat[0].device_kind:
        return build(0)
    return FittingStep(build, kept, log)


def _needed_bytes(program: Any) -> int:
    analysis = program.memory_analysis()
    return analysis.peak_memory_in_bytes + analysis.generated_code_size_in_bytes


def _device_memory() -> int:
    """Returns the bytes of memory of this process's first device."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
