"""Pre-training by replaced token detection or masked language modelling, from text files to a saved model.

    deberta-jax pretrain --output runs/first --tokenizer runs/tokenizer --text corpus/ --model deberta-v3-small

Read `main` top to bottom; the step is `build_step`. One step of decoupled replaced token detection, in the order of
the official `rtd_task.py`: the generator's loss and samples from one forward with dropout on, its update, then the
discriminator's loss with the embedding that was just updated, its update.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from deberta_jax.checkpoint import load_pretrained, save_pretrained
from deberta_jax.config import DebertaConfig
from deberta_jax.rtd import (
    Batch,
    EmbeddingSharing,
    Params,
    RTDConfig,
    RTDModels,
    Sampler,
    discriminator_pass,
    discriminator_view,
    generator_pass,
    init_params,
    sample_replacements,
    standalone_discriminator,
)
from deberta_jax.sharding import make_mesh, place_batch, shardings
from deberta_jax.tokenizer import Tokenizer

from .accumulation import accumulate
from .checkpointing import Checkpointer
from .configs import PretrainConfig
from .data import TrainingBatches, evaluation_batches
from .loop import Plan, Sums, train
from .masking import MaskingConfig
from .metrics import discriminator_sums, generator_sums, pretraining_figures
from .optimizer import apply_gradients, build_optimizer, schedule
from .prepare import Corpus, embedded_corpus, open_corpus, prepare
from .report import Reporter, plot_curves
from .state import TrainState, training_key

Optimizers = dict[str, optax.GradientTransformation]
Metrics = dict[str, jax.Array]
BATCH_FIELDS = ("input_ids", "segment_ids", "masked_positions", "masked_labels")


def main(config: PretrainConfig) -> None:
    # ---------------------------------------------------------------- what is trained, on what
    tokenizer = Tokenizer.from_folder(config.tokenizer)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    starts = load_starts(config, mesh)
    models_config = resolve_models(config, tokenizer, {name: start[0] for name, start in starts.items()})
    models = RTDModels.build(models_config, dtype=jnp.dtype(config.dtype), remat=config.remat)
    check_sizes(config, devices=mesh.shape["data"] * mesh.shape["fsdp"])
    corpus = resolve_corpus(config, tokenizer)
    masking = resolve_masking(config)

    # ---------------------------------------------------------------- state, sharded as the table says
    optimizers = build_optimizers(config)

    def create(weights: dict[str, Params]) -> TrainState:
        params = init_params(models_config, training_key(config.seed), **weights)
        if config.objective == "mlm":
            params = {"generator": params["generator"]}
        return TrainState.create(params, init_optimizers(optimizers, params), seed=config.seed)

    weights = {name: start[1] for name, start in starts.items()}
    origins = {name: f"going on from {', '.join(params)}" for name, params in weights.items()}
    placement = shardings(jax.eval_shape(create, weights), mesh)
    with jax.set_mesh(mesh):  # attention reads it, here and in every step
        state = jax.jit(create, out_shardings=placement)(weights)
    del starts, weights

    # ---------------------------------------------------------------- one step, compiled once, its state donated
    step = jax.jit(
        build_step(models, optimizers, config, sharing=models_config.embedding_sharing),
        donate_argnums=0,
        out_shardings=(placement, None),
    )
    measure = jax.jit(build_evaluation(models, config, sharing=models_config.embedding_sharing))

    def place(batch: dict[str, np.ndarray]) -> Batch:
        return place_batch({name: batch[name] for name in BATCH_FIELDS}, mesh)

    def evaluate(state: TrainState) -> dict[str, float]:
        sums: Sums = {}
        batches = evaluation_batches(
            corpus, global_batch=config.batch_size // config.accumulation, masking=masking, tokenizer=tokenizer
        )
        for number, batch in enumerate(batches):
            key = jax.random.fold_in(training_key(config.seed), number)
            for name, value in jax.device_get(measure(state.params, place(batch), key)).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return pretraining_figures(sums)

    # ---------------------------------------------------------------- train, from the newest checkpoint if there is one
    with (
        jax.set_mesh(mesh),
        Checkpointer(
            config.output / "checkpoints", keep=config.keep, identity=identity(config, models_config, corpus)
        ) as checkpointer,
        Reporter(
            config.output,
            total_steps=config.steps,
            tokens_per_step=config.batch_size * config.sequence_length,
            every=config.log_every,
        ) as reporter,
    ):
        for name, params in state.params.items():
            size = sum(leaf.size for leaf in jax.tree.leaves(params))
            reporter.message(f"{name}: {size / 1e6:.1f} M parameters, {origins.get(name, 'fresh')}")
        state = train(
            state,
            plan=Plan(
                steps=config.steps,
                log_every=config.log_every,
                evaluate_every=config.evaluate_every,
                save_every=config.save_every,
            ),
            step=step,
            batches=TrainingBatches(
                corpus, global_batch=config.batch_size, seed=config.seed, masking=masking, tokenizer=tokenizer
            ),
            place=place,
            figures=pretraining_figures,
            evaluate=evaluate,
            checkpointer=checkpointer,
            reporter=reporter,
        )
        save_models(config, models_config, state.params, tokenizer, reporter)


# -------------------------------------------------------------------- the step


def build_step(
    models: RTDModels,
    optimizers: Optimizers,
    config: PretrainConfig,
    *,
    sharing: EmbeddingSharing,
    sample: Sampler = sample_replacements,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The update of one batch, as a pure function of state and batch (input_ids, segment_ids, masked_positions,
    masked_labels). Its metrics are sums over the batch's tokens, gradient norms and the learning rate."""
    multiplier = schedule(config.optimizer, total_steps=config.steps)

    def generator_loss(params: Params, chunk: Batch, key: jax.Array, weight: jax.Array):
        out = generator_pass(models.generator, params, chunk, key=key, sample=sample, train=True)
        return out.loss_sum / weight, out

    def discriminator_loss(own: Params, chunk: Batch, key: jax.Array, weight: jax.Array, generator: Params):
        params = discriminator_view({"generator": generator, "discriminator": own}, sharing)
        out = discriminator_pass(models.discriminator, params, chunk, chunk["sampled"], key=key, train=True)
        return config.rtd_lambda * out.loss_sum / weight, out

    def joint_loss(params: Params, chunk: Batch, key: jax.Array, masked: jax.Array, real: jax.Array):
        first, second = jax.random.split(key)
        generator_part, generated = generator_loss(params["generator"], chunk, first, masked)
        view = discriminator_view(params, sharing)
        judged = discriminator_pass(models.discriminator, view, chunk, generated.sampled, key=second, train=True)
        return generator_part + config.rtd_lambda * judged.loss_sum / real, (generated, judged)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(state.step_key())
        masked = jnp.maximum((batch["masked_labels"] > 0).sum(), 1)
        real = jnp.maximum((batch["segment_ids"] != 0).sum(), 1)
        params, opt_state = dict(state.params), dict(state.opt_state)
        metrics = {"learning_rate": config.optimizer.learning_rate * multiplier(state.step)}

        def update(name: str, grads: Any, trained: Any) -> Any:
            trained, opt_state[name], metrics[f"{name}_grad_norm"] = apply_gradients(
                optimizers[name], grads, opt_state[name], trained
            )
            return trained

        if not config.decoupled:
            grads, (generated, judged) = accumulate(
                joint_loss, params, batch, keys[0], config.accumulation, masked, real
            )
            params = update("joint", grads, params)
            metrics |= generator_sums(generated) | discriminator_sums(judged)
        else:
            # 1. The generator: masked LM loss and samples, update.
            grads, generated = accumulate(
                generator_loss, params["generator"], batch, keys[0], config.accumulation, masked
            )
            params["generator"] = update("generator", grads, params["generator"])
            metrics |= generator_sums(generated)
            if config.objective == "rtd":
                # 2. The discriminator, on embeddings that the generator's update has moved already, update.
                grads, judged = accumulate(
                    lambda own, chunk, key, weight: discriminator_loss(own, chunk, key, weight, params["generator"]),
                    params["discriminator"],
                    {**batch, "sampled": generated.sampled},
                    keys[1],
                    config.accumulation,
                    real,
                )
                params["discriminator"] = update("discriminator", grads, params["discriminator"])
                metrics |= discriminator_sums(judged)
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def build_evaluation(
    models: RTDModels, config: PretrainConfig, *, sharing: EmbeddingSharing
) -> Callable[[Params, Batch, jax.Array], Metrics]:
    """Sums over one held-out batch without dropout; the replacements are sampled with the key that is given."""

    def measure(params: Params, batch: Batch, key: jax.Array) -> Metrics:
        generated = generator_pass(
            models.generator, params["generator"], batch, key=key, sample=sample_replacements, train=False
        )
        metrics = generator_sums(generated)
        if config.objective == "rtd":
            view = discriminator_view(params, sharing)
            judged = discriminator_pass(models.discriminator, view, batch, generated.sampled, key=key, train=False)
            metrics |= discriminator_sums(judged)
        return metrics

    return measure


