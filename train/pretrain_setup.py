"""From the settings of a pre-training run to what they name: models, rows of text, masking."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh

from deberta_jax.checkpoint import load_pretrained
from deberta_jax.checksums import tree_digest
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import UserError
from deberta_jax.parameter_check import check_finite
from deberta_jax.rtd import Params, PretrainingBatch, RTDConfig
from deberta_jax.sharding import local_batch_indices, place_batch
from deberta_jax.tokenizers.tokenizer import Tokenizer

from .checkpoints.manifest import DIGESTS
from .configs import PretrainConfig
from .corpus_options import parse_weighted
from .data.batches import TrainingBatches, held_out_batches
from .data.corpus import Corpus, open_corpus
from .data.curriculum import Curriculum, arrange
from .data.masking import MaskingConfig
from .data.prepare import prepare
from .data.text import text_or_novels
from .engine.optimizer import optimizer_identity
from .model_folders import model_folder
from .new_tokens import with_new_rows, with_new_tokens
from .prepare import process_driver, set_records

BATCH_FIELDS = ("input_ids", "segment_ids", "masked_positions", "masked_labels")

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "embedding_size")


class PretrainedModel(NamedTuple):
    """A model to start from."""

    config: DebertaConfig
    params: Params


def load_initial_models(config: PretrainConfig, mesh: Mesh) -> dict[str, PretrainedModel]:
    """Loads the models to start from, by "generator" and "discriminator".

    Released weights are a pair: `init_generator` takes their generator for replaced token detection, and for masked
    language modeling, which trains a single model, the model itself.

    Raises:
      MissingFileError: if a folder does not contain a model, or as `model_folder`.
      UserError: if parameters are NaN or infinite.
    """
    folders = {"generator": config.models.init_generator, "discriminator": config.models.init_discriminator}
    pair = config.objective.name == "rtd"
    models = {
        name: PretrainedModel(
            *load_pretrained(model_folder(Path(folder), generator=pair and name == "generator"), mesh=mesh)
        )
        for name, folder in folders.items()
        if folder is not None
    }
    for name, model in models.items():
        check_finite(model.params, where=str(folders[name]))
    return models


def add_new_tokens(
    config: PretrainConfig, tokenizer: Tokenizer, initial: Mapping[str, PretrainedModel]
) -> tuple[Tokenizer, dict[str, PretrainedModel]]:
    """Returns the tokenizer with the tokens that the settings add, and the models to start from with rows for them."""
    grown = with_new_rows(config.new_tokens, tokenizer, initial)
    models = {name: PretrainedModel(*model) for name, model in grown.items()}
    return with_new_tokens(config.new_tokens, tokenizer), models


def resolve_models(config: PretrainConfig, initial: Mapping[str, DebertaConfig] = MappingProxyType({})) -> RTDConfig:
    """Returns the configurations of generator and discriminator.

    Args:
      config: the settings of the run.
      initial: the configurations of the models to start from. They replace those of `config.models.model`, except for
        the dropout of a JSON file.

    Raises:
      UserError: if there is no such model, a JSON file has other sizes than a model to start from, or shared embeddings
        are to be trained by decoupled optimizers.
    """
    choice = config.models
    if choice.model is None and "discriminator" in initial:
        models = RTDConfig.half_depth(initial["discriminator"])
    elif choice.model is not None and choice.model.endswith(".json"):
        models = RTDConfig.from_json(choice.model)
        initial = {name: _with_dropout_of(models, start, name, config) for name, start in initial.items()}
    else:
        models = RTDConfig.half_depth(DebertaConfig.named("deberta-v3-small" if choice.model is None else choice.model))
    if choice.embedding_sharing is not None:
        models = dataclasses.replace(models, embedding_sharing=choice.embedding_sharing)
    if choice.vocab_size is not None:
        models = dataclasses.replace(
            models,
            generator=models.generator.replace(vocab_size=choice.vocab_size),
            discriminator=models.discriminator.replace(vocab_size=choice.vocab_size),
        )
    if config.objective.name == "mlm":
        # Only the generator is trained; the discriminator's configuration is required but not used.
        single = initial.get("generator", models.discriminator)
        return RTDConfig(discriminator=single, generator=single, embedding_sharing="nes")
    models = dataclasses.replace(models, **initial)
    if models.embedding_sharing == "es" and config.objective.decoupled:
        raise UserError(
            "shared embeddings (es) with decoupled optimizers would lose the discriminator's gradient, as the official "
            "code does; add --no-decoupled, or use --embedding-sharing gdes"
        )
    return models


def _with_dropout_of(models: RTDConfig, start: DebertaConfig, name: str, config: PretrainConfig) -> DebertaConfig:
    """Returns the configuration of a model to start from, with the dropout that a JSON file gives for it.

    Raises:
      UserError: the file has other sizes. A generator whose sizes follow from those of the discriminator may have any.
    """
    given = models.discriminator if config.objective.name == "mlm" else getattr(models, name)
    derived = name == "generator" and models == RTDConfig.half_depth(models.discriminator, models.embedding_sharing)
    for size in () if derived else _SIZES:
        there, here = getattr(given, size), getattr(start, size)
        if there != here:
            raise UserError(
                f"{size} of the {name} is {there} by --model, but {here} in the model of --init-{name}; "
                f"give another one, or leave out --model"
            )
    return start.replace(
        hidden_dropout_prob=given.hidden_dropout_prob, attention_probs_dropout_prob=given.attention_probs_dropout_prob
    )


def check_tables(config: PretrainConfig, tokenizer: Tokenizer, models: RTDConfig) -> None:
    """Raises UserError if the models' tables are too small for the tokenizer or for the positions of a row."""
    if tokenizer.vocab_size > models.generator.vocab_size:
        raise UserError(
            f"the tokenizer in {config.tokenizer} has {tokenizer.vocab_size} pieces, more than the model's vocab_size "
            f"{models.generator.vocab_size}; give --vocab-size {-(-tokenizer.vocab_size // 64) * 64} or more, or train "
            f"a smaller tokenizer"
        )
    for name, model in (("generator", models.generator), ("discriminator", models.discriminator)):
        if model.reads_positions(masked_lm=name == "generator") and config.longest_row > model.max_tokens:
            raise UserError(
                f"sequence_length is {config.longest_row}, but the {name} has absolute positions for "
                f"{model.max_tokens} tokens; give a shorter one, or a --model FILE.json with a larger "
                "max_position_embeddings"
            )


