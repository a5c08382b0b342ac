"""Measures the cost of SiFT in a fine-tuning step on CPU: deberta-v3-xsmall's width, few layers, float32, dropout 0.1.

    python -m tests.benchmarks.sift_cost [--rounds 9] [--layers 3] [--batch 8] [--length 128] [--vocabulary 2048]

The steps with and without SiFT alternate in one process, so that other load on the machine affects both. The benchmark
prints the medians over the rounds of seconds and ratios, with the quartiles of the ratios, both in wall-clock time and
in processor time, which is more reliable on a busy machine.

Counting matrix products, the expected ratio is at most 8 / 3. A plain step is a forward pass and a backward pass of
twice its cost. SiFT adds a forward pass and a backward pass of the same cost, for the gradient of the perturbation
alone, and a forward and a full backward pass of the perturbed prediction. The vocabulary is small, because the
optimizer's work on its table is the same in both steps and would outweigh so few layers.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import DebertaConfig, DebertaForSequenceClassification
from deberta_jax.sift import SiftConfig
from deberta_jax.train.engine.optimizer import build_optimizer
from deberta_jax.train.engine.state import TrainState
from deberta_jax.train.finetune import build_step
from deberta_jax.train.tasks.classification.task import Classification

from ..support.configs import finetune_config

CASES = {
    "without": SiftConfig(),
    "SiFT": SiftConfig(weight=3.0),
    "SiFT, official": SiftConfig(weight=3.0, official=True),
}


def build_run(
    model: DebertaForSequenceClassification, params: dict, batch: dict[str, np.ndarray], sift: SiftConfig
) -> Callable[[], None]:
    """Returns a function that takes one step, compiled and warmed up."""
    finetuning = finetune_config(sift=sift)
    optimizer = build_optimizer(finetuning.optimizer, total_steps=1000)
    step = jax.jit(build_step(model, Classification(), optimizer, finetuning, total_steps=1000), donate_argnums=0)
    params = jax.tree.map(jnp.array, params)  # the step donates the memory of its state
    state = TrainState.create({"model": params}, {"model": optimizer.init(params)}, seed=0)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    run()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 9), ("layers", 3), ("batch", 8), ("length", 128), ("vocabulary", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    config = DebertaConfig.named("deberta-v3-xsmall").replace(
        num_hidden_layers=options.layers, vocab_size=options.vocabulary, num_labels=3
    )
    ids = np.random.default_rng(0).integers(5, config.vocab_size, (options.batch, options.length)).astype(np.int32)
    batch = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "labels": np.arange(len(ids), dtype=np.int32) % 3,
    }
    model = DebertaForSequenceClassification(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    runs = {name: build_run(model, params, batch, sift) for name, sift in CASES.items()}
    clocks = {"clock": time.perf_counter, "processor": time.process_time}
    seconds: dict[tuple[str, str], list[float]] = {(clock, name): [] for clock in clocks for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            starts = {clock: read() for clock, read in clocks.items()}
            run()
            for clock, read in clocks.items():
                seconds[clock, name].append(read() - starts[clock])
    print(f"{'':26}{'median, s':>11}{'ratio':>8}{'quartiles':>21}")
    for (clock, name), taken in seconds.items():
        ratios = [with_it / without for with_it, without in zip(taken, seconds[clock, "without"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{clock:11}{name:15}{statistics.median(taken):11.3f}{middle:8.2f}{f'{low:.2f} to {high:.2f}':>21}")


if __name__ == "__main__":
    main()
