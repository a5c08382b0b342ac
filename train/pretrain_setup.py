"""The settings of a pre-training run made into the things that they name: models, rows of text, masking."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh

from deberta_jax.checkpoint import load_pretrained
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.rtd import Params, RTDConfig
from deberta_jax.tokenizers.tokenizer import Tokenizer

from .configs import PretrainConfig
from .data.masking import MaskingConfig
from .data.prepare import Corpus, embedded_corpus, open_corpus, prepare


def load_starts(config: PretrainConfig, mesh: Mesh) -> dict[str, tuple[DebertaConfig, Params]]:
    """The models to go on from, by "generator" and "discriminator".

    Raises:
      FileNotFoundError: a folder that holds no model.
      ValueError: one that the objective does not train.
    """
    if config.objective.name == "mlm" and config.models.init_discriminator is not None:
        raise UserError("--objective mlm trains no discriminator; give the model to go on from as --init-generator")
    folders = {"generator": config.models.init_generator, "discriminator": config.models.init_discriminator}
    return {name: load_pretrained(folder, mesh=mesh) for name, folder in folders.items() if folder is not None}


def resolve_models(
    config: PretrainConfig, tokenizer: Tokenizer, starts: Mapping[str, DebertaConfig] = MappingProxyType({})
) -> RTDConfig:
    """Generator and discriminator as asked for; a model to go on from (in `starts`) brings its own configuration.

    Raises:
      ValueError: no such model, a vocabulary smaller than the tokenizer's, or settings that exclude each other.
    """
    if config.models.model is None and "discriminator" in starts:
        models = RTDConfig.half_depth(starts["discriminator"])
    elif config.models.model is not None and config.models.model.endswith(".json"):
        models = RTDConfig.from_json(config.models.model)
    else:
        models = RTDConfig.half_depth(DebertaConfig.named(config.models.model or "deberta-v3-small"))
    if config.models.embedding_sharing is not None:
        models = dataclasses.replace(models, embedding_sharing=config.models.embedding_sharing)
    if config.models.vocab_size is not None:
        models = dataclasses.replace(
            models,
            generator=models.generator.replace(vocab_size=config.models.vocab_size),
            discriminator=models.discriminator.replace(vocab_size=config.models.vocab_size),
        )
    if config.objective.name == "mlm":
        single = starts.get("generator", models.discriminator)
        models = RTDConfig(discriminator=single, generator=single, embedding_sharing="nes")
    else:
        models = dataclasses.replace(models, **starts)
    if tokenizer.vocab_size > models.generator.vocab_size:
        raise UserError(
            f"the tokenizer in {config.tokenizer} has {tokenizer.vocab_size} pieces, more than the model's vocab_size "
            f"{models.generator.vocab_size}; give --vocab-size {-(-tokenizer.vocab_size // 64) * 64} or more, or train "
            f"a smaller tokenizer"
        )
    if config.objective.name == "mlm" and not config.objective.decoupled:
        raise UserError("there is nothing to couple with --objective mlm; leave out --no-decoupled")
    if models.embedding_sharing == "es" and config.objective.decoupled and config.objective.name == "rtd":
        raise UserError(
            "shared embeddings (es) with decoupled optimizers would lose the discriminator's gradient, as the official "
            "code does; add --no-decoupled, or use --embedding-sharing gdes"
        )
    return models


def resolve_corpus(config: PretrainConfig, tokenizer: Tokenizer) -> Corpus:
    """The packed rows: those of --corpus, or made from the text once and kept in the run's folder."""
    if config.data.corpus is not None:
        if config.data.text:
            raise UserError("give --text or --corpus, not both")
        corpus = open_corpus(config.data.corpus)
        corpus.check(tokenizer=tokenizer, sequence_length=config.data.sequence_length)
        if config.evaluate_every and not corpus.held_out.rows:
            raise UserError(
                f"{config.data.corpus} has no held-out rows to evaluate on; prepare it with a held_out_fraction above "
                f"0, or give --evaluate-every 0"
            )
        return corpus
    if jax.process_count() > 1:
        raise UserError(
            f"{jax.process_count()} processes cannot all prepare the text; run `deberta-jax prepare` once and give "
            f"its folder with --corpus"
        )
    return prepare(
        config.data.text or (embedded_corpus(),),
        tokenizer,
        config.output / "corpus",
        sequence_length=config.data.sequence_length,
        boundary=config.data.boundary or ("blank_line" if config.data.text else "chapter"),
        held_out_fraction=config.data.held_out_fraction,
        seed=config.seed,
    )


def resolve_masking(config: PretrainConfig) -> MaskingConfig:
    ngram = config.objective.max_ngram or (1 if config.objective.name == "rtd" else 3)
    return MaskingConfig(rate=config.objective.mask_rate, max_ngram=ngram, replace=config.objective.name)


def check_sizes(config: PretrainConfig, *, devices: int) -> None:
    """Raises ValueError where a batch does not divide."""
    if config.batch_size % config.accumulation:
        raise UserError(
            f"batch_size {config.batch_size} does not divide into {config.accumulation} chunks (accumulation)"
        )
    if config.batch_size // config.accumulation % devices:
        raise UserError(
            f"a chunk of {config.batch_size // config.accumulation} rows (batch_size / accumulation) does not divide "
            f"over {devices} devices; give a multiple"
        )


def identity(config: PretrainConfig, models: RTDConfig, corpus: Corpus) -> dict[str, Any]:
    """Returns the settings that a checkpoint and the run that resumes it must have in common, by their old flat names.

    Keys and values are a format on disk: a change would keep runs from resuming.
    """
    starts = {
        "init_generator": config.models.init_generator,
        "init_discriminator": config.models.init_discriminator,
    }
    return {
        "model": models.to_json(),
        "corpus": corpus.fingerprint,
        "objective": config.objective.name,
        "decoupled": config.objective.decoupled,
        "rtd_lambda": config.objective.rtd_lambda,
        "sequence_length": config.data.sequence_length,
        "batch_size": config.batch_size,
        "accumulation": config.accumulation,
        "steps": config.steps,
        "mask_rate": config.objective.mask_rate,
        "max_ngram": config.objective.max_ngram,
        "optimizer": dataclasses.asdict(config.optimizer),
        "discriminator_learning_rate": config.discriminator_learning_rate,
        "dtype": config.dtype,
        "seed": config.seed,
        **{name: str(folder) for name, folder in starts.items() if folder is not None},
    }