def build_optimizers(config: PretrainConfig) -> Optimizers:
    """One optimiser a model, or one for both when they are not decoupled."""
    generator = build_optimizer(config.optimizer, total_steps=config.steps)
    if config.objective == "mlm":
        return {"generator": generator}
    if not config.decoupled:
        return {"joint": generator}
    rate = config.discriminator_learning_rate or config.optimizer.learning_rate
    discriminator = dataclasses.replace(config.optimizer, learning_rate=rate)
    return {"generator": generator, "discriminator": build_optimizer(discriminator, total_steps=config.steps)}


def init_optimizers(optimizers: Optimizers, params: Params) -> dict[str, Any]:
    return {name: one.init(params if name == "joint" else params[name]) for name, one in optimizers.items()}


# -------------------------------------------------------------------- settings into things


def load_starts(config: PretrainConfig, mesh: Mesh) -> dict[str, tuple[DebertaConfig, Params]]:
    """The models to go on from, by "generator" and "discriminator".

    Raises:
      FileNotFoundError: a folder that holds no model.
      ValueError: one that the objective does not train.
    """
    if config.objective == "mlm" and config.init_discriminator is not None:
        raise ValueError("--objective mlm trains no discriminator; give the model to go on from as --init-generator")
    folders = {"generator": config.init_generator, "discriminator": config.init_discriminator}
    return {name: load_pretrained(folder, mesh=mesh) for name, folder in folders.items() if folder is not None}


