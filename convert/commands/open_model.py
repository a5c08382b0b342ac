"""A model and its tokenizer from anything that a person may name on a command line."""

import dataclasses
from pathlib import Path

from deberta_jax.checkpoint import PARAMETERS_FOLDER, load_pretrained
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ..from_pytorch import find_folder, load_pytorch
from ..mapping import Params
from ..quirks import ConversionError


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """Configuration, parameters and tokenizer of one model.

    Attributes:
      source: what was opened, for messages.
      params: nested dict, the encoder under `deberta`, the heads beside it.
    """

    source: str
    config: DebertaConfig
    params: Params
    tokenizer: Tokenizer

    def head(self, name: str) -> Params:
        """The parameters of a model that consists of the encoder and this head.

        Raises:
          ConversionError: there is no such head.
        """
        if name not in self.params:
            raise ConversionError(f"{self.source} has no {name}; it has {', '.join(self.params)}")
        return {"deberta": self.params["deberta"], name: self.params[name]}


def open_model(source: str, *, filename: str | None = None) -> OpenedModel:
    """Opens a folder of ours, or a folder or hub name with PyTorch files.

    Args:
      filename: which PyTorch weights, as in `load_pytorch`.

    Raises:
      FileNotFoundError: no such folder, or it lacks weights, configuration or tokenizer.
      ConversionError: weights that do not match, or GDES differences without their generator.
      ValueError: a configuration or a tokenizer that cannot be read, or the latter larger than the model.
    """
    if (Path(source) / PARAMETERS_FOLDER).is_dir() and filename is None:
        folder = Path(source)
        config, params = load_pretrained(folder)
    else:
        folder = find_folder(source, filename=filename)
        config, params = load_pytorch(folder, filename=filename)
    if "delta" in params["deberta"]["embeddings"]["word_embeddings"]:
        raise ConversionError(f"{source} has only differences to its generator's embeddings (GDES), no model by itself")
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} pieces, more than the model's vocab_size "
            f"{config.vocab_size}; put the tokenizer there that the model was trained with"
        )
    return OpenedModel(source, config, params, tokenizer)
