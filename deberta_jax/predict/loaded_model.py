"""A model and its tokenizer, loaded together, and the messages about what the two do not have."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ..checkpoint import load_pretrained
from ..config import DebertaConfig
from ..errors import UserError
from ..terminal import list_names
from ..tokenizers.tokenizer import Tokenizer

_TRAIN_HEAD = "`deberta-jax finetune --model MODEL --train FILE --output FOLDER"
# Parts of the parameters -> what they are for, and how to get them.
_PURPOSES = {
    "deberta": "the encoder",
    "mlm_head": "predicts masked tokens",
    "rtd_head": "detects replaced tokens",
    "pooler": "reads a whole text",
    "classifier": "labels or scores texts, tokens or choices",
    "token_proj": "a layer before the classifier of tokens",
    "span_classifier": "finds answers in a context",
}
_TRAINED_BY = {
    ("mlm_head",): "`deberta-jax pretrain`, which writes it in the folder generator/; of a released model it is in the "
    "generator's file (--filename pytorch_model.generator.bin), and of deberta-v3-tiny in deberta-v3-tiny/generator",
    ("rtd_head",): "`deberta-jax pretrain`, which writes it in the folder discriminator/",
    ("pooler", "classifier"): f"{_TRAIN_HEAD}` (--kind regression for scores, --kind choice for choices)",
    ("classifier",): f"{_TRAIN_HEAD} --kind tokens`",
    ("span_classifier",): f"{_TRAIN_HEAD} --kind span`",
}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """Configuration, parameters and tokenizer of one model.

    Attributes:
      source: Where the model was loaded from, for error messages.
      config: The model's configuration.
      params: Nested dict with the encoder under `deberta` and the heads beside it.
      tokenizer: The tokenizer that the model was trained with.
      thresholds: The probability from which each class is predicted, for the model of a multi-label run; empty if
        unknown.

    Raises:
      UserError: The tokenizer is larger than the model's vocabulary, or the parameters contain only a GDES
        discriminator's differences to its generator's embeddings.
    """

    source: str
    config: DebertaConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict, kw_only=True)

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
    def from_folder(cls, folder: str | os.PathLike[str], *, tokenizer: Tokenizer | None = None) -> Self:
        """Loads a folder that `save_pretrained` and `Tokenizer.save` wrote.

        Args:
          folder: The folder.
          tokenizer: The tokenizer (default: that of the folder).

        Raises:
          MissingFileError: The folder does not exist, or lacks parameters, configuration or tokenizer.
          UserError: The configuration or the tokenizer is invalid, or as the class.
        """
        config, params = load_pretrained(folder)
        thresholds = _thresholds_of_run(Path(folder), config) if config.is_multi_label else {}
        return cls(str(folder), config, params, tokenizer or Tokenizer.from_folder(folder), thresholds=thresholds)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; LABEL_0, LABEL_1, ... if the configuration has none, or the same name twice."""
        names = self.config.label_names
        if len(set(names)) == self.config.num_labels:
            return names
        return tuple(f"LABEL_{number}" for number in range(self.config.num_labels))

    def parts(self, heads: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the names of the parts of `params` that the encoder with these heads reads.

        Raises:
          UserError: The model does not have a head, or has it for another use.
        """
        labels_tokens = heads == ("classifier",)
        extra = ("token_proj",) if labels_tokens and "token_proj" in self.params else ()
        is_for_texts = labels_tokens and "pooler" in self.params
        if is_for_texts or not set(heads) <= self.params.keys():
            reason = f"has no {' and '.join(name for name in heads if name not in self.params)}"
            if is_for_texts:
                reason = "has a classifier of texts, not of tokens"
            has = list_names([f"{name} ({_PURPOSES[name]})" if name in _PURPOSES else name for name in self.params])
            trained_by = _TRAINED_BY.get(heads, f"{_TRAIN_HEAD}`")
            raise UserError(f"{self.source} {reason}; it has {has}. Train what is missing with {trained_by}")
        return ("deberta", *heads, *extra)

    def max_tokens(self, heads: tuple[str, ...] = ()) -> int | None:
        """Returns the largest number of tokens of a row, or None if there is no limit: without absolute positions."""
        return self.config.max_tokens if self.config.reads_positions(masked_lm="mlm_head" in heads) else None


def _thresholds_of_run(folder: Path, config: DebertaConfig) -> dict[str, float]:
    """Returns the thresholds that results.json of the run has for each class of its `model/`; empty without them."""
    file = folder.resolve().parent / "results.json"
    if folder.resolve().name != "model" or not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())["thresholds"]
        used = found[found["used"]]
        by_class: dict[str, Any] = used if isinstance(used, dict) else dict.fromkeys(config.label_names, used)
        return {name: float(by_class[name]) for name in config.label_names}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{file} does not have a threshold for each class of {folder}; repeat the command of the run, which writes "
            "it again, or copy the model to another folder"
        ) from None
