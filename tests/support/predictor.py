"""A small model with random weights, both pre-training heads and a tokenizer, to predict with."""

import functools
import tempfile
from pathlib import Path
from typing import Any

from deberta_jax import Tokenizer
from deberta_jax.convert.mapping import to_params
from deberta_jax.predict.loaded_model import LoadedModel

from .novel import small_tokenizer
from .pytorch_files import MLM, RTD, random_state
from .small_models import TINY

TEXT = "It was a [MASK] of the [MASK] [MASK]."


@functools.cache
def random_predictor() -> LoadedModel:
    """Returns the model; its weights are large enough that probabilities differ clearly between tokens."""
    with tempfile.TemporaryDirectory() as folder:
        small_tokenizer(Path(folder), Path(folder) / "text.txt")
        tokenizer = Tokenizer.from_folder(folder)
    return LoadedModel("random weights", TINY, to_params(random_state(TINY, MLM, RTD), TINY), tokenizer)


def head_params(model: LoadedModel, head: str) -> dict[str, Any]:
    """Returns the parameters of the model with the encoder and one head."""
    return {"deberta": model.params["deberta"], head: model.params[head]}