def resolve_models(
    config: PretrainConfig, tokenizer: Tokenizer, starts: Mapping[str, DebertaConfig] = MappingProxyType({})
) -> RTDConfig:
    """Generator and discriminator as asked for; a model to go on from (in `starts`) brings its own configuration.

    Raises:
      ValueError: no such model, a vocabulary smaller than the tokenizer's, or settings that exclude each other.
    """
    if config.model is None and "discriminator" in starts:
        models = RTDConfig.half_depth(starts["discriminator"])
    elif config.model is not None and config.model.endswith(".json"):
        models = RTDConfig.from_json(config.model)
    else:
        models = RTDConfig.half_depth(DebertaConfig.named(config.model or "deberta-v3-small"))
    if config.embedding_sharing is not None:
        models = dataclasses.replace(models, embedding_sharing=config.embedding_sharing)
    if config.vocab_size is not None:
        models = dataclasses.replace(
            models,
            generator=models.generator.replace(vocab_size=config.vocab_size),
            discriminator=models.discriminator.replace(vocab_size=config.vocab_size),
        )
    if config.objective == "mlm":
        single = starts.get("generator", models.discriminator)
        models = RTDConfig(discriminator=single, generator=single, embedding_sharing="nes")
    else:
        models = dataclasses.replace(models, **starts)
    if tokenizer.vocab_size > models.generator.vocab_size:
        raise ValueError(
            f"the tokenizer in {config.tokenizer} has {tokenizer.vocab_size} pieces, more than the model's vocab_size "
            f"{models.generator.vocab_size}; give --vocab-size {-(-tokenizer.vocab_size // 64) * 64} or more, or train "
            f"a smaller tokenizer"
        )
    if config.objective == "mlm" and not config.decoupled:
        raise ValueError("there is nothing to couple with --objective mlm; leave out --no-decoupled")
    if models.embedding_sharing == "es" and config.decoupled and config.objective == "rtd":
        raise ValueError(
            "shared embeddings (es) with decoupled optimisers would lose the discriminator's gradient, as the official "
            "code does; add --no-decoupled, or use --embedding-sharing gdes"
        )
    return models


