"""A model and its tokenizer, loaded together and ready for predictions on text."""

import dataclasses
import os
from typing import Any, Self

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Int

from ..checkpoint import load_pretrained
from ..config import DebertaConfig
from ..errors import UserError
from ..parameter_check import check_finite
from ..terminal import list_names
from ..tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """Configuration, parameters and tokenizer of one model.

    Attributes:
      source: Where the model was loaded from, for error messages.
      config: The model's configuration.
      params: Nested dict with the encoder under `deberta` and the heads beside it.
      tokenizer: The tokenizer that the model was trained with.

    Raises:
      UserError: The tokenizer is larger than the model's vocabulary, or the parameters contain only a GDES
        discriminator's differences to its generator's embeddings.

    Example:
      model = LoadedModel.from_folder("runs/demo/generator")
      fill_mask(model, "Paris is the [MASK] of France.")
    """

    source: str
    config: DebertaConfig
    params: dict[str, Any]
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        if "delta" in self.params["deberta"]["embeddings"]["word_embeddings"]:
            raise UserError(
                f"{self.source} contains only differences to its generator's embeddings (GDES), not a complete model; "
                "add the two with deberta_jax.rtd.standalone_discriminator first"
            )
        if self.tokenizer.vocab_size > self.config.vocab_size:
            raise UserError(
                f"the tokenizer of {self.source} has {self.tokenizer.vocab_size} pieces, more than the model's "
                f"vocab_size {self.config.vocab_size}; replace it with the tokenizer that the model was trained with"
            )

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Loads a folder that `save_pretrained` and `Tokenizer.save` wrote.

        Raises:
          MissingFileError: The folder does not exist, or lacks parameters, configuration or tokenizer.
          UserError: The configuration or the tokenizer is invalid, or as the class.
        """
        config, params = load_pretrained(folder)
        return cls(str(folder), config, params, Tokenizer.from_folder(folder))

    def run_head(self, head: str, module: type[nn.Module], input_ids: Int[np.ndarray, "B S"], **inputs: Any) -> Any:
        """Applies the encoder and one head.

        Args:
          head: Name of the head in `params`, such as "mlm_head".
          module: Class of the model that consists of the encoder and this head, such as `DebertaForMaskedLM`.
          input_ids: The ids, with the special tokens.
          **inputs: Further arguments of the model.

        Raises:
          UserError: The model does not have this head, has no absolute positions for so many tokens, or gives logits
            that are NaN or infinite.
        """
        if head not in self.params:
            raise UserError(f"{self.source} has no {head}; it has {list_names(self.params)}")
        reads_positions = self.config.reads_positions(masked_lm=head == "mlm_head")
        if reads_positions and input_ids.shape[1] > self.config.max_tokens:
            raise UserError(
                f"the text has {input_ids.shape[1]} tokens, but {self.source} has positions for "
                f"{self.config.max_tokens}; shorten it"
            )
        params = {"deberta": self.params["deberta"], head: self.params[head]}
        output: Any = jax.jit(module(self.config).apply)({"params": params}, input_ids, **inputs)
        if not np.isfinite(output.logits).all():
            check_finite(params, where=self.source)  # names them
            raise UserError(f"the logits of {self.source} are NaN or infinite, because its parameters are too large")
        return output
