"""Fine-tuning on a task of any kind (see `tasks`), from files or public data sets to a saved model.

    deberta-jax finetune --output runs/sst2 --model runs/first/discriminator --train tfds:glue/sst2

Read `run` from top to bottom; the step is `build_step`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key, Num

from deberta_jax.config import DebertaConfig
from deberta_jax.lora import adapters_of, joined
from deberta_jax.sharding import batch_devices, local_batch_indices, make_mesh, named_shardings, place_batch
from deberta_jax.sift import adversarial_loss, initial_perturbation, perturbation
from deberta_jax.terminal import list_names, say
from deberta_jax.warm_start import evaluate_by_operation, initial_params, left_out

from .checkpoints.checkpointer import Checkpointer
from .configs import FinetuneConfig, SweepConfig
from .engine.accumulation import accumulate, check_batch_size
from .engine.kept_layers import KeptLayers, training_step
from .engine.layerwise import layerwise_learning_rates, stop_frozen_gradients
from .engine.loop import Figures, StepMetrics, Sums, TrainingRun, train
from .engine.optimizer import apply_gradients, build_optimizer, schedule
from .engine.state import TrainState, jit_step, place_state, training_key
from .finetune_evaluation import (
    Predictor,
    Validation,
    apply_model,
    check_predictions_size,
    draw_predictions,
    write_results,
)
from .finetune_setup import (
    check_settings,
    count_steps,
    heads_message,
    identity,
    input_digests,
    model_head,
    open_base,
    reorder_classifier,
    task_config,
)
from .hosts.join import Hosts, join_run
from .model_folders import check_not_overwritten
from .new_tokens import new_tokens_message
from .reporting.reporter import open_reporter
from .reporting.services import check_services
from .run_settings import describe_run, record_settings
from .sweep import Results, RunOutcome, grid_points, run_all
from .tasks.base import Encoded, Objective
from .tasks.batches import FinetuneBatches
from .tasks.loading import load_task
from .tuning import Params, choose_tuning


def main(config: FinetuneConfig) -> Results:
    """Trains and writes model, predictions and results.json.

    `hosts.join.join_run` documents the errors of several processes.

    Returns:
      The metrics of each labeled split; of several runs those of the best one.

    Raises:
      StoppedError: if the run was preempted or ran out of time. Everything is saved.
      UserError, OSError: if something is wrong with the settings, the data or the machine.
    """
    check_services(config.log)
    points = grid_points(config)
    for point in points:
        for single in point.runs:
            check_not_overwritten([config.model], single.output, ("model", "best", "adapter"))
    with join_run(config) as hosts:
        if not config.sweep.several_runs:
            return run(config, hosts).results
        devices = batch_devices(make_mesh(**dataclasses.asdict(config.mesh)))
        for point in points:  # all of them before the first one trains for hours
            check_batch_size(point.runs[0].batch_size, accumulation=config.accumulation, devices=devices)
        if hosts.first:
            record_settings(config, log=say)
        return run_all(config, lambda single: run(single, hosts), report=hosts.first)


def run(config: FinetuneConfig, hosts: Hosts) -> RunOutcome:
    """Trains one run, writes its model, predictions and results.json, and returns its metrics.

    All hosts call it. It raises the errors of `main`.
    """
    # ---------------------------------------------------------------- the task, and the model for it
    hosts.phases.enter("weights")
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    check_batch_size(config.batch_size, accumulation=config.accumulation, devices=batch_devices(mesh))
    pretrained, weights, tokenizer, added = open_base(config, mesh)
    hosts.phases.enter("data")
    task = load_task(config, tokenizer, model_head(config, pretrained, weights))
    model_config = task_config(config, pretrained, task)
    check_settings(config, model_config, task, tokenizer)
    model = task.objective.model(model_config, dtype=jnp.dtype(config.dtype), remat=config.remat)

    # ---------------------------------------------------------------- how long to train, on what
    examples = task.splits["train"]
    epoch = math.ceil(len(examples.lengths) / config.batch_size)  # in steps
    steps = count_steps(config, epoch)

    # ---------------------------------------------------------------- state, sharded by the table
    hosts.phases.enter("weights")
    optimizer = build_layerwise_optimizer(config, total_steps=steps, layers=model_config.num_hidden_layers)
    # Real token ids, because their number of axes depends on the kind: [B, S], or [B, choices, S].
    first = examples.batch(np.zeros(1, np.int64), length=int(examples.lengths[0]))
    tuning = choose_tuning(config, model, pretrained, weights, first["input_ids"])
    create = functools.partial(
        build_state, model, optimizer, first["input_ids"], seed=config.seed, adapted=tuning.adapted
    )
    initial = None if config.random_weights else reorder_classifier(weights, pretrained, task)
    shapes = jax.eval_shape(create, initial)
    whole, placement = jax.eval_shape(tuning.whole, shapes.params["model"]), named_shardings(shapes, mesh)
    unused = left_out(initial, whole) if initial else []
    run_identity = identity(config, model_config, tokenizer, task, input_digests(config, task, weights))
    head = heads_message(None if config.random_weights else weights, whole, pretrained, task)
    state = place_state(
        functools.partial(start_params, model, first["input_ids"], seed=config.seed, adapted=tuning.adapted),
        functools.partial(create_state, optimizer, seed=config.seed),
        initial,
        placement,
    )
    del weights, initial  # their memory is needed

    # ---------------------------------------------------------------- one step, compiled once per padded length
    def jitted_step(kept_layers: int) -> Any:
        step = build_step(
            tuning.model.clone(kept_layers=kept_layers), task.objective, optimizer, config, total_steps=steps
        )
        return jit_step(step, placement)

    predictor = Predictor(config, task, model, mesh, check_stop=hosts.check_stop)
    validation = Validation(predictor, model_config, tuning)

    # ---------------------------------------------------------------- train, from the newest checkpoint if there is one
    with (
        jax.set_mesh(mesh),  # attention reads it
        Checkpointer(
            config.output / "checkpoints",
            keep=config.keep,
            identity=run_identity,
            stop_requested=hosts.stop_requested,
        ) as checkpointer,
        open_reporter(
            config.output,
            hosts=hosts,
            total_steps=steps,
            tokens_per_step=max(1, round(config.batch_size * tokens_per_example(examples))),
            every=config.log_every,
            run=describe_run(config),
        ) as reporter,
    ):
        if hosts.first:
            record_settings(dataclasses.replace(config, sweep=SweepConfig()), log=reporter.message)
        for name, split in task.splits.items():
            reporter.message(", ".join([f"{name}: {len(split.lengths)} examples", *split.notes]))
        if added:
            reporter.message(new_tokens_message(tokenizer, added, model_config.vocab_size))
        if hosts.first:
            check_predictions_size(task, config.output, reporter)
        reporter.message(f"{head}{tuning.description(shapes.params['model'])}")
        if unused:
            reporter.message(f"parts of the model that this task does not read: {list_names(unused)}")
        plan = TrainingRun(
            steps=steps,
            log_every=config.log_every,
            evaluate_every=(config.selection.evaluate_every or epoch) if "validation" in task.splits else 0,
            save_every=config.save_every,
            profile=config.profile,
            profile_folder=config.output / "profile",
            step=functools.partial(
                training_step(
                    jitted_step,
                    kept_of_batch(config, model_config, mesh),
                    kept_layers=config.kept_layers,
                    mesh=mesh,
                    log=reporter.message,
                ),
                frozen=tuning.frozen,
            ),
            batches=training_batches(config, examples, mesh),
            place_batch=functools.partial(place_batch, mesh=mesh),
            summarize=training_figures,
            evaluate=validation.evaluate,
            best=validation.best,
            checkpointer=checkpointer,
            reporter=reporter,
            hosts=hosts,
        )
        state = train(state, plan)
        with hosts.finishing(steps, log=reporter.message):
            trained = validation.chosen_params(state, reporter)
            params = tuning.whole(trained)
            written = write_results(predictor, params, validation.known_predictions(state), hosts, reporter)
        for folder in tuning.save_result(config.output, model_config, trained, tokenizer.files()):
            reporter.message(f"saved {folder}")
        if hosts.first:  # last, because everything else must be on disk if a picture fails or hangs
            draw_predictions(predictor, written.predictions, reporter)
    return RunOutcome(written.results, task.main_metric)


def kept_of_batch(config: FinetuneConfig, model: DebertaConfig, mesh: Mesh) -> Callable[[Sequence[int]], KeptLayers]:
    """Returns what kept layers take, as a function of the shape of a batch's token ids."""
    return functools.partial(
        KeptLayers.of_batch,
        # SiFT has a second forward pass, whose probabilities are kept beside those of the first.
        [model] * (2 if config.sift.weight else 1),
        mesh=mesh,
        accumulation=config.accumulation,
        dtype=jnp.dtype(config.dtype),
        together=True,
    )


