"""Fingerprints of the rows of a batch, so that a test can tell which rows of a corpus were trained on."""

import hashlib

import numpy as np

from deberta_jax.train.data.batches import Batch


def fingerprints(batch: Batch) -> list[str]:
    """Returns a hash of each row's tokens as they are in the corpus, that is with the masked tokens restored."""
    ids = batch["input_ids"].copy()
    for row, positions, labels in zip(ids, batch["masked_positions"], batch["masked_labels"], strict=True):
        row[positions[labels > 0]] = labels[labels > 0]
    return [hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()[:16] for row in ids]
