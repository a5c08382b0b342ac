"""A training step with shapes in place of arrays, built as `pretrain` and `finetune` build theirs."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.rtd import EmbeddingSharing, RTDModels
from deberta_jax.sharding import BATCH_AXES, batch_devices, batch_sharding, make_mesh, shardings

from .. import finetune, pretrain, pretrain_setup
from ..configs import (
    FinetuneConfig,
    MeshConfig,
    ModelsConfig,
    ObjectiveConfig,
    PretrainConfig,
    TaskDataConfig,
    TextConfig,
)
from ..data.masking import MaskingConfig
from ..engine.optimizer import build_optimizer
from ..engine.state import TrainState
from ..tasks.classification.task import Classification
from .model_flops import classification_flops, masked_lm_flops, rtd_flops

_STEPS = 500_000  # the length of the schedule is a constant of the program: any will do


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What the program of a training step depends on."""

    model: str = "deberta-v3-large"
    """a released size, or a JSON file: one model's configuration, or generator and discriminator"""
    topology: str = "v5e:16x16"
    """the slice, CHIP:SHAPE; a wrong one lists those that exist"""
    task: Literal["rtd", "mlm", "finetune"] = "rtd"
    """pre-training by replaced token detection or masked LM, or fine-tuning a classifier"""
    global_batch: int = 8192
    """rows a step, over all chips"""
    sequence_length: int = 512
    """tokens a row"""
    accumulation: int = 1
    """chunks that a batch is worked off in, to save memory"""
    mesh: MeshConfig = MeshConfig()
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """what activations are computed in"""
    remat: bool = False
    """recompute each layer in the backward pass instead of keeping its activations"""
    vocab_size: int | None = None
    """rows of the word embeddings; default: what the model says"""
    mask_rate: float = 0.15
    """share of the tokens that is masked"""
    embedding_sharing: EmbeddingSharing | None = None
    """of rtd; default: what the JSON file says, else gdes"""
    decoupled: bool = True
    """of rtd: generator and discriminator updated one after the other"""
    num_labels: int = 2
    """of finetune: classes; 1 for regression"""


@dataclasses.dataclass(frozen=True)
class Program:
    """A step as a run compiles it, and what it takes: shapes with shardings. flops: of a row, both passes."""

    step: Any
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    mesh: Mesh
    flops: int


def build(config: StepConfig, devices: list[Any]) -> Program:
    """The step of `pretrain` or `finetune`.

    Raises:
      ValueError: no such model, or a batch or a parameter that a mesh axis does not divide; it is named.
    """
    mesh = lay_mesh(config, devices)
    check_batch(config, mesh)
    step, create, fields, flops = (_finetune if config.task == "finetune" else _pretrain)(config)
    state = jax.eval_shape(create)
    placement = shardings(state, mesh)
    place = batch_sharding(mesh)
    return Program(
        step=jax.jit(step, donate_argnums=0, out_shardings=(placement, None)),
        state=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, placement
        ),
        batch={
            name: jax.ShapeDtypeStruct((config.global_batch, *shape), dtype, sharding=place)
            for name, (shape, dtype) in fields.items()
        },
        mesh=mesh,
        flops=flops,
    )


Parts = tuple[Callable[..., Any], Callable[[], TrainState], dict[str, tuple[tuple[int, ...], Any]], int]


def _pretrain(config: StepConfig) -> Parts:
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
    )
    models_config = pretrain_setup.resolve_models(run)
    models = RTDModels.build(models_config, dtype=jnp.dtype(run.dtype), remat=run.remat)
    optimizers = pretrain.build_optimizers(run)

    length, masked = config.sequence_length, MaskingConfig(rate=config.mask_rate).slots(config.sequence_length)
    widths = {"input_ids": length, "segment_ids": length, "masked_positions": masked, "masked_labels": masked}
    flops = (
        masked_lm_flops(models_config.generator, length, masked)
        if run.objective.name == "mlm"
        else rtd_flops(models_config, length, masked)
    )
    return (
        pretrain.build_step(models, optimizers, run, sharing=models_config.embedding_sharing),
        functools.partial(pretrain.build_state, run, models_config, optimizers, {}),
        {name: ((widths[name],), jnp.int32) for name in pretrain_setup.BATCH_FIELDS},
        3 * flops,
    )


def _finetune(config: StepConfig) -> Parts:
    run = FinetuneConfig(
        output=Path(),
        model=Path(),
        data=TaskDataConfig(train="", max_length=config.sequence_length),
        batch_size=config.global_batch,
        accumulation=config.accumulation,
        steps=_STEPS,
        dtype=config.dtype,
        remat=config.remat,
    )
    path = config.model
    model_config = DebertaConfig.from_json(path) if path.endswith(".json") else DebertaConfig.named(path)
    model_config = model_config.replace(num_labels=config.num_labels, label_names=())
    if config.vocab_size is not None:
        model_config = model_config.replace(vocab_size=config.vocab_size)
    objective = Classification(regression=config.num_labels == 1)
    model = objective.model(model_config, dtype=jnp.dtype(run.dtype), remat=run.remat)
    optimizer = build_optimizer(run.optimizer, total_steps=_STEPS)
    ids = jnp.ones((1, 8), jnp.int32)
    rows = ((config.sequence_length,), jnp.int32)
    fields = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), rows)
    labels = ((), jnp.float32 if config.num_labels == 1 else jnp.int32)
    return (
        finetune.build_step(model, objective, optimizer, run, total_steps=_STEPS),
        functools.partial(finetune.build_state, model, optimizer, ids, seed=run.seed),
        {**fields, "labels": labels},
        3 * classification_flops(model_config, config.sequence_length),
    )


def lay_mesh(config: StepConfig, devices: list[Any]) -> Mesh:
    try:
        return make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    except NotImplementedError:  # jax finds no way to lay the axes on the torus
        asked = " x ".join(f"{axis} {size}" for axis, size in dataclasses.asdict(config.mesh).items())
        raise UserError(
            f"a mesh of {asked} cannot be laid on {config.topology}; give sizes that are products of its sides"
        ) from None


def check_batch(config: StepConfig, mesh: Mesh) -> None:
    """Raises ValueError where the batch does not divide; it says by what."""
    rows, left = config.global_batch, "global_batch"
    for name, size in (
        ("accumulation", config.accumulation),
        *((f"the mesh axis {axis}", mesh.shape[axis]) for axis in BATCH_AXES),
    ):
        if rows % size:
            least = config.accumulation * batch_devices(mesh)
            raise UserError(f"{left} {rows} does not divide by {name} of size {size}; give a multiple of {least}")
        if size > 1:
            rows, left = rows // size, f"{left} / {name.split()[-1]}"