def resolve_rows(config: PretrainConfig, tokenizer: Tokenizer) -> Curriculum:
    """Returns the packed rows: those of --corpus, or rows made from the text once and kept in the run's folder.

    Raises:
      UserError: if a corpus does not fit the tokenizer or the settings, or if several processes would prepare it.
    """
    if config.data.corpus:
        given = [(text, open_corpus(parse_weighted(text).name)) for text in config.data.corpus]
        for _, corpus in given:
            if config.evaluate_every and not corpus.held_out.rows:
                raise UserError(
                    f"{corpus.folder} has no held-out rows to evaluate on; prepare it with a held_out_fraction above "
                    f"0, or give --evaluate-every 0"
                )
        return arrange(given, config.stages, tokenizer=tokenizer)
    if jax.process_count() > 1:
        raise UserError(
            f"{jax.process_count()} processes cannot all prepare the text; run `deberta-jax prepare` once and give "
            f"its folder with --corpus"
        )
    lengths = [stage.sequence_length for stage in config.stages]
    names = ["corpus"] if len(lengths) == 1 else [f"corpus-{length}" for length in lengths]
    made = [_prepare(config, tokenizer, name, length) for name, length in zip(names, lengths, strict=True)]
    return arrange([*zip(names, made, strict=True)], config.stages, tokenizer=tokenizer)


