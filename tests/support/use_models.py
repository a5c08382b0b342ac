"""Small models with random weights for each use, as folders."""

from pathlib import Path

from deberta_jax import save_pretrained
from deberta_jax.convert.mapping import to_params

from .predictor import random_predictor
from .pytorch_files import MLM, RTD, random_state
from .small_models import TINY

_POOLED = ("pooler", "classifier")
# Name -> heads and names of the classes.
_MODELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nli": (_POOLED, ("contradiction", "neutral", "entailment")),
    "scorer": (_POOLED, ("score",)),
    "ner": (("classifier",), ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")),
    "qa": (("span_classifier",), ("0", "1")),
    "generator": ((MLM,), ("0", "1")),
    "discriminator": ((RTD,), ("0", "1")),
    "pretrained": ((MLM, RTD), ("0", "1")),
    "encoder": ((), ("0", "1")),
}


def write_use_model(home: Path, name: str) -> Path:
    """Writes the model of a use, with a tokenizer of 600 pieces, and returns its folder."""
    heads, labels = _MODELS[name]
    config = TINY.replace(num_labels=len(labels)).replace(label_names=labels)
    params = to_params(random_state(config, *heads, classes=len(labels)), config)
    save_pretrained(home / name, config, params, tokenizer=random_predictor().tokenizer.files())
    return home / name
