"""What a fine-tuning run trains: all parameters, or with LoRA adapters and the head beside a frozen encoder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from deberta_jax.adapter import Adapter, base_digest, configuration_changes, load_adapter, save_adapter
from deberta_jax.checkpoint import load_pretrained, save_pretrained
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.lora import adapted_model, check_targets, joined, merged
from deberta_jax.warm_start import merge_pretrained

from .configs import FinetuneConfig
from .engine.state import training_key

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Trains all parameters of a model. `LoraTuning` trains a part of them.

    Attributes:
      model: the model of the training step.
      frozen: parameters that are not trained.
    """

    model: Any
    frozen: Params = dataclasses.field(default_factory=dict)

    @property
    def adapted(self) -> Any:
        """The model that has adapters, None if all parameters are trained."""
        return None

    def whole(self, trained: Params) -> Params:
        """Returns all parameters of the task's model from those that are trained."""
        return trained

    def description(self, trained: Params) -> str:
        """Returns how much of the model is trained, as the end of a line of the log; nothing if all of it is."""
        return ""

    def save_result(
        self, output: Path, config: DebertaConfig, trained: Params, tokenizer: Mapping[str, bytes]
    ) -> list[Path]:
        """Writes the finished model to model/ of a run's folder, and returns what it has written. Collective."""
        save_pretrained(output / "model", config, self.whole(trained), tokenizer=tokenizer)
        return [output / "model"]

    def save(self, folder: Path, config: DebertaConfig, trained: Params) -> None:
        """Writes what is trained to a folder. Collective."""
        save_pretrained(folder, config, trained)

    def load(self, folder: Path, mesh: Mesh) -> Params:
        """Returns what `save` wrote. Collective."""
        return load_pretrained(folder, mesh=mesh)[1]


@dataclasses.dataclass(frozen=True)
class LoraTuning(Tuning):
    """Trains adapters and the head. `frozen` is the encoder, which needs neither gradients nor optimizer state.

    Attributes:
      adapter: describes the adapter; its parameters are empty.
    """

    adapter: Adapter = dataclasses.field(kw_only=True)

    @property
    def adapted(self) -> Any:
        return self.model

    def whole(self, trained: Params) -> Params:
        return merged(joined(self.frozen, trained), self.adapter.lora.scale)

    def description(self, trained: Params) -> str:
        adapters, every, frozen = (
            sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (trained["deberta"], trained, self.frozen)
        )
        return (
            f"; LoRA trains {every:,} parameters, {100 * every / (every + frozen):.2g} % of all: {adapters:,} of "
            f"adapters and {every - adapters:,} of the head"
        )

    def save_result(
        self, output: Path, config: DebertaConfig, trained: Params, tokenizer: Mapping[str, bytes]
    ) -> list[Path]:
        self.save(output / "adapter", config, trained)
        return [output / "adapter", *super().save_result(output, config, trained, tokenizer)]

    def save(self, folder: Path, config: DebertaConfig, trained: Params) -> None:
        save_adapter(folder, dataclasses.replace(self.adapter, params=trained))

    def load(self, folder: Path, mesh: Mesh) -> Params:
        return load_adapter(folder, mesh=mesh).params


def choose_tuning(
    config: FinetuneConfig,
    model: Any,
    pretrained: DebertaConfig,
    weights: Params,
    input_ids: Int[Array | np.ndarray, "B ..."],
) -> Tuning:
    """Returns what a run trains.

    Args:
      config: the settings of the run.
      model: the model of the task.
      pretrained: the configuration of the model to start from.
      weights: its parameters.
      input_ids: any token ids of the shape that the model takes.

    Raises:
      MissingPackageError: LoRA needs qwix, which is not installed.
      UserError: LoRA does not fit the model or the other settings.
    """
    lora, first_layer = config.lora, config.regularization.freeze_layers
    if not lora.rank:
        return Tuning(model)
    if config.random_weights:
        raise UserError("--lora.rank trains adapters of a model; leave out --random-weights, which trains a new model")
    if config.new_tokens.add_tokens or config.new_tokens.add_tokens_file is not None:
        raise UserError(
            "--add-tokens adds rows to the word embeddings, which --lora.rank does not train; leave out one of them"
        )
    if first_layer >= model.config.num_hidden_layers:
        raise UserError(
            f"freeze_layers is {first_layer}, which leaves no layer for adapters of --lora.rank; the model has "
            f"{model.config.num_hidden_layers} layers"
        )
    check_targets(weights, lora)
    adapted: nn.Module = adapted_model(model, lora, train=True, first_layer=first_layer)
    shapes = jax.eval_shape(model.init, training_key(config.seed), input_ids)["params"]
    return LoraTuning(
        adapted,
        {"deberta": merge_pretrained(weights, shapes)["deberta"]},
        adapter=Adapter(
            lora=lora,
            base=str(config.model),
            base_digest=base_digest(weights),
            configuration=configuration_changes(pretrained, model.config),
            params={},
        ),
    )
