"""Builds the training step of `pretrain` or `finetune` with abstract arrays, for compiling it ahead of time."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.rtd import EmbeddingSharing, RTDConfig, RTDModels
from deberta_jax.sharding import BATCH_AXES, batch_devices, batch_sharding, make_mesh, named_shardings

from .. import finetune, pretrain, pretrain_setup
from ..configs import (
    FinetuneConfig,
    MeshConfig,
    ModelsConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PretrainConfig,
    TaskDataConfig,
    TextConfig,
)
from ..data.masking import MaskingConfig
from ..engine.kept_layers import KeptLayers
from ..engine.optimizer import build_optimizer
from ..engine.state import TrainState
from ..settings import BatchSize, NotNegative, Positive, Range, Settings
from ..tasks.classification.task import Classification
from .model_flops import classification_flops, masked_lm_flops, rtd_flops, without_relative_terms

_STEPS = 500_000  # length of the learning-rate schedule, a constant of the program that does not affect its cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig(Settings):
    """The settings that the program of a training step depends on."""

    model: str = "deberta-v3-large"
    """released size, or JSON file with the configuration of one model or of generator and discriminator"""
    topology: str = "v5e:16x16"
    """TPU slice as CHIP:SHAPE; an unknown one prints a list"""
    slices: Positive = 1
    """number of such slices, connected by the data-center network, which only the data axis of the mesh crosses"""
    task: Literal["rtd", "mlm", "finetune"] = "rtd"
    """replaced token detection, masked language modeling, or fine-tuning of a classifier"""
    global_batch: BatchSize = 8192
    """rows in a step, over all chips"""
    sequence_length: Positive = 512
    """tokens in a row"""
    accumulation: Positive = 1
    """number of gradient-accumulation steps"""
    mesh: MeshConfig = MeshConfig()
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """dtype of activations"""
    remat: bool = False
    """recompute each layer in the backward pass instead of keeping its activations"""
    kept_layers: NotNegative | None = None
    """number of layers of each model that keep their attention probabilities for the backward pass, for rows of up to
    512 tokens (default: as many as fit into memory)"""
    vocab_size: Positive | None = None
    """rows of the word embeddings (default: those of the model)"""
    mask_rate: Annotated[float, Range(above=0, below=1)] = 0.15
    """share of the tokens that is masked"""
    embedding_sharing: EmbeddingSharing | None = None
    """embedding sharing of generator and discriminator (default: that of the JSON file, else gdes)"""
    decoupled: bool = True
    """update generator and discriminator one after the other (for the task rtd)"""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """data type of Adam's moments"""
    num_labels: Positive = 2
    """number of classes for the task finetune; 1 is regression"""


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A training step as a run compiles it, and its arguments as shapes with shardings.

    Attributes:
      step: the jitted function; it takes `state` and `batch` and donates the state.
      state: the training state.
      batch: the global batch by field.
      mesh: the mesh of the devices.
      flops: floating-point operations of one row in both passes, see `model_flops`.
      relative_flops: the part of them that the relative terms of attention take.
      kept: what its layers take to keep their probabilities.
    """

    step: Any
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    mesh: Mesh
    flops: int
    relative_flops: int
    kept: KeptLayers


def build(config: StepConfig, devices: list[Any]) -> StepProgram:
    """Builds the step of `pretrain` or `finetune`.

    Raises:
      UserError: the model does not exist, or a mesh axis does not divide the batch or a parameter, which is named.
    """
    mesh = make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    check_batch(config, mesh)
    parts = _finetune(config) if config.task == "finetune" else _pretrain(config)
    state = jax.eval_shape(parts.create)
    placement = named_shardings(state, mesh)
    sharding = batch_sharding(mesh)
    # As in a run, the state is donated and keeps its sharding: otherwise memory would hold the old and the new state.
    return StepProgram(
        step=jax.jit(parts.step, donate_argnums=0, out_shardings=(placement, None)),
        state=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, placement
        ),
        batch={
            name: jax.ShapeDtypeStruct((config.global_batch, *field.shape), field.dtype, sharding=sharding)
            for name, field in parts.row.items()
        },
        mesh=mesh,
        flops=parts.flops,
        relative_flops=parts.relative_flops,
        kept=KeptLayers.of_batch(
            parts.models,
            (config.global_batch, config.sequence_length),
            mesh,
            accumulation=config.accumulation,
            dtype=jnp.dtype(config.dtype),
            together=not config.decoupled,
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What differs between the tasks.

    Attributes:
      step: the training step, not jitted.
      create: builds the initial training state.
      row: shape and dtype of each field of a batch, without the batch axis.
      flops, relative_flops: floating-point operations of one row in both passes, all and those of relative terms.
      models: configurations of the models that are trained.
    """

    step: Callable[..., Any]
    create: Callable[[], TrainState]
    row: dict[str, jax.ShapeDtypeStruct]
    flops: int
    relative_flops: int
    models: list[DebertaConfig]


