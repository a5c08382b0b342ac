"""Small models with random weights for entities, answers and choices, without torch."""

import functools
from typing import Any

from deberta_jax.convert.mapping import to_params
from deberta_jax.predict.predictor import Predictor

from .predictor import random_predictor
from .pytorch_files import random_state
from .small_models import TINY

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@functools.cache
def predictor_of(*heads: str, classes: int = 3, **fields: Any) -> Predictor:
    """Returns a model with these heads, with the tokenizer of `random_predictor`."""
    config = TINY.replace(num_labels=classes, **fields)
    params = to_params(random_state(config, *heads, classes=classes), config)
    return Predictor("random weights", config, params, random_predictor().tokenizer)


def tagger() -> Predictor:
    return predictor_of("classifier", classes=len(TAGS), label_names=TAGS)
