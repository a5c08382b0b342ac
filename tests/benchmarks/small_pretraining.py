"""Pre-training of small masked language models on the embedded novels, for benchmarks that compare loss curves."""

from pathlib import Path

import jax
import numpy as np

from deberta_jax import Tokenizer
from deberta_jax.rtd import RTDConfig, RTDModels, init_params
from deberta_jax.train.configs import OptimizerConfig, PretrainConfig
from deberta_jax.train.data import train_tokenizer as tokenizer
from deberta_jax.train.data.batches import TrainingBatches
from deberta_jax.train.data.curriculum import Curriculum
from deberta_jax.train.data.text import embedded_corpus
from deberta_jax.train.engine.state import training_key
from deberta_jax.train.pretrain import build_optimizers, build_step, create_state
from deberta_jax.train.pretrain_setup import BATCH_FIELDS, resolve_masking, resolve_rows

from ..support.configs import pretrain_config

WORDS = 4096


def prepare_run(folder: Path, *, steps: int, batch_size: int) -> tuple[PretrainConfig, Curriculum, Tokenizer]:
    """Trains a tokenizer of `WORDS` words and prepares packed rows of 128 tokens."""
    tokenizer.main(tokenizer.TokenizerConfig(output=folder / "words", text=(embedded_corpus(),), vocab_size=WORDS - 64))
    words = Tokenizer.from_folder(folder / "words")
    run = pretrain_config(
        output=folder,
        tokenizer=folder / "words",
        objective="mlm",
        sequence_length=128,
        batch_size=batch_size,
        steps=steps,
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )
    return run, resolve_rows(run, words), words


def losses(
    run: PretrainConfig, models_config: RTDConfig, models: RTDModels, corpus: Curriculum, words: Tokenizer
) -> np.ndarray:
    """Trains and returns the mean loss per masked token of every step."""
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


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Returns the mean, and the standard deviation (not a number for a single value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