def training_batches(config: FinetuneConfig, examples: Encoded, mesh: Mesh) -> FinetuneBatches:
    """Returns this host's part of the endless stream of training batches."""
    return FinetuneBatches(
        examples,
        batch_size=config.batch_size,
        max_length=config.data.max_length,
        seed=config.seed,
        group=config.data.group_by_length,
        batch_indices=local_batch_indices(mesh, config.batch_size),
    )


def build_layerwise_optimizer(config: FinetuneConfig, *, total_steps: int, layers: int) -> optax.GradientTransformation:
    """Returns the optimizer of all parameters, with layer-wise learning rates and frozen layers."""
    return layerwise_learning_rates(
        build_optimizer(config.optimizer, total_steps=total_steps),
        decay=config.regularization.layer_decay,
        frozen=config.regularization.freeze_layers,
        layers=layers,
    )


def build_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    input_ids: Int[Array | np.ndarray, "B ..."],
    weights: Params | None = None,
    *,
    seed: int,
    adapted: nn.Module | None = None,
) -> TrainState:
    """Returns the state before the first step; traceable by `jax.jit` and `jax.eval_shape`.

    Args:
      model: the model of the task.
      optimizer: the optimizer of the parameters that are trained.
      input_ids: any token ids of the shape that the model takes.
      weights: parameters to start from; missing ones are random (default: all are).
      seed: seed of random parameters and of training.
      adapted: the model with adapters (see `deberta_jax.lora`), of which only these and the head are in the state
        (default: all parameters of `model` are).
    """
    return create_state(optimizer, start_params(model, input_ids, weights, seed=seed, adapted=adapted), seed=seed)


