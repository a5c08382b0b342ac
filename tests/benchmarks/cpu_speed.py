"""Compares the CPU speed with that of transformers' PyTorch model, in float32 and with the same weights.

    python -m tests.benchmarks.cpu_speed [--rounds 5] [--model deberta-v3-base] [--shapes 8x128 2x512] [--threads 2]
    python -m tests.benchmarks.cpu_speed --model deberta-v3-small --shapes 16x128

The two alternate, so that other load on the machine affects both. For each case, prints the minimum and the median of
both, the ratio of the minima and that of the medians. A training step is forward, backward and AdamW of a classifier
with dropout 0.1. The process keeps freed memory, as `pretrain` and `finetune` do. Before anything is timed, both must
compute the same logits.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from deberta_jax import DebertaConfig, DebertaForSequenceClassification
from deberta_jax.allocator import keep_freed_memory
from deberta_jax.convert.mapping import to_state_dict
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.engine.optimizer import build_optimizer
from deberta_jax.train.engine.state import TrainState
from deberta_jax.train.finetune import build_step
from deberta_jax.train.tasks.classification.task import Classification

from ..support.configs import finetune_config

# Ratios that the library aims for.
GOALS = {"forward B8 S128": "1.5", "forward B2 S512": "2.0", "step B8 S128": "1.5", "step B16 S128": "1.5"}


def torch_model(config: DebertaConfig, params: dict[str, Any]) -> torch.nn.Module:
    """Returns transformers' classifier with the same parameters."""
    fields = config.to_json() | {"pos_att_type": list(config.pos_att_type)}
    fields.pop("model_type")
    model = transformers.DebertaV2ForSequenceClassification(transformers.DebertaV2Config(**fields))
    state = {name: torch.tensor(np.asarray(array)) for name, array in to_state_dict(params, config).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise SystemExit(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    return model


class Seconds(NamedTuple):
    """Seconds of every round of both models."""

    jax: list[float]
    pytorch: list[float]


def alternate(run_jax: Callable[[], object], run_pytorch: Callable[[], object], rounds: int) -> Seconds:
    """Times two functions in turn, after a run of each to compile and warm up."""
    seconds = Seconds([], [])
    run_jax(), run_pytorch()
    for _ in range(rounds):
        for run, durations in zip((run_jax, run_pytorch), seconds, strict=True):
            start = time.perf_counter()
            run()
            durations.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="deberta-v3-base")
    parser.add_argument("--shapes", nargs="+", default=["8x128", "2x512"], help="rows x tokens")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    keep_freed_memory()  # as training does
    torch.set_num_threads(options.threads)
    config = DebertaConfig.named(options.model)
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
    model = DebertaForSequenceClassification(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    pytorch_model = torch_model(config, params)
    forward = jax.jit(lambda params, ids, mask: model.apply({"params": params}, ids, mask).logits)
    print(f"{'':24}{'deberta_jax, s':>18}{'transformers, s':>18}{'ratio':>15}{'goal':>7}")
    for batch, length in shapes:
        rng = np.random.default_rng(0)
        ids = rng.integers(5, config.vocab_size, (batch, length)).astype(np.int32)
        mask = np.ones_like(ids)
        torch_ids, torch_mask = (torch.tensor(array, dtype=torch.long) for array in (ids, mask))

        def jax_forward(ids=ids, mask=mask) -> np.ndarray:
            return np.asarray(forward(params, ids, mask))

        def pytorch_forward(ids=torch_ids, mask=torch_mask) -> np.ndarray:
            pytorch_model.eval()
            with torch.no_grad():
                return pytorch_model(ids, attention_mask=mask).logits.numpy()

        np.testing.assert_allclose(jax_forward(), pytorch_forward(), atol=1e-4)
        show("forward", batch, length, alternate(jax_forward, pytorch_forward, options.rounds))

    for batch, length in shapes:
        rng = np.random.default_rng(0)
        ids = rng.integers(5, config.vocab_size, (batch, length)).astype(np.int32)
        show("step", batch, length, time_steps(model, params, pytorch_model, ids, options.rounds))


def time_steps(
    model: DebertaForSequenceClassification,
    params: dict[str, Any],
    pytorch_model: torch.nn.Module,
    ids: np.ndarray,
    rounds: int,
) -> Seconds:
    """Times training steps of both models on one batch."""
    settings = OptimizerConfig(learning_rate=1e-5, max_grad_norm=1.0)
    optimizer = build_optimizer(settings, total_steps=1000)
    finetuning = finetune_config(optimizer=settings)
    step = jax.jit(build_step(model, Classification(), optimizer, finetuning, total_steps=1000), donate_argnums=0)
    copied = jax.tree.map(jnp.array, params)
    state = TrainState.create({"model": copied}, {"model": optimizer.init(copied)}, seed=0)
    batch = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "labels": np.zeros(len(ids), np.int32),
    }

    def jax_step() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    adam = torch.optim.AdamW(pytorch_model.parameters(), lr=1e-5, weight_decay=0.01)
    inputs = {name: torch.tensor(array, dtype=torch.long) for name, array in batch.items() if name != "token_type_ids"}

    def pytorch_step() -> None:
        pytorch_model.train()
        adam.zero_grad()
        pytorch_model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(pytorch_model.parameters(), 1.0)
        adam.step()

    return alternate(jax_step, pytorch_step, rounds)


def show(kind: str, batch: int, length: int, seconds: Seconds) -> None:
    """Prints one line of the table."""

    def both(durations: list[float]) -> str:
        return f"{min(durations):.2f} / {statistics.median(durations):.2f}"

    ratio = min(seconds.pytorch) / min(seconds.jax)
    median_ratio = statistics.median(seconds.pytorch) / statistics.median(seconds.jax)
    label, ratios = f"{kind} B{batch} S{length}", f"{ratio:.2f} / {median_ratio:.2f}"
    goal = GOALS.get(label, "-")
    print(f"{label:24}{both(seconds.jax):>18}{both(seconds.pytorch):>18}{ratios:>15}{goal:>7}", flush=True)


if __name__ == "__main__":
    main()
