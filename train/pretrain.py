"""Pre-training by replaced token detection or masked language modeling, from text files to a saved model.

    deberta-jax pretrain --output runs/first --tokenizer runs/tokenizer --text corpus/ --model deberta-v3-small

Read `run` top to bottom; the step is `build_step`. One step of decoupled replaced token detection, in the order of
the official `rtd_task.py`: the generator's loss and samples from one forward with dropout on, its update, then the
discriminator's loss with the embedding that was just updated, its update.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deberta_jax.checkpoint import save_pretrained
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
from deberta_jax.sharding import batch_devices, local_batch_indices, make_mesh, named_shardings, place_batch
from deberta_jax.tokenizers.tokenizer import Tokenizer

from .checkpoints.checkpointer import Checkpointer
from .configs import PretrainConfig
from .data.batches import TrainingBatches, held_out_batches
from .engine.accumulation import accumulate
from .engine.loop import Plan, Sums, train
from .engine.optimizer import apply_gradients, build_optimizer, schedule
from .engine.state import TrainState, training_key
from .hosts.join import Hosts, join
from .pretrain_setup import check_sizes, identity, load_starts, resolve_corpus, resolve_masking, resolve_models
from .reporting.curves import plot_curves
from .reporting.reporter import Log, open_log
from .tasks.metrics import discriminator_sums, generator_sums, pretraining_figures

Optimizers = dict[str, optax.GradientTransformation]
Metrics = dict[str, jax.Array]
BATCH_FIELDS = ("input_ids", "segment_ids", "masked_positions", "masked_labels")


def main(config: PretrainConfig) -> None:
    """Trains, and leaves the models in the run's folder. With several processes, see `distributed.join` for errors.

    Raises:
      StoppedError: the run was preempted, or out of time; all is saved.
      ValueError, OSError: what is wrong with the settings, the data or the machine.
    """
    with join(config) as hosts:
        run(config, hosts)


def run(config: PretrainConfig, hosts: Hosts) -> None:
    """Read from top to bottom; the same on every host."""
    # ---------------------------------------------------------------- what is trained, on what
    tokenizer = Tokenizer.from_folder(config.tokenizer)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    starts = load_starts(config, mesh)
    models_config = resolve_models(config, tokenizer, {name: start[0] for name, start in starts.items()})
    models = RTDModels.build(models_config, dtype=jnp.dtype(config.dtype), remat=config.remat)
    check_sizes(config, devices=batch_devices(mesh))
    corpus = resolve_corpus(config, tokenizer)
    masking = resolve_masking(config)

    # ---------------------------------------------------------------- state, sharded as the table says
    optimizers = build_optimizers(config)

    def create(weights: dict[str, Params]) -> TrainState:
        params = init_params(models_config, training_key(config.seed), **weights)
        if config.objective.name == "mlm":
            params = {"generator": params["generator"]}
        return TrainState.create(params, init_optimizers(optimizers, params), seed=config.seed)

    weights = {name: start[1] for name, start in starts.items()}
    origins = {name: f"going on from {', '.join(params)}" for name, params in weights.items()}
    placement = named_shardings(jax.eval_shape(create, weights), mesh)
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
        size = config.batch_size // config.accumulation
        batches = held_out_batches(
            corpus,
            global_batch=size,
            batch_indices=local_batch_indices(mesh, size),
            masking=masking,
            tokenizer=tokenizer,
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
        open_log(
            config.output,
            hosts=hosts,
            total_steps=config.steps,
            tokens_per_step=config.batch_size * config.data.sequence_length,
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
                profile=config.profile,
            ),
            step=step,
            batches=TrainingBatches(
                corpus,
                global_batch=config.batch_size,
                batch_indices=local_batch_indices(mesh, config.batch_size),
                seed=config.seed,
                masking=masking,
                tokenizer=tokenizer,
            ),
            place=place,
            figures=pretraining_figures,
            evaluate=evaluate,
            checkpointer=checkpointer,
            reporter=reporter,
            hosts=hosts,
            profile_folder=config.output / "profile",
        )
        save_models(config, models_config, state.params, tokenizer, hosts, reporter)


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
        return config.objective.rtd_lambda * out.loss_sum / weight, out

    def joint_loss(params: Params, chunk: Batch, key: jax.Array, masked: jax.Array, real: jax.Array):
        first, second = jax.random.split(key)
        generator_part, generated = generator_loss(params["generator"], chunk, first, masked)
        view = discriminator_view(params, sharing)
        judged = discriminator_pass(models.discriminator, view, chunk, generated.sampled, key=second, train=True)
        return generator_part + config.objective.rtd_lambda * judged.loss_sum / real, (generated, judged)

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

        if not config.objective.decoupled:
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
            if config.objective.name == "rtd":
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
        if config.objective.name == "rtd":
            view = discriminator_view(params, sharing)
            judged = discriminator_pass(models.discriminator, view, batch, generated.sampled, key=key, train=False)
            metrics |= discriminator_sums(judged)
        return metrics

    return measure


def build_optimizers(config: PretrainConfig) -> Optimizers:
    """One optimizer a model, or one for both when they are not decoupled."""
    generator = build_optimizer(config.optimizer, total_steps=config.steps)
    if config.objective.name == "mlm":
        return {"generator": generator}
    if not config.objective.decoupled:
        return {"joint": generator}
    rate = config.discriminator_learning_rate or config.optimizer.learning_rate
    discriminator = dataclasses.replace(config.optimizer, learning_rate=rate)
    return {"generator": generator, "discriminator": build_optimizer(discriminator, total_steps=config.steps)}


def init_optimizers(optimizers: Optimizers, params: Params) -> dict[str, Any]:
    return {name: one.init(params if name == "joint" else params[name]) for name, one in optimizers.items()}


# -------------------------------------------------------------------- what is left of it


def save_models(
    config: PretrainConfig, models: RTDConfig, params: Params, tokenizer: Tokenizer, hosts: Hosts, reporter: Log
) -> None:
    """The finished models, each in a folder that `load_pretrained` and `deberta-jax finetune` read. All hosts write."""
    if config.objective.name == "mlm":
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
        if hosts.first:
            tokenizer.save(folder)
        reporter.message(f"saved {folder}")
    if hosts.first:
        plot_curves(config.output / "metrics.jsonl", config.output / "curves.png")
        reporter.message(f"saved {config.output / 'curves.png'}")
