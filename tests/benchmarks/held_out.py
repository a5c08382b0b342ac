"""Measures pre-trained models on held-out rows: masked tokens of a generator, replaced tokens of a discriminator."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from deberta_jax import DebertaConfig, DebertaForMaskedLM, DebertaForReplacedTokenDetection, Tokenizer, load_pretrained
from deberta_jax.rtd import corrupt, generator_pass
from deberta_jax.train.data.batches import held_out_batches
from deberta_jax.train.data.corpus import Corpus
from deberta_jax.train.data.masking import MaskingConfig
from deberta_jax.train.engine.state import training_key
from deberta_jax.vocabulary_head import sample_replacements

MASKING = MaskingConfig(rate=0.15, max_ngram=1, replace="rtd")  # the masks of replaced token detection, for all models


class Rows(NamedTuple):
    """The held-out rows, and how they are read."""

    corpus: Corpus
    tokenizer: Tokenizer
    batch_size: int


def masked_tokens(generator: Path, rows: Rows) -> dict[str, float]:
    """Returns the loss in nats and the accuracy of a model on the masked tokens of the held-out rows."""
    sums = np.zeros(3)
    for _, generated in _generated(generator, rows):
        sums += np.array([generated.loss_sum, generated.weight, generated.correct], np.float64)
    return {"loss": sums[0] / sums[1], "accuracy": sums[2] / sums[1]}


def replaced_tokens(generator: Path, discriminator: Path, rows: Rows) -> dict[str, float]:
    """Returns how well a discriminator finds the tokens that a generator replaced in the held-out rows.

    The masks and the random numbers are the same for all models, so discriminators with the same generator read the
    same corrupted text.

    Returns:
      `replaced`, the share of replaced tokens; the mean `loss` in nats, and `loss_of_constant`, that of a model that
      gives every token this share; `precision` and `recall` of the tokens with a positive logit, where precision is
      None if there are none; `break_even`, both of them if as many tokens are marked as were replaced; and
      `average_precision`. The last two are near `replaced` for a model that has learned nothing.
    """
    from sklearn.metrics import average_precision_score

    config, params = load_pretrained(discriminator)
    judge = _judge(config)
    logits, labels = [], []
    for batch, generated in _generated(generator, rows):
        scores, replaced = jax.device_get(judge(params, batch, generated.sampled))
        real = batch["segment_ids"] != 0
        logits.append(scores[real].astype(np.float64))
        labels.append(replaced[real])
    scores, replaced = np.concatenate(logits), np.concatenate(labels)
    share, marked = float(replaced.mean()), scores > 0
    highest = np.argsort(-scores, kind="stable")[: replaced.sum()]
    return {
        "replaced": share,
        "loss": float(np.mean(np.logaddexp(0, scores) - replaced * scores)),
        "loss_of_constant": -share * np.log(share) - (1 - share) * np.log(1 - share),
        "precision": float(replaced[marked].mean()) if marked.any() else None,
        "recall": float(marked[replaced].mean()),
        "break_even": float(replaced[highest].mean()),
        "average_precision": float(average_precision_score(replaced, scores)),
    }


def _generated(generator: Path, rows: Rows) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
    """Yields each held-out batch and the generator's pass over it, with the keys of `deberta-jax pretrain`, seed 0."""
    config, params = load_pretrained(generator)
    run = _generate(config)
    batches = held_out_batches(rows.corpus, tokenizer=rows.tokenizer, masking=MASKING, global_batch=rows.batch_size)
    for number, batch in enumerate(batches):
        fields = {name: batch[name] for name in ("input_ids", "segment_ids", "masked_positions", "masked_labels")}
        yield fields, run(params, fields, jax.random.fold_in(training_key(0), number))


@functools.cache
def _generate(config: DebertaConfig) -> Callable[..., Any]:
    """Returns the generator's pass over a batch as a function of parameters, batch and key."""
    model = DebertaForMaskedLM(config)

    def run(params: Any, batch: Any, key: jax.Array) -> Any:
        return generator_pass(model, params, batch, key=key, sample=sample_replacements, train=False)

    return jax.jit(run)


@functools.cache
def _judge(config: DebertaConfig) -> Callable[..., Any]:
    """Returns logits and labels as a function of the discriminator's parameters, a batch and the samples."""
    model = DebertaForReplacedTokenDetection(config)

    def run(params: Any, batch: Any, sampled: Any) -> tuple[jax.Array, jax.Array]:
        corrupted, replaced = corrupt(batch["input_ids"], batch["masked_positions"], batch["masked_labels"], sampled)
        out: Any = model.apply({"params": params}, corrupted, segment_ids=batch["segment_ids"])
        return out.logits, replaced

    return jax.jit(run)
