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

import numpy as np
from jax.experimental.pallas import tpu as pltpu

from deberta_jax import DebertaConfig
from deberta_jax.rtd import RTDConfig, RTDModels

from .small_pretraining import WORDS, losses, mean_and_deviation, prepare_run

ROWS = 11  # a prime number above 8: the kernel then takes one sequence per grid step


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
        base, corpus, words = prepare_run(Path(name), steps=options.steps, batch_size=ROWS)
        final: dict[str, list[float]] = {"xla": []} if options.plain_only else {"xla": [], "pallas": []}
        for seed in options.seeds:
            run, step_losses = dataclasses.replace(base, seed=seed), {}
            for implementation, final_losses in final.items():
                start = time.perf_counter()
                models = RTDModels.build(models_config, attention_implementation=implementation)
                with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
                    step_losses[implementation] = losses(run, models_config, models, corpus, words)
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
        mean, deviation = mean_and_deviation(final_losses)
        print(f"{implementation:7} {mean:.4f}, standard deviation over seeds {deviation:.4f}")
    if options.plain_only:
        return
    mean, deviation = mean_and_deviation([fused - plain for plain, fused in zip(*final.values(), strict=True)])
    print(f"pallas - xla {mean:+.4f}, standard error {deviation / len(options.seeds) ** 0.5:.4f}")


if __name__ == "__main__":
    main()
