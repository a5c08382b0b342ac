"""What saving costs a training loop: a model of 113 M parameters with Adam's moments, fine-tuned on CPU in float32.

    python -m tests.benchmarks.checkpoint_cost [--saves 3] [--steps 3] [--layers 2] [--batch 2] [--length 32]

deberta-v3-small's width and vocabulary, few layers. Steps without a save, then a save and the steps after it until it
is on disk, in turns. A save costs the time of the call, with the checksums as one part of it, and what the steps after
it take longer than the median of those before it, because the threads that write take processors from them. Afterwards
the newest checkpoint is read back and verified, as by a restart. The share of time is cost / (500 steps + cost): a
measurement for the step measured here, arithmetic for steps of 0.2 and 0.6 s, and too high for a machine on which
other processors compute than write. The moments hold noise, which hardly compresses. Files go to a temporary folder.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import DebertaConfig, DebertaForSequenceClassification
from deberta_jax.train.checkpoints.checkpointer import Checkpointer
from deberta_jax.train.checkpoints.checksums import describe_leaves
from deberta_jax.train.engine.optimizer import build_optimizer
from deberta_jax.train.engine.state import TrainState
from deberta_jax.train.finetune import build_step
from deberta_jax.train.tasks.classification.task import Classification

from ..support.configs import finetune_config

STEPS_PER_SAVE = 500


def clock(do) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def noisy(tree, key):
    """Every array of `tree` with noise that an optimizer can go on from: Adam's second moments are not negative."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            x + 1e-3 * jnp.abs(jax.random.normal(k, x.shape)) if x.dtype == jnp.float32 and x.ndim else x
            for x, k in zip(leaves, keys, strict=True)
        ],
    )


class Run:
    """A training run, compiled and one step old."""

    def __init__(self, *, layers: int, batch: int, length: int) -> None:
        config = DebertaConfig.named("deberta-v3-small").replace(num_hidden_layers=layers, num_labels=3)
        finetuning = finetune_config()
        model = DebertaForSequenceClassification(config)
        optimizer = build_optimizer(finetuning.optimizer, total_steps=1000)

        def create() -> TrainState:
            params = model.init(jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
            moments = noisy(optimizer.init(params), jax.random.key(1))
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
        self.checksums()  # compiled here, as by a run's first save, and not counted

    def take_step(self) -> None:
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def checksums(self) -> None:
        describe_leaves(self.state, checksums=True)


def measure(run: Run, checkpointer: Checkpointer, number: int, steps: int) -> dict[str, float]:
    """Seconds: of a step without a save, of the call, its checksums, what steps lost after it, and until on disk."""
    before = statistics.median(clock(run.take_step) for _ in range(steps))
    found = {"step": before, "checksums": clock(run.checksums)}
    start = time.perf_counter()
    found["call"] = clock(lambda: checkpointer.save(number, run.state, {}))
    after = []
    while checkpointer._manager.is_saving_in_progress():
        after.append(clock(run.take_step))
    found["written"] = time.perf_counter() - start  # to the end of the step in which it was
    found["slower"] = sum(after) - len(after) * before
    found["cost"] = found["call"] + found["slower"]
    print(f"save {number}: " + ", ".join(f"{name} {value:.2f} s" for name, value in found.items()), flush=True)
    return found


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
        rounds = [measure(run, checkpointer, number + 1, options.steps) for number in range(options.saves)]
        checkpointer.wait()
        on_disk = sum(path.stat().st_size for path in Path(temporary).rglob("*") if path.is_file())
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), run.state)
        del run
        restore = clock(lambda: jax.block_until_ready(checkpointer.restore(shapes).state))
    print(f"{on_disk / 1e9:.2f} GB on disk; restored and verified in {restore:.1f} s")
    for how, pick in (("median", statistics.median), ("least", min)):
        step, cost, check = (pick([found[name] for found in rounds]) for name in ("step", "cost", "checksums"))
        print(f"{how}: a save costs {cost:.2f} s, {check:.2f} s of it for checksums")
        for seconds, source in ((step, "measured"), (0.2, "arithmetic"), (0.6, "arithmetic")):
            share, checked = (100 * part / (STEPS_PER_SAVE * seconds + cost) for part in (cost, check))
            print(f"  at a step of {seconds:.2f} s ({source}): {share:.2f} % of the time, checksums {checked:.3f} %")


if __name__ == "__main__":
    main()