def resolve_corpus(config: PretrainConfig, tokenizer: Tokenizer) -> Corpus:
    """The packed rows: those of --corpus, or made from the text once and kept in the run's folder."""
    if config.corpus is not None:
        if config.text:
            raise ValueError("give --text or --corpus, not both")
        corpus = open_corpus(config.corpus)
        corpus.check(tokenizer=tokenizer, sequence_length=config.sequence_length)
        if config.evaluate_every and not corpus.held_out.rows:
            raise ValueError(
                f"{config.corpus} has no held-out rows to evaluate on; prepare it with a held_out_fraction above 0, or "
                f"give --evaluate-every 0"
            )
        return corpus
    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes cannot all prepare the text; run `deberta-jax prepare` once and give "
            f"its folder with --corpus"
        )
    return prepare(
        config.text or (embedded_corpus(),),
        tokenizer,
        config.output / "corpus",
        sequence_length=config.sequence_length,
        boundary=config.boundary or ("blank_line" if config.text else "chapter"),
        held_out_fraction=config.held_out_fraction,
        seed=config.seed,
    )


def resolve_masking(config: PretrainConfig) -> MaskingConfig:
    ngram = config.max_ngram or (1 if config.objective == "rtd" else 3)
    return MaskingConfig(rate=config.mask_rate, max_ngram=ngram, replace=config.objective)


def check_sizes(config: PretrainConfig, *, devices: int) -> None:
    """Raises ValueError where a batch does not divide."""
    if config.batch_size % config.accumulation:
        raise ValueError(
            f"batch_size {config.batch_size} does not divide into {config.accumulation} chunks (accumulation)"
        )
    if config.batch_size // config.accumulation % devices:
        raise ValueError(
            f"a chunk of {config.batch_size // config.accumulation} rows (batch_size / accumulation) does not divide "
            f"over {devices} devices; give a multiple"
        )


def identity(config: PretrainConfig, models: RTDConfig, corpus: Corpus) -> dict[str, Any]:
    """What a checkpoint must share with the run that goes on from it."""
    settings = dataclasses.asdict(config)
    kept = (
        "objective decoupled rtd_lambda sequence_length batch_size accumulation steps mask_rate max_ngram "
        "optimizer discriminator_learning_rate dtype seed".split()
    )
    return {
        "model": models.to_json(),
        "corpus": corpus.fingerprint,
        **{name: settings[name] for name in kept},
        **{name: str(settings[name]) for name in ("init_generator", "init_discriminator") if settings[name]},
    }


def save_models(
    config: PretrainConfig, models: RTDConfig, params: Params, tokenizer: Tokenizer, reporter: Reporter
) -> None:
    """The finished models, each in a folder that `load_pretrained` and `deberta-jax finetune` read."""
    if config.objective == "mlm":
        finished: dict[str, tuple[DebertaConfig, Params]] = {"model": (models.generator, params["generator"])}
    else:
        discriminator = standalone_discriminator(params, models.embedding_sharing)
        finished = {
            "generator": (models.generator, params["generator"]),
            "discriminator": (models.discriminator, discriminator),
        }
    for name, (model_config, model_params) in finished.items():
        folder: Path = config.output / name
        save_pretrained(folder, model_config, model_params)
        tokenizer.save(folder)
        reporter.message(f"saved {folder}")
    plot_curves(config.output / "metrics.jsonl", config.output / "curves.png")
    reporter.message(f"saved {config.output / 'curves.png'}")
