"""Compares the loss after training with the fused kernels with that after training with plain attention.

    python -m tests.benchmarks.fused_training [--steps 200] [--seeds 0 1 2 3]

Pre-trains a small DeBERTa (masked LM with the enhanced mask decoder) on the embedded novels: packed rows of 128 tokens,
dropout 0.1, float32, for every seed once with plain attention and once with the kernels in TPU interpret mode. A seed
sets the weights, the order of the data and the masks. Kernels and plain attention draw different dropout masks, so
their losses can agree no better than those of two seeds. Prints the mean loss over the last fifth of the steps, the
difference, and its noise: the standard error of the paired differences and the spread over seeds. With --no-dropout
both compute the same, and the largest difference of the loss of any step is due to rounding.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's CPU compiler compiles the many pieces of an interpreted kernel recursively and overflows its stack (jax 0.10.2).
# Without optimizations, as one piece, and with this ROWS, the program of a step is small enough.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1")

import jax
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from deberta_jax import DebertaConfig, Tokenizer
from deberta_jax.rtd import RTDConfig, RTDModels, init_params
from deberta_jax.train.configs import OptimizerConfig, PretrainConfig
from deberta_jax.train.data import train_tokenizer as tokenizer
from deberta_jax.train.data.batches import TrainingBatches
from deberta_jax.train.data.corpus import Corpus
from deberta_jax.train.data.text import embedded_corpus
from deberta_jax.train.engine.state import training_key
from deberta_jax.train.pretrain import (
    build_optimizers,
    build_step,
    create_state,
)
from deberta_jax.train.pretrain_setup import BATCH_FIELDS, resolve_corpus, resolve_masking

from ..support.configs import pretrain_config

WORDS = 4096
ROWS = 11  # a prime number above 8: the kernel then takes one sequence per grid step


def losses(
    run: PretrainConfig, models_config: RTDConfig, implementation: str, corpus: Corpus, words: Tokenizer
) -> np.ndarray:
    """Trains and returns the mean loss per masked token of every step."""
    models = RTDModels.build(models_config, attention_implementation=implementation)
    optimizers = build_optimizers(run)
    params = {"generator": init_params(models_config, training_key(run.seed))["generator"]}
    state = create_state(optimizers, params, seed=run.seed)
    step = jax.jit(build_step(models, optimizers, run, sharing=models_config.embedding_sharing), donate_argnums=0)
    batches = TrainingBatches(
        corpus, global_batch=run.batch_size, seed=run.seed, masking=resolve_masking(run), tokenizer=words
    )
    step_losses = []
    for _ in range(run.steps):
        batch = next(batches)
        state, metrics = step(state, {name: batch[name] for name in BATCH_FIELDS})
        step_losses.append(float(metrics["masked_loss_sum"] / metrics["masked_count"]))
    return np.array(step_losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--no-dropout", action="store_true")
    parser.add_argument("--plain-only", action="store_true", help="measure the spread of plain attention only")
    options = parser.parse_args()
    small = DebertaConfig.named("deberta-v3-xsmall").replace(
        vocab_size=WORDS, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    if options.no_dropout:
        small = small.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    models_config = RTDConfig(generator=small, discriminator=small, embedding_sharing="nes")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.main(
            tokenizer.TokenizerConfig(output=folder / "words", text=(embedded_corpus(),), vocab_size=WORDS - 64)
        )
        words = Tokenizer.from_folder(folder / "words")
        base = pretrain_config(
            output=folder,
            tokenizer=folder / "words",
            objective="mlm",
            sequence_length=128,
            batch_size=ROWS,
            steps=options.steps,
            optimizer=OptimizerConfig(learning_rate=1e-3),
        )
        corpus = resolve_corpus(base, words)
        final: dict[str, list[float]] = {"xla": []} if options.plain_only else {"xla": [], "pallas": []}
        for seed in options.seeds:
            run, step_losses = dataclasses.replace(base, seed=seed), {}
            for implementation, final_losses in final.items():
                start = time.perf_counter()
                with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
                    step_losses[implementation] = losses(run, models_config, implementation, corpus, words)
                final_losses.append(step_losses[implementation][-options.steps // 5 :].mean())
                print(
                    f"seed {seed} {implementation:7} first {step_losses[implementation][0]:.4f} "
                    f"end {final_losses[-1]:.4f}  ({time.perf_counter() - start:.0f} s)",
                    flush=True,
                )
            if "pallas" in step_losses:
                difference = np.abs(step_losses["xla"] - step_losses["pallas"]).max()
                print(f"seed {seed} largest difference of a step {difference:.2e}", flush=True)
    for implementation, final_losses in final.items():
        mean, deviation = _mean_and_deviation(final_losses)
        print(f"{implementation:7} {mean:.4f}, standard deviation over seeds {deviation:.4f}")
    if options.plain_only:
        return
    mean, deviation = _mean_and_deviation([fused - plain for plain, fused in zip(*final.values(), strict=True)])
    print(f"pallas - xla {mean:+.4f}, standard error {deviation / len(options.seeds) ** 0.5:.4f}")


def _mean_and_deviation(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


if __name__ == "__main__":
    main()
