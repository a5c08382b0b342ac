"""CPU speed beside transformers' PyTorch model, in one run: float32, the same weights on both sides.

    python -m tests.benchmarks.cpu_speed [--rounds 5] [--model deberta-v3-base] [--shapes 8x128 2x512] [--threads 2]
    python -m tests.benchmarks.cpu_speed --model deberta-v3-small --shapes 16x128

The two take turns, so that whatever else the machine does falls on both. Printed for each case: the minimum and the
median of both, and the ratio of the minima (and of the medians). A training step is forward, backward and AdamW of a
classifier, dropout 0.1, on both sides. Before anything is timed both must give the same logits.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from deberta_jax import DebertaConfig, DebertaForSequenceClassification
from deberta_jax.convert.mapping import to_state_dict
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.engine.optimizer import build_optimizer
from deberta_jax.train.engine.state import TrainState
from deberta_jax.train.finetune import build_step
from deberta_jax.train.tasks.classification.task import Classification

from ..support.configs import finetune_config

ASKED = {"forward B8 S128": "1.5", "forward B2 S512": "2.0", "step B8 S128": "1.5", "step B16 S128": "1.5"}


def torch_model(config: DebertaConfig, params: dict) -> torch.nn.Module:
    fields = config.to_json() | {"pos_att_type": list(config.pos_att_type)}
    fields.pop("model_type")
    theirs = transformers.DebertaV2ForSequenceClassification(transformers.DebertaV2Config(**fields))
    state = {name: torch.tensor(np.asarray(array)) for name, array in to_state_dict(params, config).items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise SystemExit(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    return theirs


def take_turns(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    seconds: tuple[list[float], list[float]] = ([], [])
    one(), other()  # compile and warm up
    for _ in range(rounds):
        for run, kept in zip((one, other), seconds, strict=True):
            start = time.perf_counter()
            run()
            kept.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="deberta-v3-base")
    parser.add_argument("--shapes", nargs="+", default=["8x128", "2x512"], help="rows x tokens")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = DebertaConfig.named(options.model)
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
    model = DebertaForSequenceClassification(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 8), jnp.int32))["params"]
    theirs = torch_model(config, params)
    forward = jax.jit(lambda params, ids, mask: model.apply({"params": params}, ids, mask).logits)
    print(f"{'':24}{'ours, s':>18}{'transformers, s':>18}{'ratio':>15}{'asked':>7}")
    for batch, length in shapes:
        rng = np.random.default_rng(0)
        ids = rng.integers(5, config.vocab_size, (batch, length)).astype(np.int32)
        mask = np.ones_like(ids)
        torch_ids, torch_mask = (torch.tensor(array, dtype=torch.long) for array in (ids, mask))

        def ours_forward(ids=ids, mask=mask) -> np.ndarray:
            return np.asarray(forward(params, ids, mask))

        def theirs_forward(ids=torch_ids, mask=torch_mask) -> np.ndarray:
            theirs.eval()
            with torch.no_grad():
                return theirs(ids, attention_mask=mask).logits.numpy()

        np.testing.assert_allclose(ours_forward(), theirs_forward(), atol=1e-4)
        show("forward", batch, length, *take_turns(ours_forward, theirs_forward, options.rounds))

    for batch, length in shapes:
        rng = np.random.default_rng(0)
        ids = rng.integers(5, config.vocab_size, (batch, length)).astype(np.int32)
        show("step", batch, length, *time_steps(config, model, params, theirs, ids, options.rounds))


def time_steps(config, model, params, theirs, ids: np.ndarray, rounds: int) -> tuple[list[float], list[float]]:
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

    def ours() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    adam = torch.optim.AdamW(theirs.parameters(), lr=1e-5, weight_decay=0.01)
    inputs = {name: torch.tensor(array, dtype=torch.long) for name, array in batch.items() if name != "token_type_ids"}

    def other() -> None:
        theirs.train()
        adam.zero_grad()
        theirs(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adam.step()

    return take_turns(ours, other, rounds)


def show(kind: str, batch: int, length: int, ours: list[float], theirs: list[float]) -> None:
    def both(seconds: list[float]) -> str:
        return f"{min(seconds):.2f} / {statistics.median(seconds):.2f}"

    least = min(theirs) / min(ours)
    middle = statistics.median(theirs) / statistics.median(ours)
    label = f"{kind} B{batch} S{length}"
    asked = ASKED.get(label, "-")
    print(f"{label:24}{both(ours):>18}{both(theirs):>18}{f'{least:.2f} / {middle:.2f}':>15}{asked:>7}", flush=True)


if __name__ == "__main__":
    main()