def start_params(
    model: nn.Module,
    input_ids: Int[Array | np.ndarray, "B ..."],
    weights: Params | None = None,
    *,
    seed: int,
    adapted: nn.Module | None = None,
) -> Params:
    """Returns the parameters of `build_state`, as in its state, from the same arguments."""
    key = training_key(seed)
    params = initial_params(model, key, input_ids, weights)
    if adapted is not None:
        rngs = {"params": key, "dropout": key}
        params |= evaluate_by_operation(lambda rngs: adapters_of(adapted.init(rngs, input_ids)["params"]), rngs)
    return {"model": params}


def create_state(optimizer: optax.GradientTransformation, params: Params, *, seed: int) -> TrainState:
    """Returns the state before the first step with parameters from `start_params`."""
    return TrainState.create(params, {"model": optimizer.init(params["model"])}, seed=seed)


def build_step(
    model: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: FinetuneConfig,
    *,
    total_steps: int,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Returns the update of one batch as a pure function of state and batch (see `tasks.base.Encoded.batch`).

    A third argument, `frozen`, has parameters of the model that are not trained (default: all are). The metrics are
    sums (see `training_figures`), the gradient norm and the learning rate.

    Args:
      model: the model of the task, or the one with adapters.
      objective: its loss.
      optimizer: the optimizer of the parameters that are trained.
      config: the settings of the run.
      total_steps: the last step, which ends the learning-rate schedule.
    """
    multiplier = schedule(config.optimizer, total_steps=total_steps)

    def loss(
        params: Params, chunk: dict[str, jax.Array], key: Key[Array, ""], weight: Num[Array, ""], *, frozen: Params
    ):
        still, layers = config.regularization.freeze_layers, model.config.num_hidden_layers
        params = stop_frozen_gradients(params, frozen=still, layers=layers)

        def forward(params: Params, key: Key[Array, ""], **perturbed: Any) -> Any:
            every = joined(frozen, params)
            return apply_model(model, every, chunk, variables=perturbed, train=True, rngs={"dropout": key})

        out = forward(params, key)
        total, _ = objective.loss(out, chunk)
        if config.sift.weight == 0:
            return total / weight, {"loss_sum": total}
        # Keys of their own, so that dropout of the plain forward pass is the same with and without SiFT.
        noise_key, sift_key = jax.random.split(jax.random.fold_in(key, 1))
        clean, counts = objective.answers(out, chunk)
        tokens = (math.prod(chunk["input_ids"].shape[:-1]), chunk["input_ids"].shape[-1])
        adversarial, _ = adversarial_loss(
            lambda params, delta, key: objective.answers(forward(params, key, **perturbation(delta)), chunk)[0],
            params,
            clean,
            initial_perturbation(noise_key, (*tokens, model.config.normalized_embedding_size), config.sift),
            config.sift,
            key=sift_key,
            weight=counts,
        )
        sums = {"loss_sum": total, "adversarial_sum": adversarial}
        return (total + config.sift.weight * adversarial) / weight, sums

    def step(
        state: TrainState, batch: dict[str, jax.Array], frozen: Params | None = None
    ) -> tuple[TrainState, StepMetrics]:
        count = objective.count(batch)
        params, opt_state = state.params["model"], state.opt_state["model"]
        loss_of_chunk = functools.partial(loss, frozen=frozen or {})
        grads, sums = accumulate(loss_of_chunk, params, batch, state.step_key(), config.accumulation, count)
        params, opt_state, norm = apply_gradients(optimizer, grads, opt_state, params)
        metrics = {
            **sums,
            "count": count,
            "grad_norm": norm,
            "learning_rate": config.optimizer.learning_rate * multiplier(state.step),
        }
        return dataclasses.replace(
            state, step=state.step + 1, params={"model": params}, opt_state={"model": opt_state}
        ), metrics

    return step


def training_figures(sums: Sums) -> Figures:
    """Returns the means since the last line of the log. SiFT's loss is not weighted, and not part of `loss`."""
    adversarial = {"adversarial_loss": sums["adversarial_sum"] / sums["count"]} if "adversarial_sum" in sums else {}
    return {
        "loss": sums["loss_sum"] / sums["count"],
        **adversarial,
        "grad_norm": sums["grad_norm"] / sums["steps"],
        "learning_rate": sums["learning_rate"] / sums["steps"],
    }


def tokens_per_example(encoded: Encoded) -> float:
    """Returns the mean number of real tokens of the first 256 examples, over all rows of an example."""
    first = np.arange(min(256, len(encoded.lengths)))
    batch = encoded.batch(first, length=int(encoded.lengths[first].max()))
    return float(batch["attention_mask"].sum()) / len(first)