def _prepare(config: PretrainConfig, tokenizer: Tokenizer, name: str, sequence_length: int) -> Corpus:
    """Prepares the text of a run in its folder, or opens what an earlier start prepared."""
    text, boundary = text_or_novels(config.data.text, config.data.boundary)
    return prepare(
        text,
        tokenizer,
        config.output / name,
        sequence_length=sequence_length,
        boundary=boundary,
        held_out_fraction=config.data.held_out_fraction,
        seed=config.seed,
        driver=process_driver(),
        open_set=set_records,
    )


def resolve_masking(config: PretrainConfig) -> MaskingConfig:
    """Returns which tokens are masked, with the official defaults of the objective."""
    objective = config.objective
    ngram = objective.max_ngram or (1 if objective.name == "rtd" else 3)
    return MaskingConfig(rate=objective.mask_rate, max_ngram=ngram, replace=objective.name)


@dataclasses.dataclass(frozen=True)
class PretrainingRows:
    """Rows of text and how they are masked and spread over the hosts."""

    curriculum: Curriculum
    masking: MaskingConfig
    tokenizer: Tokenizer
    mesh: Mesh

    def training_batches(self, config: PretrainConfig) -> TrainingBatches:
        """Returns this host's rows of the endless stream of training batches."""
        return TrainingBatches(
            self.curriculum,
            global_batch=config.batch_size,
            batch_indices=local_batch_indices(self.mesh, config.batch_size),
            seed=config.seed,
            masking=self.masking,
            tokenizer=self.tokenizer,
            workers=config.data.data_workers,
        )

    def held_out_batches(self, corpus: Corpus, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this host's rows of a corpus's held-out rows, in batches of `size` over all hosts."""
        return held_out_batches(
            corpus,
            global_batch=size,
            batch_indices=local_batch_indices(self.mesh, size),
            masking=self.masking,
            tokenizer=self.tokenizer,
        )

    def place(self, batch: dict[str, np.ndarray]) -> PretrainingBatch:
        """Puts this host's rows of a batch onto the devices."""
        return cast(PretrainingBatch, place_batch({name: batch[name] for name in BATCH_FIELDS}, self.mesh))


def input_digests(initial: Mapping[str, PretrainedModel]) -> dict[str, str]:
    """Returns digests of the weights to start from, by names for messages. Collective: all processes call it.

    The text, its order and the tokenizer are in the fingerprint of the corpus.
    """
    return {f"weights of the initial {name}": tree_digest(model.params) for name, model in sorted(initial.items())}


def identity(config: PretrainConfig, models: RTDConfig, rows: Curriculum, digests: Mapping[str, str]) -> dict[str, Any]:
    """Returns the settings and digests that a checkpoint and the run that resumes it must have in common.

    Keys and values are a format on disk: a change would keep interrupted runs from resuming. `checkpoints.restore`
    accepts a checkpoint without digests.

    Args:
      config: the settings of the run.
      models: the configurations of generator and discriminator.
      rows: the rows to train on.
      digests: from `input_digests`.
    """
    initial = {
        "init_generator": config.models.init_generator,
        "init_discriminator": config.models.init_discriminator,
    }
    return {
        "model": models.to_json(),
        "corpus": rows.identity,
        "objective": config.objective.name,
        "decoupled": config.objective.decoupled,
        "rtd_lambda": config.objective.rtd_lambda,
        "sequence_length": config.longest_row,
        "batch_size": config.batch_size,
        "accumulation": config.accumulation,
        "steps": config.steps,
        "mask_rate": config.objective.mask_rate,
        "max_ngram": config.objective.max_ngram,
        "optimizer": optimizer_identity(config.optimizer),
        "discriminator_learning_rate": config.discriminator_learning_rate,
        "dtype": config.dtype,
        "seed": config.seed,
        **{name: str(folder) for name, folder in initial.items() if folder is not None},
        DIGESTS: dict(digests),
    }
