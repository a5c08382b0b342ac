"""What saving costs a training loop: a model of 113 M parameters with Adam's moments, fine-tuned on CPU in float32.

    python -m tests.benchmarks.checkpoint_cost [--saves 3] [--steps 3] [--layers 2] [--batch 2] [--length 32]

The model has the width and vocabulary of deberta-v3-small but few layers. Steps without a save alternate with a save
and the steps that are taken until it is on disk. The cost of a save is

* the time of the call, a part of which are the checksums, and
* the time by which the steps after it exceed the median of the steps before it, because the threads that write take
  processors from them.

At the end the newest checkpoint is restored and verified, as by a restart. The share of time is
cost / (500 steps + cost). It is measured for the step of this benchmark and computed for steps of 0.2 and 0.6 s. It is
too high for a machine on which other processors compute than write. The moments hold noise, which hardly compresses.
Files go to a temporary folder.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import DebertaConfig, DebertaForSequenceClassification
from deberta_jax.checksums import describe_leaves
from deberta_jax.train.checkpoints.checkpointer import Checkpointer
from deberta_jax.train.engine.optimizer import build_optimizer
from deberta_jax.train.engine.state import TrainState
from deberta_jax.train.finetune import build_step
from deberta_jax.train.tasks.classification.task import Classification

from ..support.configs import finetune_config

STEPS_PER_SAVE = 500


@dataclass
class SaveCost:
    """Seconds that one save takes.

    Attributes:
      step: a step without a save.
      call: the call of `save`.
      checksums: the part of the call that computes checksums.
      slower: what the steps until the save was on disk took longer than steps without a save.
      written: from the call to the end of the step during which the save was finished.
    """

    step: float
    call: float
    checksums: float
    slower: float
    written: float

    @property
    def cost(self) -> float:
        return self.call + self.slower


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def add_noise(tree: Any, key: jax.Array) -> Any:
    """Returns the tree with positive noise in every float array: Adam's second moments must not be negative."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + 1e-3 * jnp.abs(jax.random.normal(leaf_key, leaf.shape))
        if leaf.dtype == jnp.float32 and leaf.ndim
        else leaf
        for leaf, leaf_key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


class Run:
    """A training run whose step is compiled and was taken once."""

    def __init__(self, *, layers: int, batch: int, length: int) -> None:
        config = DebertaConfig.named("deberta-v3-small").replace(num_hidden_layers=layers, num_labels=3)
        finetuning = finetune_config()
        model = DebertaForSequenceClassification(config)
        optimizer = build_optimizer(finetuning.optimizer, total_steps=1000)

        def create() -> TrainState:
            params = model.init(jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
            moments = add_noise(optimizer.init(params), jax.random.key(1))
            return TrainState.create({"model": params}, {"model": moments}, seed=0)

        ids = np.random.default_rng(0).integers(5, config.vocab_size, (batch, length)).astype(np.int32)
        self.batch = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
            "labels": np.arange(batch, dtype=np.int32) % 3,
        }
        self.state = jax.jit(create)()
        self.step = jax.jit(
            build_step(model, Classification(), optimizer, finetuning, total_steps=1000), donate_argnums=0
        )
        self.take_step()
        self.compute_checksums()  # compiled here, as by the first save of a run, which is not measured

    def take_step(self) -> None:
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def compute_checksums(self) -> None:
        describe_leaves(self.state, checksums=True)


def measure(run: Run, checkpointer: Checkpointer, number: int, steps: int) -> SaveCost:
    """Takes steps without a save, saves, and takes steps until the save is on disk."""
    step = statistics.median(seconds_of(run.take_step) for _ in range(steps))
    checksums = seconds_of(run.compute_checksums)
    start = time.perf_counter()
    call = seconds_of(lambda: checkpointer.save(number, run.state, {}))
    steps_after = []
    while checkpointer._manager.is_saving_in_progress():
        steps_after.append(seconds_of(run.take_step))
    written = time.perf_counter() - start
    cost = SaveCost(step, call, checksums, slower=sum(steps_after) - len(steps_after) * step, written=written)
    print(
        f"save {number}: step {cost.step:.2f} s, checksums {cost.checksums:.2f} s, call {cost.call:.2f} s, "
        f"written {cost.written:.2f} s, slower {cost.slower:.2f} s, cost {cost.cost:.2f} s",
        flush=True,
    )
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("saves", 3), ("steps", 3), ("layers", 2), ("batch", 2), ("length", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    run = Run(layers=options.layers, batch=options.batch, length=options.length)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(run.state))
    print(f"{parameters / 1e6:.1f} M parameters, a state of {size / 1e9:.2f} GB", flush=True)
    with tempfile.TemporaryDirectory() as temporary, Checkpointer(temporary, keep=1, identity={}) as checkpointer:
        costs = [measure(run, checkpointer, number + 1, options.steps) for number in range(options.saves)]
        checkpointer.wait()
        on_disk = sum(path.stat().st_size for path in Path(temporary).rglob("*") if path.is_file())
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), run.state)
        del run
        restore = seconds_of(lambda: jax.block_until_ready(checkpointer.restore(shapes).state))
    print(f"{on_disk / 1e9:.2f} GB on disk; restored and verified in {restore:.1f} s")
    for statistic, choose in (("median", statistics.median), ("least", min)):
        step, cost, checksums = (
            choose([getattr(save, name) for save in costs]) for name in ("step", "cost", "checksums")
        )
        print(f"{statistic}: a save costs {cost:.2f} s, {checksums:.2f} s of it for checksums")
        for seconds, source in ((step, "measured"), (0.2, "computed"), (0.6, "computed")):
            share, checked = (100 * part / (STEPS_PER_SAVE * seconds + cost) for part in (cost, checksums))
            print(f"  at a step of {seconds:.2f} s ({source}): {share:.2f} % of the time, checksums {checked:.3f} %")


if __name__ == "__main__":
    main()
