"""A small model with random weights, both pre-training heads and a tokenizer, to predict with."""

import functools
import tempfile
from pathlib import Path
from typing import Any

from deberta_jax import Tokenizer, save_pretrained
from deberta_jax.convert import save_pytorch
from deberta_jax.convert.mapping import to_params
from deberta_jax.predict.predictor import Predictor

from .novel import small_tokenizer
from .pytorch_files import MLM, RTD, random_state
from .small_models import TINY

TEXT = "It was a [MASK] of the [MASK] [MASK]."


@functools.cache
def random_predictor() -> Predictor:
    """Returns the model; its weights are large enough that probabilities differ clearly between tokens."""
    with tempfile.TemporaryDirectory() as folder:
        small_tokenizer(Path(folder), Path(folder) / "text.txt")
        tokenizer = Tokenizer.from_folder(folder)
    return Predictor("random weights", TINY, to_params(random_state(TINY, MLM, RTD), TINY), tokenizer)


@functools.cache
def random_classifier(classes: int = 3, **fields: Any) -> Predictor:
    """Returns a classifier of texts with random weights, on small batches.

    Args:
      classes: Number of classes.
      **fields: Other fields of the configuration.
    """
    config = TINY.replace(num_labels=classes, **fields)
    params = to_params(random_state(config, "pooler", "classifier", classes=classes), config)
    return Predictor("random weights", config, params, random_predictor().tokenizer, batch_size=1)


def write_model_folders(home: Path) -> dict[str, Path]:
    """Returns folders by name: the model in our format, and the generator and the discriminator as PyTorch files."""
    model = random_predictor()
    save_pretrained(home / "pretrained", model.config, model.params)
    save_pytorch(home / "generator", model.config, head_params(model, "mlm_head"))
    save_pytorch(home / "discriminator", model.config, head_params(model, "rtd_head"))
    for folder in home.iterdir():
        model.tokenizer.save(folder)
    return {folder.name: folder for folder in home.iterdir()}


def head_params(model: Predictor, head: str) -> dict[str, Any]:
    """Returns the parameters of the model with the encoder and one head."""
    return {"deberta": model.params["deberta"], head: model.params[head]}
