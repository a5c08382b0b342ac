"""Shows where the time of a training step goes on a CPU, part by part.

    python -m tests.benchmarks.cpu_parts [--rounds 5] [--model deberta-v3-base] [--shapes 8x128 2x512]

The step is that of `tests.benchmarks.cpu_speed`: forward, backward, clipping and AdamW of a classifier in float32 with
dropout 0.1. Each part is a program of its own, timed in turn with the others, so the parts do not add up exactly: in
the step XLA fuses across their borders. A part is the median of the rounds. "matrix products" are the products of the
dense layers alone, forward and backward, without bias, GELU, LayerNorm and dropout: the least that a step can take.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deberta_jax import DebertaConfig, DebertaForSequenceClassification, attention, encoder
from deberta_jax.allocator import keep_freed_memory
from deberta_jax.attention_inputs import AttentionInputs
from deberta_jax.positions import live_rows
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.engine.optimizer import build_optimizer
from deberta_jax.train.engine.state import TrainState
from deberta_jax.train.finetune import build_step
from deberta_jax.train.tasks.classification.task import Classification

from ..support.configs import finetune_config
from .table import table

SETTINGS = OptimizerConfig(learning_rate=1e-5, max_grad_norm=1.0)
Part = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="deberta-v3-base")
    parser.add_argument("--shapes", nargs="+", default=["8x128", "2x512"], help="rows x tokens")
    options = parser.parse_args()
    keep_freed_memory()  # as training does
    config = DebertaConfig.named(options.model)
    model = DebertaForSequenceClassification(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    for shape in options.shapes:
        batch, length = map(int, shape.split("x"))
        seconds = time_parts(parts_of(config, params, batch, length), options.rounds)
        whole = seconds["training step"]
        rows = [[name, f"{value:.3f}", f"{100 * value / whole:.0f} %"] for name, value in seconds.items()]
        print(f"\n{options.model}, {batch} x {length}\n\n{table(['part', 's', 'of the step'], rows)}", flush=True)


def time_parts(parts: dict[str, Part], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each part; every round runs all of them."""
    for run in parts.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, run in parts.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def parts_of(config: DebertaConfig, params: Any, batch: int, length: int) -> dict[str, Part]:
    """Returns the whole step and its parts, as functions that run compiled programs."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, config.vocab_size, (batch, length)).astype(np.int32)
    labels = np.zeros(batch, np.int32)
    model = DebertaForSequenceClassification(config)

    def loss(params: Any) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        logits = model.apply({"params": params}, ids, np.ones_like(ids), train=True, rngs=rngs).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradient = jax.jit(jax.grad(loss))
    gradients = gradient(params)
    without_attention = compiled_without_attention(loss, params)
    return {
        "training step": training_step(model, params, ids, labels),
        "forward and backward": lambda: gradient(params),
        "attention, all layers": attention_of_all_layers(config, batch, length),
        "all but attention, forward and backward": lambda: without_attention(params),
        "of these, matrix products": matrix_products(config, batch, length),
        "of these, gradient of the word embeddings": embedding_gradient(config, ids),
        "norm, clipping and AdamW": optimizer_update(params, gradients),
    }


def training_step(model: DebertaForSequenceClassification, params: Any, ids: np.ndarray, labels: np.ndarray) -> Part:
    optimizer = build_optimizer(SETTINGS, total_steps=1000)
    finetuning = finetune_config(optimizer=SETTINGS)
    step = jax.jit(build_step(model, Classification(), optimizer, finetuning, total_steps=1000), donate_argnums=0)
    copied = jax.tree.map(jnp.array, params)
    state = TrainState.create({"model": copied}, {"model": optimizer.init(copied)}, seed=0)
    mask = np.ones_like(ids)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids), "labels": labels}

    def run() -> object:
        nonlocal state
        state, metrics = step(state, inputs)
        return state, metrics

    return run


def compiled_without_attention(loss: Callable[[Any], jax.Array], params: Any) -> Any:
    """Compiles the gradient with attention replaced by its values; its projections stay."""

    def values(query: jax.Array, key: jax.Array, value: jax.Array, *_: Any, **__: Any) -> attention.AttentionOutput:
        return attention.AttentionOutput(query + key + value, jnp.zeros(()))

    original = encoder.disentangled_attention
    encoder.disentangled_attention = values
    try:
        return jax.jit(jax.grad(loss)).lower(params).compile()
    finally:
        encoder.disentangled_attention = original


def attention_of_all_layers(config: DebertaConfig, batch: int, length: int) -> Part:
    live = live_rows(length, config)
    heads, size = config.num_attention_heads, config.attention_head_size
    keys = jax.random.split(jax.random.key(0), 5)
    shape, rows = (batch, length, heads, size), (live.stop - live.start, heads, size)
    arrays = [jax.random.normal(key, shape if number < 3 else rows) for number, key in enumerate(keys)]
    segments = np.ones((batch, length), np.int32)

    def total(query: jax.Array, key: jax.Array, value: jax.Array, pos_key: jax.Array, pos_query: jax.Array) -> Any:
        inputs = AttentionInputs(
            query_segments=segments,
            key_segments=segments,
            pos_key=pos_key,
            pos_query=pos_query,
            live_rows=live,
            dropout_rate=config.attention_probs_dropout_prob,
            dropout_key=jax.random.key(1),
        )
        return attention.disentangled_attention(query, key, value, inputs).context.sum()

    one = jax.jit(jax.grad(total, argnums=range(5)))
    return lambda: [one(*arrays) for _ in range(config.num_hidden_layers)]


def matrix_products(config: DebertaConfig, batch: int, length: int) -> Part:
    """The products of the dense layers and of their two gradients, of all layers."""
    width, inner, rows = config.hidden_size, config.intermediate_size, batch * length
    shapes = [(width, width)] * 4 + [(width, inner), (inner, width)]
    positions = live_rows(length, config)
    reached = positions.stop - positions.start
    sizes = [(rows, *shape) for shape in shapes] + [(reached, width, width)] * 2  # tables of relative positions
    key = jax.random.key(0)
    operands = [
        (
            jax.random.normal(key, (tokens, ins)),
            jax.random.normal(key, (ins, outs)),
            jax.random.normal(key, (tokens, outs)),
        )
        for tokens, ins, outs in sizes
    ]

    @jax.jit
    def layer(operands: Any) -> list[Any]:
        return [(x @ kernel, gradient @ kernel.T, x.T @ gradient) for x, kernel, gradient in operands]

    return lambda: [layer(operands) for _ in range(config.num_hidden_layers)]


def embedding_gradient(config: DebertaConfig, ids: np.ndarray) -> Part:
    rows = jax.random.normal(jax.random.key(0), (*ids.shape, config.hidden_size))

    @jax.jit
    def scatter(rows: jax.Array) -> jax.Array:
        return jnp.zeros((config.vocab_size, config.hidden_size)).at[ids].add(rows)

    return functools.partial(scatter, rows)


def optimizer_update(params: Any, gradients: Any) -> Part:
    optimizer = build_optimizer(SETTINGS, total_steps=1000)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    carried = jax.tree.map(jnp.array, params), optimizer.init(params)

    def run() -> object:
        nonlocal carried
        carried = update(*carried, gradients)
        return carried

    return run


if __name__ == "__main__":
    main()
