"""Fine-tuning on a task of any kind that `tasks` knows.

    deberta-jax finetune --output runs/sst2 --model runs/first/discriminator --train tfds:glue/sst2

Read `run` top to bottom; the step is `build_step`.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from deberta_jax.checkpoint import load_pretrained, save_pretrained, start_from
from deberta_jax.errors import UserError
from deberta_jax.sharding import batch_devices, local_batch_indices, make_mesh, named_shardings, place_batch
from deberta_jax.sift import adversarial_loss, initial_perturbation, perturbation
from deberta_jax.tokenizers.tokenizer import Tokenizer

from .checkpoints.checkpointer import Checkpointer
from .configs import FinetuneConfig
from .engine.accumulation import accumulate
from .engine.best import Best
from .engine.layerwise import by_depth, hold
from .engine.loop import Plan, Sums, train
from .engine.optimizer import apply_gradients, build_optimizer, schedule
from .engine.state import TrainState, training_key
from .finetune_setup import check_settings, check_sizes, heads_message, identity, task_config
from .hosts.join import Hosts, join
from .reporting.jsonl import write_records
from .reporting.reporter import open_log
from .sweep import Results, run_all
from .tasks.base import Encoded, Objective, Predictions
from .tasks.batches import FinetuneBatches, evaluation_batches
from .tasks.classification.task import ClassificationTask
from .tasks.loading import load_task

Params = dict[str, Any]
Metrics = dict[str, jax.Array]


def main(config: FinetuneConfig) -> Results:
    """Returns the metrics of each held-out split, which results.json holds as well; of several runs, the best one's.

    With several processes, see `distributed.join` for errors.

    Raises:
      StoppedError: the run was preempted, or out of time; all is saved.
      ValueError, OSError: what is wrong with the settings, the data or the machine.
    """
    with join(config) as hosts:
        if not config.sweep.several_runs:
            return run(config, hosts)[0]
        return run_all(config, lambda one: run(one, hosts), report=hosts.first)


def run(config: FinetuneConfig, hosts: Hosts) -> tuple[Results, str]:  # noqa: PLR0915 - reads as prose
    """The metrics of each held-out split, and the name of the one that counts. The same on every host."""
    # ---------------------------------------------------------------- the task, the model it is done with
    tokenizer = Tokenizer.from_folder(config.tokenizer or config.model)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    check_sizes(config, devices=batch_devices(mesh))
    task = load_task(config, tokenizer)
    pretrained, weights = load_pretrained(config.model, mesh=mesh)
    model_config = task_config(config, pretrained, task)
    check_settings(config, model_config, task)
    if tokenizer.vocab_size > model_config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, more than the model's vocab_size "
            f"{model_config.vocab_size}; give the tokenizer that the model was trained with"
        )
    model = task.objective.model(model_config, dtype=jnp.dtype(config.dtype), remat=config.remat)

    # ---------------------------------------------------------------- data
    train_split = task.splits["train"]
    rows = local_batch_indices(mesh, config.batch_size)
    epoch = math.ceil(len(train_split.lengths) / config.batch_size)
    steps = config.steps or max(1, math.ceil(epoch * config.epochs))
    batches = FinetuneBatches(
        train_split,
        batch_size=config.batch_size,
        max_length=config.data.max_length,
        seed=config.seed,
        group=config.data.group_by_length,
        batch_indices=rows,
    )

    # ---------------------------------------------------------------- state
    optimizer = by_depth(
        build_optimizer(config.optimizer, total_steps=steps),
        decay=config.regularization.layer_decay,
        frozen=config.regularization.freeze_layers,
        layers=model_config.num_hidden_layers,
    )

    def create(weights: Params) -> TrainState:
        key = training_key(config.seed)
        one = train_split.batch(np.zeros(1, np.int64), length=int(train_split.lengths[0]))
        fresh: Any = model.init(key, one["input_ids"])["params"]
        params = fresh if config.random_weights else start_from(weights, fresh)
        return TrainState.create({"model": params}, {"model": optimizer.init(params)}, seed=config.seed)

    shapes = jax.eval_shape(create, weights)
    placement = named_shardings(shapes, mesh)
    head = (
        "all weights fresh"
        if config.random_weights
        else heads_message(weights, shapes.params["model"], pretrained, task)
    )
    with jax.set_mesh(mesh):  # attention reads it, here and in every step
        state = jax.jit(create, out_shardings=placement)(weights)
    del weights

    # ---------------------------------------------------------------- step and evaluation
    step = jax.jit(
        build_step(model, task.objective, optimizer, config, total_steps=steps),
        donate_argnums=0,
        out_shardings=(placement, None),
    )

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))  # whole on every host
    def predict(params: Params, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return task.objective.predict(apply(model, params, batch), batch)

    def answer(params: Params, split: str) -> Predictions:
        """What the model makes of every example, in their order."""
        encoded = task.splits[split]
        predictions: list[dict[str, np.ndarray]] = [{}] * len(encoded.lengths)
        for numbers, batch in evaluation_batches(
            encoded, batch_size=config.batch_size, max_length=config.data.max_length, batch_indices=rows
        ):
            arrays = jax.device_get(predict(params, place_batch(batch, mesh)))
            for place, number in enumerate(numbers):
                predictions[number] = {name: array[place] for name, array in arrays.items()}
        return predictions

    best = Best(task.main_metric, config.selection.patience)
    newest: dict[
        int, Predictions
    ] = {}  # of the validation split, by step: after the last step the same answers are results

    def evaluate(state: TrainState) -> dict[str, float]:
        newest.clear()
        newest[int(state.step)] = answer(state.params["model"], "validation")
        figures = task.score("validation", newest[int(state.step)])
        if best.record(int(state.step), figures) and config.selection.select == "best":
            save_pretrained(config.output / "best", model_config, state.params["model"])
        return figures

    # ---------------------------------------------------------------- train, from the newest checkpoint if there is one
    with (
        jax.set_mesh(mesh),
        Checkpointer(
            config.output / "checkpoints", keep=config.keep, identity=identity(config, model_config, tokenizer, task)
        ) as checkpointer,
        open_log(
            config.output,
            hosts=hosts,
            total_steps=steps,
            tokens_per_step=max(1, round(config.batch_size * tokens_of_an_example(train_split))),
            every=config.log_every,
        ) as reporter,
    ):
        for name, split in task.splits.items():
            reporter.message(", ".join([f"{name}: {len(split.lengths)} examples", *split.notes]))
        reporter.message(head)
        state = train(
            state,
            plan=Plan(
                steps=steps,
                log_every=config.log_every,
                evaluate_every=(config.selection.evaluate_every or epoch) if "validation" in task.splits else 0,
                save_every=config.save_every,
                profile=config.profile,
            ),
            step=step,
            batches=batches,
            place=lambda batch: place_batch(batch, mesh),
            figures=training_figures,
            evaluate=evaluate,
            checkpointer=checkpointer,
            reporter=reporter,
            hosts=hosts,
            profile_folder=config.output / "profile",
            memory=best,
        )

        # ------------------------------------------------------------ results and model
        params = state.params["model"]
        if config.selection.select == "best" and best.step is None:
            reporter.message(f"no evaluation gave a number for {best.metric}: the last model is the result")
        elif config.selection.select == "best":
            reporter.message(f"the best evaluation was that of step {best.step}: {best.metric} {best.value:.4f}")
            params = load_pretrained(config.output / "best", mesh=mesh)[1]
        results: dict[str, dict[str, float]] = {}
        for name, split in task.splits.items():
            if name == "train":
                continue
            known = newest.get(int(state.step)) if name == "validation" and config.selection.select == "last" else None
            predictions = answer(params, name) if known is None else known
            if split.labeled:
                results[name] = task.score(name, predictions)
                figures = "  ".join(f"{metric} {value:.4f}" for metric, value in results[name].items())
                reporter.message(f"{name}: {figures}")
            if hosts.first:
                write_records(config.output / "predictions" / f"{name}.jsonl", task.records(name, predictions))
                if split.labeled and isinstance(task, ClassificationTask):
                    task.plot(config.output / "predictions" / f"{name}.png", name, predictions)
        if hosts.first:
            (config.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        save_pretrained(config.output / "model", model_config, params)
        if hosts.first:
            tokenizer.save(config.output / "model")
        reporter.message(f"saved {config.output / 'model'}")
    return results, task.main_metric


def apply(model: Any, params: Params, batch: dict[str, jax.Array], **options: Any) -> Any:
    """The model's output for a batch; options go to `model.apply`."""
    variables = {"params": params, **options.pop("variables", {})}
    return model.apply(
        variables, batch["input_ids"], batch["attention_mask"], token_type_ids=batch["token_type_ids"], **options
    )


