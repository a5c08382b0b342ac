"""Pre-training by replaced token detection or masked language modeling, from text files to a saved model.

    deberta-jax pretrain --output runs/first --tokenizer runs/tokenizer --text corpus/ --model deberta-v3-small

Read `run` from top to bottom; the step is `build_step`. A step of decoupled replaced token detection does, in the order
of the official `rtd_task.py`: the generator's loss and samples from one forward pass with dropout, its update, then the
discriminator's loss with the embeddings that were just updated, and its update.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Num

from deberta_jax.checkpoint import save_pretrained
from deberta_jax.config import DebertaConfig
from deberta_jax.rtd import (
    EmbeddingSharing,
    Params,
    PretrainingBatch,
    RTDConfig,
    RTDModels,
    SampledBatch,
    Sampler,
    discriminator_pass,
    discriminator_view,
    generator_pass,
    standalone_discriminator,
)
from deberta_jax.sharding import batch_devices, compiler_options, make_mesh, named_shardings
from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.vocabulary_head import sample_replacements

from .checkpoints.checkpointer import Checkpointer
from .configs import PretrainConfig
from .data.prepare import boundary_hint
from .data.text_files import describe_ignored
from .engine.accumulation import accumulate, check_batch_size
from .engine.kept_layers import KeptLayers, training_step
from .engine.loop import Figures, StepMetrics, Sums, TrainingRun, train
from .engine.optimizer import apply_gradients, schedule
from .engine.state import TrainState, jit_step, place_state, training_key
from .hosts.join import Hosts, join_run
from .model_folders import check_not_overwritten, tokenizer_folder
from .pretrain_setup import (
    PretrainingRows,
    add_new_tokens,
    check_tables,
    identity,
    input_digests,
    load_initial_models,
    resolve_masking,
    resolve_models,
    resolve_rows,
)
from .pretrain_state import Optimizers, build_optimizers, build_state, create_state, start_params
from .reporting.curves import plot_curves
from .reporting.pictures import draw_or_report
from .reporting.pretraining_metrics import add_sums, discriminator_sums, generator_sums, pretraining_figures
from .reporting.reporter import Reporter, open_reporter
from .reporting.services import check_services
from .run_settings import describe_run, record_settings


def main(config: PretrainConfig) -> None:
    """Trains and writes the models into the run's folder.

    `hosts.join.join_run` documents the errors of several processes.

    Raises:
      StoppedError: if the run was preempted or ran out of time. Everything is saved.
      UserError, OSError: if something is wrong with the settings, the data or the machine.
    """
    check_services(config.log)
    initial = [config.models.init_generator, config.models.init_discriminator]
    check_not_overwritten(initial, config.output, ("model", "generator", "discriminator"))
    with join_run(config) as hosts:
        run(config, hosts)


def run(config: PretrainConfig, hosts: Hosts) -> None:
    """Trains one run and writes its models. All hosts call it. It raises the errors of `main`."""
    # ---------------------------------------------------------------- what is trained, on what
    hosts.phases.enter("weights")
    tokenizer = Tokenizer.from_folder(tokenizer_folder(Path(config.tokenizer)))
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    tokenizer, initial = add_new_tokens(config, tokenizer, load_initial_models(config, mesh))
    models_config = resolve_models(config, {name: model.config for name, model in initial.items()})
    check_tables(config, tokenizer, models_config)
    check_batch_size(config.batch_size, accumulation=config.accumulation, devices=batch_devices(mesh))
    models = RTDModels.build(models_config, dtype=jnp.dtype(config.dtype), remat=config.remat)
    hosts.phases.enter("data")
    rows = PretrainingRows(resolve_rows(config, tokenizer), resolve_masking(config), tokenizer, mesh)

    # ---------------------------------------------------------------- state, sharded by the table
    hosts.phases.enter("weights")
    optimizers = build_optimizers(config)
    create = functools.partial(build_state, config, models_config, optimizers)
    digests = input_digests(initial)
    weights = {name: model.params for name, model in initial.items()}
    origins = {name: f"pretrained {', '.join(params)}" for name, params in weights.items()}
    placement = named_shardings(jax.eval_shape(create, weights), mesh)
    state = place_state(
        functools.partial(start_params, config, models_config),
        functools.partial(create_state, optimizers, seed=config.seed),
        weights,
        placement,
    )
    del initial, weights  # their memory is needed

    # ---------------------------------------------------------------- one step, compiled once, its state donated
    sharing = models_config.embedding_sharing

    def jitted_step(kept_layers: int) -> Any:
        step = build_step(models.keeping(kept_layers), optimizers, config, sharing=sharing)
        return jit_step(step, placement)

    kept = functools.partial(
        KeptLayers.of_batch,
        [getattr(models_config, name) for name in state.params],  # for "mlm" the generator alone
        mesh=mesh,
        accumulation=config.accumulation,
        dtype=jnp.dtype(config.dtype),
        together=not config.objective.decoupled,
    )
    measure = jax.jit(build_evaluation(models, config, sharing=sharing), compiler_options=compiler_options(mesh))

    # ---------------------------------------------------------------- train, from the newest checkpoint if there is one
    with (
        jax.set_mesh(mesh),  # attention reads it
        Checkpointer(
            config.output / "checkpoints",
            keep=config.keep,
            identity=identity(config, models_config, rows.curriculum, digests),
            stop_requested=hosts.stop_requested,
        ) as checkpointer,
        open_reporter(
            config.output,
            hosts=hosts,
            total_steps=config.steps,
            tokens_per_step=functools.partial(rows.curriculum.tokens_until, batch_size=config.batch_size),
            every=config.log_every,
            run=describe_run(config),
        ) as reporter,
        contextlib.closing(rows.training_batches(config)) as batches,
    ):
        if hosts.first:
            record_settings(config, log=reporter.message)
        for name, params in state.params.items():
            size = sum(leaf.size for leaf in jax.tree.leaves(params))
            reporter.message(f"{name}: {size / 1e6:.1f} M parameters, {origins.get(name, 'random weights')}")
        if config.objective.name == "rtd":
            reporter.message(f"embedding sharing: {sharing}")
        if ignored := describe_ignored(config.data.text):
            reporter.message(ignored)
        if config.data.text and config.data.boundary is None and (hint := boundary_hint(rows.curriculum.corpora[0])):
            reporter.message(hint)
        for line in rows.curriculum.describe(config.steps, config.batch_size):
            reporter.message(line)
        plan = TrainingRun(
            steps=config.steps,
            log_every=config.log_every,
            evaluate_first=config.evaluate_first,
            evaluate_every=config.evaluate_every,
            save_every=config.save_every,
            profile=config.profile,
            profile_folder=config.output / "profile",
            step=training_step(jitted_step, kept, kept_layers=config.kept_layers, mesh=mesh, log=reporter.message),
            batches=batches,
            place_batch=rows.place,
            summarize=pretraining_figures,
            position=functools.partial(rows.curriculum.epoch_figures, batch_size=config.batch_size),
            evaluate=functools.partial(evaluate, config, rows, measure, reporter, check_stop=hosts.check_stop),
            checkpointer=checkpointer,
            reporter=reporter,
            hosts=hosts,
        )
        state = train(state, plan)
        save_models(config, models_config, state.params, tokenizer, hosts, reporter)


# -------------------------------------------------------------------- the step


def build_step(
    models: RTDModels,
    optimizers: Optimizers,
    config: PretrainConfig,
    *,
    sharing: EmbeddingSharing,
    sample: Sampler = sample_replacements,
) -> Callable[[TrainState, PretrainingBatch], tuple[TrainState, StepMetrics]]:
    """Returns the update of one batch as a pure function of state and batch.

    Its metrics are sums over the tokens of the batch (see `pretraining_figures`), gradient norms and the learning rate.

    Args:
      models: generator and discriminator.
      optimizers: from `build_optimizers`.
      config: the settings of the run.
      sharing: how generator and discriminator share their embeddings.
      sample: draws the generator's replacements (default: from its softmax).
    """
    multiplier = schedule(config.optimizer, total_steps=config.steps)

    def generator_loss(params: Params, chunk: PretrainingBatch, key: Key[Array, ""], weight: Num[Array, ""]):
        out = generator_pass(models.generator, params, chunk, key=key, sample=sample, train=True)
        return out.loss_sum / weight, out

    def discriminator_loss(
        discriminator: Params, chunk: SampledBatch, key: Key[Array, ""], weight: Num[Array, ""], generator: Params
    ):
        view = discriminator_view({"generator": generator, "discriminator": discriminator}, sharing)
        out = discriminator_pass(models.discriminator, view, chunk, chunk["sampled"], key=key, train=True)
        return config.objective.rtd_lambda * out.loss_sum / weight, out

    def joint_loss(
        params: Params, chunk: PretrainingBatch, key: Key[Array, ""], masked: Num[Array, ""], real: Num[Array, ""]
    ):
        # Both models in one loss, so that shared embeddings receive both gradients in one update.
        first, second = jax.random.split(key)
        generator_part, generated = generator_loss(params["generator"], chunk, first, masked)
        view = discriminator_view(params, sharing)
        judged = discriminator_pass(models.discriminator, view, chunk, generated.sampled, key=second, train=True)
        return generator_part + config.objective.rtd_lambda * judged.loss_sum / real, (generated, judged)

    def step(state: TrainState, batch: PretrainingBatch) -> tuple[TrainState, StepMetrics]:
        keys = jax.random.split(state.step_key())
        # Weights of the whole batch, so that the means do not depend on accumulation or on the number of devices.
        # At least 1, because a batch of nothing but padding must give 0 rather than NaN.
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
            # 1. The generator: masked LM loss and samples from one forward pass, then its update.
            grads, generated = accumulate(
                generator_loss, params["generator"], batch, keys[0], config.accumulation, masked
            )
            params["generator"] = update("generator", grads, params["generator"])
            metrics |= generator_sums(generated)
            if config.objective.name == "rtd":
                # 2. The discriminator, which sees the embeddings that the generator's update has already moved.
                grads, judged = accumulate(
                    functools.partial(discriminator_loss, generator=params["generator"]),
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
) -> Callable[[Params, PretrainingBatch, jax.Array], StepMetrics]:
    """Returns a function of parameters, held-out batch and key that computes sums without dropout.

    The key draws the generator's replacements.
    """

    def measure(params: Params, batch: PretrainingBatch, key: Key[Array, ""]) -> StepMetrics:
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


def evaluate(
    config: PretrainConfig,
    rows: PretrainingRows,
    measure: Callable[[Params, PretrainingBatch, jax.Array], StepMetrics],
    reporter: Reporter,
    state: TrainState,
    *,
    check_stop: Callable[[], None],
) -> Figures:
    """Returns the figures of the held-out rows of the current phase, with the same masks and replacements every time.

    Those of each corpus go to the reporter, if there are several. `measure` is the jitted function of
    `build_evaluation`. `check_stop` is called after each batch and may raise to end the evaluation.
    """
    phase = rows.curriculum.phase_of(int(state.step))
    sums: dict[str, Sums] = {}
    for name, corpus in zip(phase.names, phase.corpora, strict=True):
        sums[name] = {}
        # A batch is as large as one accumulation step, which is known to fit into memory.
        for number, batch in enumerate(rows.held_out_batches(corpus, config.batch_size // config.accumulation)):
            key = jax.random.fold_in(training_key(config.seed), number)
            add_sums(sums[name], jax.device_get(measure(state.params, rows.place(batch), key)))
            check_stop()
    total: Sums = {}
    for name, part in sums.items():
        add_sums(total, part)
        if len(sums) > 1:
            reporter.evaluation(int(state.step), pretraining_figures(part), name)
    return pretraining_figures(total)


# -------------------------------------------------------------------- results


def save_models(
    config: PretrainConfig, models: RTDConfig, params: Params, tokenizer: Tokenizer, hosts: Hosts, reporter: Reporter
) -> None:
    """Writes the finished models, each to a folder that `load_pretrained` and `deberta-jax finetune` read.

    All hosts take part in writing; the first one adds the curves.
    """
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
        save_pretrained(folder, model_config, model_params, tokenizer=tokenizer.files())
        reporter.message(f"saved {folder}")
    if hosts.first:  # last, because everything else must be on disk if a picture fails or hangs
        reporter.flush()
        draw_or_report(
            config.output / "curves.png",
            lambda path: plot_curves(config.output / "metrics.jsonl", path),
            log=reporter.message,
        )