def _pretrain(config: StepConfig) -> _Parts:
    run = PretrainConfig(
        output=Path(),
        tokenizer=Path(),
        data=TextConfig(sequence_length=config.sequence_length),
        models=ModelsConfig(
            model=config.model, vocab_size=config.vocab_size, embedding_sharing=config.embedding_sharing
        ),
        objective=ObjectiveConfig(
            name="mlm" if config.task == "mlm" else "rtd", decoupled=config.decoupled, mask_rate=config.mask_rate
        ),
        batch_size=config.global_batch,
        accumulation=config.accumulation,
        steps=_STEPS,
        dtype=config.dtype,
        remat=config.remat,
        optimizer=OptimizerConfig(moment_dtype=config.moment_dtype),
    )
    models_config = pretrain_setup.resolve_models(run)
    models = RTDModels.build(
        models_config, dtype=jnp.dtype(run.dtype), remat=run.remat, kept_layers=config.kept_layers or 0
    )
    optimizers = pretrain.build_optimizers(run)

    length, masked = config.sequence_length, MaskingConfig(rate=config.mask_rate).slots(config.sequence_length)
    widths = {"input_ids": length, "segment_ids": length, "masked_positions": masked, "masked_labels": masked}
    # The backward pass takes twice the operations of the forward pass.
    flops, plain_flops = (
        3 * masked_lm_flops(models.generator, length, masked)
        if run.objective.name == "mlm"
        else 3 * rtd_flops(models, length, masked)
        for models in (models_config, _without_relative_terms(models_config))
    )
    return _Parts(
        pretrain.build_step(models, optimizers, run, sharing=models_config.embedding_sharing),
        functools.partial(pretrain.build_state, run, models_config, optimizers, {}),
        {name: jax.ShapeDtypeStruct((widths[name],), jnp.int32) for name in pretrain_setup.BATCH_FIELDS},
        flops,
        flops - plain_flops,
        [models_config.generator, *([models_config.discriminator] if config.task == "rtd" else [])],
    )


def _without_relative_terms(models: RTDConfig) -> RTDConfig:
    return dataclasses.replace(
        models,
        generator=without_relative_terms(models.generator),
        discriminator=without_relative_terms(models.discriminator),
    )


def _finetune(config: StepConfig) -> _Parts:
    run = FinetuneConfig(
        output=Path(),
        model=Path(),
        data=TaskDataConfig(train="unused", max_length=config.sequence_length),
        batch_size=config.global_batch,
        accumulation=config.accumulation,
        steps=_STEPS,
        dtype=config.dtype,
        remat=config.remat,
        optimizer=OptimizerConfig(moment_dtype=config.moment_dtype),
    )
    path = config.model
    model_config = DebertaConfig.from_json(path) if path.endswith(".json") else DebertaConfig.named(path)
    model_config = model_config.replace(num_labels=config.num_labels, label_names=())
    if config.vocab_size is not None:
        model_config = model_config.replace(vocab_size=config.vocab_size)
    objective = Classification(regression=config.num_labels == 1)
    model = objective.model(model_config, dtype=jnp.dtype(run.dtype), remat=run.remat)
    model = model.clone(kept_layers=config.kept_layers or 0)  # type: ignore[call-arg]  # of every model
    optimizer = build_optimizer(run.optimizer, total_steps=_STEPS)
    ids = jnp.ones((1, 8), jnp.int32)
    tokens = jax.ShapeDtypeStruct((config.sequence_length,), jnp.int32)
    fields = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), tokens)
    labels = jax.ShapeDtypeStruct((), jnp.float32 if config.num_labels == 1 else jnp.int32)
    flops, plain_flops = (
        3 * classification_flops(counted, config.sequence_length)
        for counted in (model_config, without_relative_terms(model_config))
    )
    return _Parts(
        finetune.build_step(model, objective, optimizer, run, total_steps=_STEPS),
        functools.partial(finetune.build_state, model, optimizer, ids, seed=run.seed),
        {**fields, "labels": labels},
        flops,
        flops - plain_flops,
        [model_config],
    )


def check_batch(config: StepConfig, mesh: Mesh) -> None:
    """Checks that accumulation and each batch axis of the mesh divide the batch.

    Raises:
      UserError: one of them does not; the message names it.
    """
    rows, divided = config.global_batch, "global_batch"
    for name, size in (
        ("accumulation", config.accumulation),
        *((f"the mesh axis {axis}", mesh.shape[axis]) for axis in BATCH_AXES),
    ):
        if rows % size:
            least = config.accumulation * batch_devices(mesh)
            raise UserError(f"{divided} {rows} is not divisible by {name} of size {size}; give a multiple of {least}")
        if size > 1:
            rows, divided = rows // size, f"{divided} / {name.split()[-1]}"
