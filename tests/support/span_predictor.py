"""Small models with random weights for entities, answers and choices, without torch."""

import functools
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from deberta_jax import DebertaConfig
from deberta_jax.convert.mapping import to_params
from deberta_jax.predict.predictor import Predictor

from .predictor import random_predictor
from .pytorch_files import random_state
from .small_models import TINY
from .xlnet import SMALL, xlnet_tokenizer

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@functools.cache
def predictor_of(*heads: str, classes: int = 3, **fields: Any) -> Predictor:
    """Returns a model with these heads, with the tokenizer of `random_predictor`."""
    config = TINY.replace(num_labels=classes, **fields)
    params = to_params(random_state(config, *heads, classes=classes), config)
    return Predictor("random weights", config, params, random_predictor().tokenizer)


def tagger() -> Predictor:
    return predictor_of("classifier", classes=len(TAGS), label_names=TAGS)


@functools.cache
def xlnet_predictor_of(model: type[nn.Module], classes: int = 2) -> Predictor:
    """Returns an XLNet with the head of a model, whose [CLS] is the last token of a row."""
    tokenizer = xlnet_tokenizer()
    names = TAGS if classes == len(TAGS) else ()
    config = DebertaConfig.from_json({**SMALL, "vocab_size": tokenizer.vocab_size})
    config = config.replace(num_labels=classes, label_names=names, initializer_range=0.3)
    params: Any = jax.jit(model(config).init)(jax.random.key(0), np.array([[9, 9, 3]]))["params"]
    return Predictor("random weights", config, params, tokenizer)
