"""Replaced token detection: generator and discriminator, how they share embeddings, sampling of replacements.

The parameters of a run are {"generator": {deberta, mlm_head}, "discriminator": {deberta, rtd_head}}. How the
discriminator stores the word and position embeddings depends on the sharing (DeBERTaV3, section 3.2). E_G is a table
of the generator and E_D one of the discriminator:

    gdes   gradient-disentangled embedding sharing: E_D = stop_gradient(E_G) + delta; it stores `delta`, initially zero
    es     embedding sharing: E_D = E_G; it stores no table, and both losses train E_G
    nes    no embedding sharing: it stores E_D
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self, TypedDict, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from . import losses
from .config import DebertaConfig
from .config_json import config_path, read_json_object
from .errors import UserError
from .losses import MaskedLMPass, Sampler
from .models import DebertaForMaskedLM, DebertaForReplacedTokenDetection
from .unknown_fields import set_aside
from .vocabulary_head import masked_lm_pass
from .warm_start import initial_params

Params = dict[str, Any]
EmbeddingSharing = Literal["gdes", "es", "nes"]
_SHARED_TABLES = ("word_embeddings", "position_embeddings")
_IDS = np.ones((1, 8), np.int32)  # of any shape, to initialize a model


class PretrainingBatch(TypedDict):
    """A batch of packed, masked rows."""

    input_ids: Int[Array, "B S"]  # masked
    segment_ids: Int[Array, "B S"]  # as for `Deberta`
    masked_positions: Int[Array, "B M"]
    masked_labels: Int[Array, "B M"]  # original ids; 0 marks an unused slot


class SampledBatch(PretrainingBatch):
    """A batch with the generator's samples."""

    sampled: Int[Array, "B M"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RTDConfig:
    """Generator, discriminator and how they share embeddings.

    Raises:
      UserError: an unknown sharing, or two models that cannot share a vocabulary or embeddings.
    """

    discriminator: DebertaConfig
    generator: DebertaConfig
    embedding_sharing: EmbeddingSharing = "gdes"

    def __post_init__(self) -> None:
        if self.embedding_sharing not in get_args(EmbeddingSharing):
            raise UserError(f"embedding_sharing is {self.embedding_sharing!r}; it must be gdes, es or nes")
        shared = ["vocab_size"]
        if self.embedding_sharing != "nes":
            shared += ["embedding_size", "max_position_embeddings"]
        for name in shared:
            generator, discriminator = getattr(self.generator, name), getattr(self.discriminator, name)
            if generator != discriminator:
                raise UserError(
                    f"{name} is {generator} in the generator and {discriminator} in the discriminator; "
                    f"with embedding_sharing {self.embedding_sharing!r} they must be equal"
                )

    @classmethod
    def half_depth(cls, discriminator: DebertaConfig, embedding_sharing: EmbeddingSharing = "gdes") -> Self:
        """Returns the released recipe: a generator of the same width with half the layers (at least two, for EMD)."""
        layers = max(2, discriminator.num_hidden_layers // 2)
        generator = discriminator.replace(num_hidden_layers=layers)
        return cls(discriminator=discriminator, generator=generator, embedding_sharing=embedding_sharing)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> Self:
        """Reads {"embedding_sharing", "generator", "discriminator"}, the official RTD configuration or one of ours.

        The configuration of a single model becomes the discriminator's, with a generator of half its layers. The
        official name of "nes" is "none". Without the field, embeddings are shared as DeBERTaV3 does, by "gdes".

        Args:
          source: a file, a folder with a config.json, or the parsed dict.

        Raises:
          FileNotFoundError: there is no such file.
          UserError: it is not JSON, has missing or unknown fields, or an invalid model.
        """
        fields = dict(source) if isinstance(source, Mapping) else read_json_object(config_path(source))
        if not {"generator", "discriminator"} & fields.keys():
            return cls.half_depth(DebertaConfig.from_json(source))
        missing = sorted({"generator", "discriminator"} - fields.keys())
        where = "the RTD configuration" if isinstance(source, Mapping) else str(config_path(source))
        if missing:
            raise UserError(
                f"{where}: an RTD configuration has the fields embedding_sharing, generator and discriminator; "
                f"missing: {missing}"
            )
        fields = set_aside(fields, {"embedding_sharing", "generator", "discriminator"}, where=where)
        for name in ("generator", "discriminator"):
            if not isinstance(fields[name], Mapping):
                raise UserError(f"{where}: {name} is {fields[name]!r}; it must be the configuration of a model")
        sharing = fields.get("embedding_sharing", "gdes")
        return cls(
            discriminator=DebertaConfig.from_json(fields["discriminator"]),
            generator=DebertaConfig.from_json(fields["generator"]),
            embedding_sharing="nes" if sharing == "none" else sharing,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns a dict from which `from_json` reads an equal configuration."""
        return {
            "embedding_sharing": self.embedding_sharing,
            "generator": self.generator.to_json(),
            "discriminator": self.discriminator.to_json(),
        }


@dataclasses.dataclass(frozen=True)
class RTDModels:
    """The two Flax modules of a run."""

    generator: DebertaForMaskedLM
    discriminator: DebertaForReplacedTokenDetection

    @classmethod
    def build(cls, config: RTDConfig, **attributes: Any) -> Self:
        """Builds both modules.

        Args:
          attributes: dtype, attention_implementation, remat and kept_layers, as for every model.
        """
        return cls(
            DebertaForMaskedLM(config.generator, **attributes),
            DebertaForReplacedTokenDetection(config.discriminator, **attributes),
        )

    def keeping(self, kept_layers: int) -> Self:
        """Returns the same modules with another number of layers that keep their attention probabilities."""
        return dataclasses.replace(
            self,
            generator=self.generator.clone(kept_layers=kept_layers),
            discriminator=self.discriminator.clone(kept_layers=kept_layers),
        )


def init_params(
    config: RTDConfig, key: jax.Array, *, generator: Params | None = None, discriminator: Params | None = None
) -> Params:
    """Returns the float32 parameters of a run: fresh, or starting from a pretrained generator, discriminator or both.

    Under GDES the `delta` of a pretrained discriminator is E_D - E_G, so its initial embeddings are unchanged. This
    differs deliberately from the official code, which starts it from the generator's table unless the file holds
    differences (`rtd_task.py`, `_create_model`). A fresh generator takes the shared tables of a pretrained
    discriminator, because while it learned others, it would move E_D with them. Under ES the generator's tables are
    the shared ones.

    Args:
      generator: {"deberta", "mlm_head"}, merged as by `merge_pretrained`.
      discriminator: {"deberta", "rtd_head"}, with its own tables, or with `delta` if its generator is given as well.

    Raises:
      UserError: a parameter is missing or has another shape, or `delta` is given without the generator.
    """
    generator_params = init_generator(config, key, generator)
    if discriminator is not None and "delta" in discriminator["deberta"]["embeddings"]["word_embeddings"]:
        if generator is None:
            raise UserError(
                "the discriminator's embeddings are differences (GDES): give its generator as well, with "
                "--init-generator"
            )
        discriminator = standalone_discriminator(
            {"generator": generator_params, "discriminator": discriminator}, "gdes"
        )
    _, discriminator_key = jax.random.split(key)
    model = RTDModels.build(config).discriminator
    discriminator_params = initial_params(model, discriminator_key, _IDS, discriminator)
    if discriminator is not None and generator is None and config.embedding_sharing != "nes":
        generator_params = _with_tables(
            generator_params,
            {name: discriminator_params["deberta"]["embeddings"][name] for name in _shared(discriminator_params)},
        )
    tables: dict[str, Params | None] = {}
    if config.embedding_sharing == "gdes":
        pretrained = None if discriminator is None else discriminator_params
        tables |= _initial_deltas(generator_params, pretrained)
    elif config.embedding_sharing == "es":
        tables |= dict.fromkeys(_SHARED_TABLES)
    return {"generator": generator_params, "discriminator": _with_tables(discriminator_params, tables)}


def init_generator(config: RTDConfig, key: jax.Array, pretrained: Params | None = None) -> Params:
    """Returns the generator of `init_params` alone, for a run that trains no discriminator.

    Args:
      config: generator and discriminator.
      key: the key of both.
      pretrained: the generator to start from (default: random parameters).

    Raises:
      UserError: a parameter is missing or has another shape.
    """
    generator_key, _ = jax.random.split(key)
    return initial_params(RTDModels.build(config).generator, generator_key, _IDS, pretrained)


def _shared(params: Params) -> list[str]:
    return [name for name in _SHARED_TABLES if name in params["deberta"]["embeddings"]]


def _initial_deltas(generator: Params, discriminator: Params | None) -> dict[str, Params]:
    """Returns E_D - E_G for every table of a pretrained discriminator, and 0 for the others."""
    generator_tables = generator["deberta"]["embeddings"]
    discriminator_tables = {} if discriminator is None else discriminator["deberta"]["embeddings"]
    deltas = {}
    for name in _shared(generator):
        table = generator_tables[name]["embedding"]
        if name in discriminator_tables:
            deltas[name] = {"delta": discriminator_tables[name]["embedding"] - table}
        else:
            deltas[name] = {"delta": jnp.zeros_like(table)}
    return deltas


def discriminator_view(params: Params, sharing: EmbeddingSharing) -> Params:
    """Returns the parameters to apply the discriminator with: the stored ones and the tables shared by the generator.

    Only under ES does a gradient through the result reach the generator's tables.
    """
    discriminator = params["discriminator"]
    if sharing == "nes":
        return discriminator
    generator_tables = params["generator"]["deberta"]["embeddings"]
    discriminator_tables = discriminator["deberta"]["embeddings"]
    tables = {}
    for name in _SHARED_TABLES:
        if sharing == "es" and name in generator_tables:
            tables[name] = generator_tables[name]
        elif name in discriminator_tables:
            constant = jax.lax.stop_gradient(generator_tables[name]["embedding"])
            tables[name] = {"embedding": constant, **discriminator_tables[name]}
    return _with_tables(discriminator, tables)


def standalone_discriminator(params: Params, sharing: EmbeddingSharing) -> Params:
    """Returns the discriminator with the tables E_D = E_G + delta, as it is saved, exported and fine-tuned."""
    view = discriminator_view(params, sharing)
    tables = {
        name: {"embedding": table["embedding"] + table.get("delta", 0.0)}
        for name, table in view["deberta"]["embeddings"].items()
        if name in _SHARED_TABLES
    }
    return _with_tables(view, tables)


def _with_tables(params: Params, tables: Mapping[str, Params | None]) -> Params:
    """Returns a copy of a model's parameters with some embedding tables replaced, or removed where None."""
    embeddings = {**params["deberta"]["embeddings"], **tables}
    embeddings = {name: table for name, table in embeddings.items() if table is not None}
    return {**params, "deberta": {**params["deberta"], "embeddings": embeddings}}


def corrupt(
    input_ids: Int[Array | np.ndarray, "B S"],
    masked_positions: Int[Array | np.ndarray, "B M"],
    masked_labels: Int[Array | np.ndarray, "B M"],
    sampled: Int[Array | np.ndarray, "B M"],
) -> tuple[Int[Array, "B S"], Bool[Array, "B S"]]:
    """Replaces the masked tokens by the samples.

    Args:
      masked_labels: the original ids; 0 marks an unused slot.

    Returns:
      corrupted_ids, and replaced: a sample that equals the original is not a replacement.
    """
    used = masked_labels > 0
    batch_index = jnp.arange(input_ids.shape[0])[:, None]
    slots = jnp.where(used, masked_positions, input_ids.shape[1])  # unused slots are out of range and dropped
    corrupted = jnp.asarray(input_ids).at[batch_index, slots].set(sampled, mode="drop")
    replaced = jnp.zeros(input_ids.shape, bool).at[batch_index, slots].set(sampled != masked_labels, mode="drop")
    return corrupted, replaced


class DiscriminatorPass(NamedTuple):
    """Loss and counts of one discriminator forward pass, over real tokens."""

    loss_sum: Float[Array, ""]
    weight: Float[Array, ""]  # number of real tokens
    correct: Float[Array, ""]
    true_positive: Float[Array, ""]  # replaced, and predicted to be
    predicted: Float[Array, ""]  # predicted to be replaced
    actual: Float[Array, ""]  # replaced


def generator_pass(
    model: DebertaForMaskedLM,
    params: Params,
    batch: PretrainingBatch,
    *,
    key: Array,
    sample: Sampler,
    train: bool,
) -> MaskedLMPass:
    """Runs the generator once, for both the masked LM loss and the samples (with dropout in training, as RTDModel)."""
    dropout_key, sample_key = jax.random.split(key)
    out: Any = model.apply(
        {"params": params},
        batch["input_ids"],
        segment_ids=batch["segment_ids"],
        masked_positions=batch["masked_positions"],
        train=train,
        rngs={"dropout": dropout_key},
        method="logit_factors",
    )
    return masked_lm_pass(
        out,
        batch["masked_labels"],
        key=sample_key,
        sampler=sample,
        implementation=model.attention_implementation,
    )


def discriminator_pass(
    model: DebertaForReplacedTokenDetection,
    params: Params,
    batch: PretrainingBatch,
    sampled: Int[Array | np.ndarray, "B M"],
    *,
    key: Array,
    train: bool,
) -> DiscriminatorPass:
    """Runs the discriminator once on the corrupted batch. A logit above 0 predicts a replacement.

    Args:
      params: from `discriminator_view`.
    """
    corrupted, replaced = corrupt(batch["input_ids"], batch["masked_positions"], batch["masked_labels"], sampled)
    out: Any = model.apply(
        {"params": params}, corrupted, segment_ids=batch["segment_ids"], train=train, rngs={"dropout": key}
    )
    logits, real = out.logits, batch["segment_ids"] != 0
    loss_sum, weight = losses.replaced_token(logits, replaced, real)
    predicted = (logits > 0) & real

    def count(tokens: jax.Array) -> jax.Array:
        return tokens.sum().astype(jnp.float32)

    return DiscriminatorPass(
        loss_sum,
        weight,
        correct=count((predicted == replaced) & real),
        true_positive=count(predicted & replaced),
        predicted=count(predicted),
        actual=count(replaced & real),
    )
