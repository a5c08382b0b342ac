"""The programs of a forward pass and a training step on NVIDIA GPUs, through XLA's CUDA compiler and without a GPU."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from deberta_jax import DebertaConfig, DebertaForSequenceClassification
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.engine.optimizer import build_optimizer
from deberta_jax.train.finetune import build_state, build_step
from deberta_jax.train.tasks.classification.task import Classification

from ..support.configs import finetune_config
from ..support.gpu_compiler import compile_for_gpu, needs_cuda_compiler
from ..support.small_models import SMALL

BASE = DebertaConfig.named("deberta-v3-base")
LENGTH = 512

pytestmark = [pytest.mark.slow, needs_cuda_compiler]


def model_of(config: DebertaConfig) -> DebertaForSequenceClassification:
    return DebertaForSequenceClassification(config, dtype=jnp.bfloat16)


def ids_of(rows: int, length: int = LENGTH) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, length), jnp.int32)


def forward(config: DebertaConfig, rows: int, card: str) -> Any:
    """Compiles the logits of a batch of full rows."""
    model = model_of(config)
    params = jax.eval_shape(model.init, jax.random.key(0), ids_of(1, 8))["params"]
    return compile_for_gpu(
        lambda params, ids: model.apply({"params": params}, ids).logits, params, ids_of(rows), card=card
    )


def training_step(config: DebertaConfig, rows: int, card: str) -> Any:
    """Compiles the step of `deberta-jax finetune`, whose state is donated."""
    settings = OptimizerConfig(max_grad_norm=1.0)
    optimizer = build_optimizer(settings, total_steps=1000)
    run = finetune_config(optimizer=settings)
    step = build_step(model_of(config), Classification(), optimizer, run, total_steps=1000)
    create = functools.partial(build_state, model_of(config), optimizer, jnp.ones((1, 8), jnp.int32), seed=0)
    batch = {name: ids_of(rows) for name in ("input_ids", "attention_mask", "token_type_ids")}
    batch["labels"] = jax.ShapeDtypeStruct((rows,), jnp.int32)
    return compile_for_gpu(step, jax.eval_shape(create), batch, card=card, donate_argnums=0)


def float32_sizes(program: Any) -> set[int]:
    """Returns the number of elements of every float32 array that a program stores: not of those inside of a fusion."""
    computations = re.split(r"(?m)^(?=\S.*\{$)", program.as_text())
    text = "".join(part for part in computations if not part.startswith("%fused"))
    return {math.prod(map(int, shape.split(","))) for shape in re.findall(r"\bf32\[([\d,]+)\]", text)}


@pytest.mark.parametrize("card", ["h100", "a100"])
def test_a_small_model_compiles(card: str) -> None:
    config = SMALL.replace(num_hidden_layers=2, num_attention_heads=2)
    memory = forward(config, 4, card).memory_analysis()
    assert memory.output_size_in_bytes == 4 * config.num_labels * 4
    memory = training_step(config, 4, card).memory_analysis()
    assert memory.alias_size_in_bytes > 0.99 * memory.argument_size_in_bytes - 4 * 4 * LENGTH * 4  # all but the batch


def test_arrays_kept_for_the_backward_pass_are_smaller_than_scores() -> None:
    """Of any type, because a mask of dropout or probabilities in bfloat16 would be as many."""
    config, rows = SMALL.replace(num_hidden_layers=2, num_attention_heads=2), 4
    model = model_of(config)
    ids = jnp.ones((rows, LENGTH), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids_of(1, 8))["params"]

    def kept(params: Any) -> Any:
        def logits(params):
            return model.apply({"params": params}, ids, train=True, rngs={"dropout": jax.random.key(1)}).logits

        return jax.vjp(logits, params)[1]

    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(kept, params))]
    assert sizes
    assert max(sizes) < config.num_attention_heads * rows * LENGTH * LENGTH / 2


def test_forward_pass_of_v3_base_holds_no_float32_scores_of_a_whole_layer() -> None:
    program = forward(BASE, 32, "h100")
    assert max(float32_sizes(program)) < 32 * BASE.num_attention_heads * LENGTH * LENGTH
    assert program.memory_analysis().temp_size_in_bytes < 2e9


def test_training_step_of_v3_base_fits_into_the_memory_of_the_leanest_peer() -> None:
    """FlashDeBERTa 0.0.8 was measured at 9.6 GB for this step (docs/gpu.md)."""
    program = training_step(BASE, 32, "h100")
    assert max(float32_sizes(program)) < 32 * BASE.num_attention_heads * LENGTH * LENGTH
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes + memory.argument_size_in_bytes < 9.6e9  # the state is donated
