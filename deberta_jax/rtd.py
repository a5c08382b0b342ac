"""Replaced token detection: generator and discriminator, how they share embeddings, sampling of replacements.

Parameters of a run are {"generator": {deberta, mlm_head}, "discriminator": {deberta, rtd_head}}. What the
discriminator holds of the word and position tables depends on the sharing (DeBERTaV3, section 3.2):

    gdes   `delta` in place of `embedding`, zero at first: it reads stop_gradient(E_G) + delta
    es     nothing: it reads E_G, and both losses train it
    nes    tables of its own
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import jax
import jax.numpy as jnp

from . import losses
from .checkpoint import start_from
from .config import DebertaConfig
from .errors import UserError
from .models import DebertaForMaskedLM, DebertaForReplacedTokenDetection
from .random import random_bits

Params = dict[str, Any]
Batch = Mapping[str, jax.Array]  # input_ids, segment_ids [B, S]; masked_positions, masked_labels [B, M]
Sampler = losses.Score
EmbeddingSharing = Literal["gdes", "es", "nes"]
_SHARED_TABLES = ("word_embeddings", "position_embeddings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RTDConfig:
    """Generator, discriminator and how they share embeddings.

    Raises:
      ValueError: an unknown sharing, or two models that cannot share a vocabulary or tables.
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
            ours, theirs = getattr(self.generator, name), getattr(self.discriminator, name)
            if ours != theirs:
                raise UserError(
                    f"{name} is {ours} in the generator and {theirs} in the discriminator; "
                    f"with embedding_sharing {self.embedding_sharing!r} they must be equal"
                )

    @classmethod
    def half_depth(cls, discriminator: DebertaConfig, embedding_sharing: EmbeddingSharing = "gdes") -> Self:
        """The released recipe: a generator of the same width with half the layers (at least the decoder's two)."""
        layers = max(2, discriminator.num_hidden_layers // 2)
        generator = discriminator.replace(num_hidden_layers=layers)
        return cls(discriminator=discriminator, generator=generator, embedding_sharing=embedding_sharing)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> Self:
        """Reads {"embedding_sharing", "generator", "discriminator"}: the official RTD configuration, or ours.

        The configuration of a single model is taken as the discriminator's, with a generator of half its layers.
        """
        fields = dict(source) if isinstance(source, Mapping) else json.loads(Path(source).read_text(encoding="utf-8"))
        if not {"generator", "discriminator"} & fields.keys():
            return cls.half_depth(DebertaConfig.from_json(source))
        unknown = sorted(fields.keys() - {"embedding_sharing", "generator", "discriminator"})
        missing = sorted({"generator", "discriminator"} - fields.keys())
        if unknown or missing:
            raise UserError(
                f"an RTD configuration has the fields embedding_sharing, generator and discriminator; "
                f"unknown: {unknown}, missing: {missing}"
            )
        sharing = fields.get("embedding_sharing", "none")
        return cls(
            discriminator=DebertaConfig.from_json(fields["discriminator"]),
            generator=DebertaConfig.from_json(fields["generator"]),
            embedding_sharing="nes" if sharing == "none" else sharing,
        )

    def to_json(self) -> dict[str, Any]:
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
        """attributes: dtype, attention_implementation, remat, as of every model."""
        return cls(
            DebertaForMaskedLM(config.generator, **attributes),
            DebertaForReplacedTokenDetection(config.discriminator, **attributes),
        )


def init_params(
    config: RTDConfig, key: jax.Array, *, generator: Params | None = None, discriminator: Params | None = None
) -> Params:
    """Parameters of a run, float32: fresh, or going on from either model or both.

    Under GDES a given discriminator's `delta` is E_D - E_G, so that it starts where it stands. Deliberate difference:
    the official code starts it from the generator's table unless the file holds the difference (`rtd_task.py`,
    `_create_model`). A fresh generator that shares tables with a given discriminator starts from that one's: learning
    other ones would drag E_D along. Under ES the generator's tables are the shared ones.

    Args:
      generator: {"deberta", "mlm_head"}; see `start_from`.
      discriminator: {"deberta", "rtd_head"}, with tables of its own, or with `delta` and its generator beside it.

    Raises:
      ValueError: a parameter that is missing or of another shape, or `delta` without the generator.
    """
    models, ids = RTDModels.build(config), jnp.ones((1, 8), jnp.int32)
    generator_key, discriminator_key = jax.random.split(key)
    generator_params = jax.jit(models.generator.init)(generator_key, ids)["params"]
    discriminator_params = jax.jit(models.discriminator.init)(discriminator_key, ids)["params"]
    if generator is not None:
        generator_params = start_from(generator, generator_params)
    if discriminator is not None:
        if "delta" in discriminator["deberta"]["embeddings"]["word_embeddings"]:
            if generator is None:
                raise UserError("the discriminator's embeddings are differences (GDES): give its generator as well")
            discriminator = standalone_discriminator(
                {"generator": generator_params, "discriminator": discriminator}, "gdes"
            )
        discriminator_params = start_from(discriminator, discriminator_params)
        if generator is None and config.embedding_sharing != "nes":
            generator_params = _with_tables(
                generator_params,
                {name: discriminator_params["deberta"]["embeddings"][name] for name in _shared(discriminator_params)},
            )
    tables: dict[str, Params | None] = {}
    if config.embedding_sharing == "gdes":
        tables |= _differences(generator_params, discriminator_params, relative=discriminator is not None)
    elif config.embedding_sharing == "es":
        tables |= dict.fromkeys(_SHARED_TABLES)
    return {"generator": generator_params, "discriminator": _with_tables(discriminator_params, tables)}


def _shared(params: Params) -> list[str]:
    return [name for name in _SHARED_TABLES if name in params["deberta"]["embeddings"]]


def _differences(generator: Params, discriminator: Params, *, relative: bool) -> dict[str, Params]:
    """E_D - E_G of every table that the discriminator reads; 0 otherwise."""
    theirs, own = generator["deberta"]["embeddings"], discriminator["deberta"]["embeddings"]
    return {
        name: {
            "delta": own[name]["embedding"] - theirs[name]["embedding"]
            if relative and name in own
            else jnp.zeros_like(theirs[name]["embedding"])
        }
        for name in _shared(generator)
    }


def discriminator_view(params: Params, sharing: EmbeddingSharing) -> Params:
    """The parameters to apply the discriminator with: its own and what it reads of the generator's tables.

    Differentiating through the result gives the generator's tables a gradient under ES alone.
    """
    discriminator = params["discriminator"]
    if sharing == "nes":
        return discriminator
    theirs, own = params["generator"]["deberta"]["embeddings"], discriminator["deberta"]["embeddings"]
    tables = {}
    for name in _SHARED_TABLES:
        if sharing == "es" and name in theirs:
            tables[name] = theirs[name]
        elif name in own:
            tables[name] = {"embedding": jax.lax.stop_gradient(theirs[name]["embedding"]), **own[name]}
    return _with_tables(discriminator, tables)


def standalone_discriminator(params: Params, sharing: EmbeddingSharing) -> Params:
    """The discriminator with tables of its own, E_G + delta summed: what is saved, exported and fine-tuned."""
    view = discriminator_view(params, sharing)
    tables = {
        name: {"embedding": table["embedding"] + table.get("delta", 0.0)}
        for name, table in view["deberta"]["embeddings"].items()
        if name in _SHARED_TABLES
    }
    return _with_tables(view, tables)


def _with_tables(discriminator: Params, tables: Mapping[str, Params | None]) -> Params:
    """A copy of the tree with some embedding tables replaced (None: removed)."""
    embeddings = {**discriminator["deberta"]["embeddings"], **tables}
    embeddings = {name: table for name, table in embeddings.items() if table is not None}
    return {**discriminator, "deberta": {**discriminator["deberta"], "embeddings": embeddings}}


def sample_replacements(logits: jax.Array, words: jax.Array, key: jax.Array) -> jax.Array:
    """Scores whose highest is a draw from softmax(logits), at temperature 1: the Gumbel-max trick.

    Args:
      logits: float32 [B, M, C] of the words int [C], a part of the vocabulary.
    """
    del words
    uniform = ((random_bits(logits.shape, key) >> 1).astype(jnp.int32) + 0.5) * 2**-31
    return logits - jnp.log(-jnp.log1p(-uniform))  # log1p: the highest scores come from the smallest numbers


def corrupt(
    input_ids: jax.Array, masked_positions: jax.Array, masked_labels: jax.Array, sampled: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Puts the samples in place of the masked tokens.

    Args:
      input_ids: int [B, S], masked; masked_positions: int [B, M]; masked_labels: int [B, M], the original ids, 0 for
        an unused slot; sampled: int [B, M].

    Returns:
      corrupted_ids int [B, S], and replaced bool [B, S]: a sample that equals the original is not a replacement.
    """
    used = masked_labels > 0
    rows = jnp.arange(input_ids.shape[0])[:, None]
    slots = jnp.where(used, masked_positions, input_ids.shape[1])  # unused slots fall outside and are dropped
    corrupted = jnp.asarray(input_ids).at[rows, slots].set(sampled, mode="drop")
    replaced = jnp.zeros(input_ids.shape, bool).at[rows, slots].set(sampled != masked_labels, mode="drop")
    return corrupted, replaced


class GeneratorPass(NamedTuple):
    """What one generator forward gives: loss, replacements, and how often its best guess was right."""

    loss_sum: jax.Array
    weight: jax.Array  # number of masked tokens
    correct: jax.Array
    sampled: jax.Array  # int [B, M]


class DiscriminatorPass(NamedTuple):
    """Loss and counts of one discriminator forward, over real tokens."""

    loss_sum: jax.Array
    weight: jax.Array
    correct: jax.Array
    true_positive: jax.Array  # replaced, and said to be
    predicted: jax.Array
    actual: jax.Array


def generator_pass(
    model: DebertaForMaskedLM, params: Params, batch: Batch, *, key: jax.Array, sample: Sampler, train: bool
) -> GeneratorPass:
    """One forward serves the masked LM loss and the sampling, dropout on in training (official RTDModel)."""
    dropout_key, sample_key = jax.random.split(key)
    out: Any = model.apply(
        {"params": params},
        batch["input_ids"],
        segment_ids=batch["segment_ids"],
        masked_positions=batch["masked_positions"],
        train=train,
        rngs={"dropout": dropout_key},
        method="before_logits",
    )
    labels = batch["masked_labels"]
    return GeneratorPass(
        *losses.masked_lm_and_samples(out.hidden, out.table, out.bias, labels, key=sample_key, score=sample)
    )


def discriminator_pass(
    model: DebertaForReplacedTokenDetection,
    params: Params,
    batch: Batch,
    sampled: jax.Array,
    *,
    key: jax.Array,
    train: bool,
) -> DiscriminatorPass:
    """params: what `discriminator_view` gives. A logit above 0 says "replaced"."""
    corrupted, replaced = corrupt(batch["input_ids"], batch["masked_positions"], batch["masked_labels"], sampled)
    out: Any = model.apply(
        {"params": params}, corrupted, segment_ids=batch["segment_ids"], train=train, rngs={"dropout": key}
    )
    logits, real = out.logits, batch["segment_ids"] != 0
    loss_sum, weight = losses.replaced_token(logits, replaced, real)
    said = (logits > 0) & real

    def count(which: jax.Array) -> jax.Array:
        return which.sum().astype(jnp.float32)

    return DiscriminatorPass(
        loss_sum, weight, count((said == replaced) & real), count(said & replaced), count(said), count(replaced & real)
    )