def build_step(
    model: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: FinetuneConfig,
    *,
    total_steps: int,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The update of one batch (see `tasks.base.Encoded.batch`) by a model of `deberta_jax.models`."""
    multiplier = schedule(config.optimizer, total_steps=total_steps)

    def loss(params: Params, chunk: dict[str, jax.Array], key: jax.Array, weight: jax.Array):
        params = hold(params, frozen=config.regularization.freeze_layers, layers=model.config.num_hidden_layers)

        def forward(params: Params, key: jax.Array, **perturbed: Any) -> Any:
            return apply(model, params, chunk, variables=perturbed, train=True, rngs={"dropout": key})

        out = forward(params, key)
        total, _ = objective.loss(out, chunk)
        if config.sift.weight == 0:
            return total / weight, {"loss_sum": total}
        noise_key, sift_key = jax.random.split(jax.random.fold_in(key, 1))  # the plain forward drops as without SiFT
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

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        count = objective.count(batch)
        params, opt_state = state.params["model"], state.opt_state["model"]
        grads, sums = accumulate(loss, params, batch, state.step_key(), config.accumulation, count)
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


def training_figures(sums: Sums) -> dict[str, float]:
    """Means since the last line of the log. The loss is the task's; SiFT's stands beside it, unweighted."""
    adversarial = {"adversarial_loss": sums["adversarial_sum"] / sums["count"]} if "adversarial_sum" in sums else {}
    return {
        "loss": sums["loss_sum"] / sums["count"],
        **adversarial,
        "grad_norm": sums["grad_norm"] / sums["steps"],
        "learning_rate": sums["learning_rate"] / sums["steps"],
    }


def tokens_of_an_example(encoded: Encoded) -> float:
    """Real tokens, the mean of the first 256 examples; of a choice all rows count."""
    first = np.arange(min(256, len(encoded.lengths)))
    batch = encoded.batch(first, length=int(encoded.lengths[first].max()))
    return float(batch["attention_mask"].sum()) / len(first)
