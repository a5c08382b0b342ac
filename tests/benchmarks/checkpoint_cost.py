"""What saving costs a training loop: fine-tuning deberta-v3-small (142 M parameters and Adam's moments) on CPU, float32.

    python -m tests.benchmarks.checkpoint_cost [--saves 3] [--steps 4] [--batch 4] [--length 64] [--folder FOLDER]

Steps without a save, then a save and the steps after it until it is on disk, in turns. A save costs the time of the
call, with the checksums as one part of it, and what the steps after it take longer than the median of the steps before
it, because the threads that write take processors from them. Afterwards the newest checkpoint is read back and verified,
as by a restart. The share of time is cost / (500 steps + cost). For the step measured here it is a measurement; for
steps of 0.2 and 0.6 s arithmetic, and too high for a machine on which other processors compute than write. Parameters
and moments are random numbers, which hardly compress. Files go to --folder, by default a temporary one.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from deberta_jax.train.checkpointing import Checkpointer
from deberta_jax.train.checksums import describe_leaves
from deberta_jax.train.configs import FinetuneConfig
from deberta_jax.train.finetune import build_step
from deberta_jax.train.optimizer import build_optimizer
from deberta_jax.train.state import TrainState

from deberta_jax import DebertaConfig, DebertaForSequenceClassification

STEPS_PER_SAVE = 500


def clock(do) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def noisy(tree, key):
    """Every array of `tree` with noise that an optimiser can go on from: Adam's second moments are not negative."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            x + 1e-3 * jnp.abs(jax.random.normal(k, x.shape)) if x.dtype == jnp.float32 and x.ndim else x
            for x, k in zip(leaves, keys, strict=True)
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("saves", 3), ("steps", 4), ("batch", 4), ("length", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    config = DebertaConfig.named("deberta-v3-small").replace(num_labels=3)
    finetuning = FinetuneConfig(output=Path(), model=Path(), train="")
    model = DebertaForSequenceClassification(config)
    optimizer = build_optimizer(finetuning.optimizer, total_steps=1000)

    def create() -> TrainState:
        params = model.init(jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
        moments = noisy(optimizer.init(params), jax.random.key(1))
        return TrainState.create({"model": params}, {"model": moments}, seed=0)

    ids = np.random.default_rng(0).integers(5, config.vocab_size, (options.batch, options.length)).astype(np.int32)
    batch = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "labels": np.arange(len(ids), dtype=np.int32) % 3,
    }
    state = jax.jit(create)()
    step = jax.jit(build_step(model, optimizer, finetuning, total_steps=1000), donate_argnums=0)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"{parameters / 1e6:.1f} M parameters, a state of {size / 1e9:.2f} GB; {jax.devices()[0]}", flush=True)

    def take_step() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    take_step()
    describe_leaves(state, checksums=True)  # compiled here, as a run's first save does, and not counted
    quiet, costs, calls, checks, writes = [], [], [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / "checkpoint_cost"
        with Checkpointer(folder, keep=1, identity={}) as checkpointer:
            for number in range(1, options.saves + 1):
                before = [clock(take_step) for _ in range(options.steps)]
                checks.append(clock(lambda: describe_leaves(state, checksums=True)))
                start = time.perf_counter()
                calls.append(clock(lambda: checkpointer.save(number, state, {})))  # noqa: B023
                after = []
                while checkpointer._manager.is_saving_in_progress() or len(after) < options.steps:
                    if not checkpointer._manager.is_saving_in_progress() and len(writes) < number:
                        writes.append(time.perf_counter() - start)
                    after.append(clock(take_step))
                if len(writes) < number:
                    writes.append(time.perf_counter() - start)
                slower = sum(after) - len(after) * statistics.median(before)
                costs.append(calls[-1] + slower)
                quiet += before
                print(
                    f"save {number}: step without {statistics.median(before):.2f} s; call {calls[-1]:.2f} s, of which "
                    f"checksums about {checks[-1]:.2f} s; {len(after)} steps after it {slower:+.2f} s; on disk within "
                    f"{writes[-1]:.1f} s; cost {costs[-1]:.2f} s",
                    flush=True,
                )
            checkpointer.wait()
            on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
            del state
            restore = clock(lambda: jax.block_until_ready(checkpointer.restore(shapes).state))
    print(f"{on_disk / 1e9:.2f} GB on disk; restored and verified in {restore:.1f} s")
    measured = statistics.median(quiet)
    for name, pick in (("median", statistics.median), ("least", min)):
        cost, check = pick(costs), pick(checks)
        print(f"{name}: a save costs {cost:.2f} s (the call {pick(calls):.2f} s, checksums {check:.2f} s of it)")
        for seconds, how in ((measured, "measured step"), (0.2, "arithmetic"), (0.6, "arithmetic")):
            share, checked = (100 * part / (STEPS_PER_SAVE * seconds + cost) for part in (cost, check))
            print(f"  step of {seconds:.2f} s ({how}): {share:.2f} % of time, checksums {checked:.3f} %")


if __name__ == "__main__":
    main()
