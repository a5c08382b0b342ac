"""Compares the loss after training with Adam's moments in bfloat16 with that after training with float32 moments.

    python -m tests.benchmarks.moment_dtype [--steps 200] [--seeds 0 1 2 3 4]

Pre-trains a small DeBERTa (two layers of width 64, masked LM with the enhanced mask decoder) on the embedded novels:
8 packed rows of 128 tokens a step, dropout 0.1, activations in float32, the official beta2 of 0.999. Every seed runs
with float32 moments, with bfloat16 moments as `--optimizer.moment-dtype bfloat16` stores them (rounded at random), and
for comparison rounded to nearest. A seed sets the weights, the order of the data, the masks and dropout, so that the
runs of a seed differ in the moments alone. Prints the mean loss of every tenth of the steps, and at the end the mean
over the last fifth of them, the difference from float32, and its noise: the standard error of the paired differences
and the spread over seeds.
"""

import argparse
import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
import numpy as np

from deberta_jax import DebertaConfig
from deberta_jax.rtd import RTDConfig, RTDModels
from deberta_jax.train.engine import narrow_moments

from .small_pretraining import WORDS, losses, mean_and_deviation, prepare_run

ROWS = 8
FORMS = ("float32", "bfloat16", "nearest")


@contextlib.contextmanager
def rounding(form: str) -> Iterator[None]:
    """Replaces the rounding at random by rounding to nearest for the form `nearest`."""
    if form != "nearest":
        yield
        return
    with mock.patch.object(narrow_moments, "round_stochastically", lambda x, bits: x.astype(jnp.bfloat16)):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    if options.steps < 10:
        parser.error(f"--steps is {options.steps}; give at least 10")
    small = DebertaConfig.named("deberta-v3-xsmall").replace(
        vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256
    )
    models_config = RTDConfig(generator=small, discriminator=small, embedding_sharing="nes")
    models, final = RTDModels.build(models_config), {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as name:
        base, corpus, words = prepare_run(Path(name), steps=options.steps, batch_size=ROWS)
        for seed in options.seeds:
            for form in FORMS:
                start = time.perf_counter()
                dtype = "float32" if form == "float32" else "bfloat16"
                optimizer = dataclasses.replace(base.optimizer, moment_dtype=dtype)
                run = dataclasses.replace(base, seed=seed, optimizer=optimizer)
                with rounding(form):
                    curve = losses(run, models_config, models, corpus, words)
                final[form].append(float(curve[-options.steps // 5 :].mean()))
                tenths = " ".join(f"{part.mean():.3f}" for part in np.array_split(curve, 10))
                print(f"seed {seed} {form:8} {tenths}  ({time.perf_counter() - start:.0f} s)", flush=True)
    for form, values in final.items():
        mean, deviation = mean_and_deviation(values)
        print(f"{form:8} {mean:.4f}, standard deviation over seeds {deviation:.4f}")
    for form in FORMS[1:]:
        mean, deviation = mean_and_deviation(list(np.subtract(final[form], final["float32"])))
        print(f"{form} - float32 {mean:+.4f}, standard error {deviation / len(options.seeds) ** 0.5:.4f}")


if __name__ == "__main__":
    main()
