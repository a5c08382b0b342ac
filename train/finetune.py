"""Fine-tuning on one text or a pair of texts: classification or regression.

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

from deberta_jax import losses
from deberta_jax.checkpoint import load_pretrained, save_pretrained, start_from
from deberta_jax.config import DebertaConfig
from deberta_jax.models import DebertaForSequenceClassification
from deberta_jax.sharding import batch_devices, local_rows, make_mesh, place_batch, shardings
from deberta_jax.sift import adversarial_loss, initial_perturbation, perturbation
from deberta_jax.tokenizer import Tokenizer

from .accumulation import accumulate
from .checkpointing import Checkpointer
from .configs import FinetuneConfig
from .distributed import Hosts, join
from .loop import Plan, Sums, train
from .metrics import compute_metrics
from .optimizer import apply_gradients, build_optimizer, schedule
from .report import open_log
from .state import TrainState, training_key
from .tasks import EncodedExamples, FinetuneBatches, TaskData, encode_examples, evaluation_batches, load_task

Params = dict[str, Any]
Metrics = dict[str, jax.Array]


def main(config: FinetuneConfig) -> dict[str, dict[str, float]]:
    """Returns the metrics of each held-out split, which results.json holds as well.

    With several processes, see `distributed.join` for errors.

    Raises:
      StoppedError: the run was preempted, or out of time; all is saved.
      ValueError, OSError: what is wrong with the settings, the data or the machine.
    """
    with join(config) as hosts:
        return run(config, hosts)


def run(config: FinetuneConfig, hosts: Hosts) -> dict[str, dict[str, float]]:  # noqa: PLR0915 - reads as prose
    """Read from top to bottom; the same on every host."""
    # ---------------------------------------------------------------- the task, the model it is done with
    task = load_task(
        config.train,
        validation=config.validation,
        test=config.test,
        text_column=config.text_column,
        pair_column=config.pair_column,
        label_column=config.label_column,
        kind=config.kind,
        data_dir=config.data_dir,
        manual_dir=config.manual_dir,
    )
    tokenizer = Tokenizer.from_folder(config.tokenizer or config.model)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    pretrained, weights = load_pretrained(config.model, mesh=mesh)
    model_config = task_config(config, pretrained, task)
    if tokenizer.vocab_size > model_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, more than the model's vocab_size "
            f"{model_config.vocab_size}; give the tokenizer that the model was trained with"
        )
    model = DebertaForSequenceClassification(model_config, dtype=jnp.dtype(config.dtype), remat=config.remat)
    check_sizes(config, devices=batch_devices(mesh))

    # ---------------------------------------------------------------- data
    splits = {"train": task.train, "validation": task.validation, **task.extra_validation, "test": task.test}
    encoded = {
        name: encode_examples(examples, tokenizer, max_length=config.max_length)
        for name, examples in splits.items()
        if examples
    }
    rows = local_rows(mesh, config.batch_size)
    epoch = math.ceil(len(task.train) / config.batch_size)
    steps = config.steps or max(1, math.ceil(epoch * config.epochs))

    # ---------------------------------------------------------------- state
    optimizer = build_optimizer(config.optimizer, total_steps=steps)

    def create(weights: Params) -> TrainState:
        key = training_key(config.seed)
        fresh: Any = model.init(key, jnp.ones((1, 8), jnp.int32))["params"]
        params = fresh if config.random_weights else start_from(weights, fresh)
        return TrainState.create({"model": params}, {"model": optimizer.init(params)}, seed=config.seed)

    placement = shardings(jax.eval_shape(create, weights), mesh)
    with jax.set_mesh(mesh):  # attention reads it, here and in every step
        state = jax.jit(create, out_shardings=placement)(weights)
    del weights

    # ---------------------------------------------------------------- step and evaluation
    step = jax.jit(
        build_step(model, optimizer, config, total_steps=steps), donate_argnums=0, out_shardings=(placement, None)
    )

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))  # whole on every host
    def predict(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        out: Any = model.apply(
            {"params": params}, batch["input_ids"], batch["attention_mask"], token_type_ids=batch["token_type_ids"]
        )
        logits = out.logits
        return logits[:, 0] if task.kind == "regression" else logits.argmax(axis=-1)

    def measure(state: TrainState, examples: EncodedExamples) -> dict[str, float]:
        found = []
        for batch in evaluation_batches(examples, batch_size=config.batch_size, rows=rows):
            predictions = predict(state.params["model"], place_batch(batch, mesh))
            found.append(np.asarray(jax.device_get(predictions)))
        predictions = np.concatenate(found)[: len(examples.lengths)]
        if examples.labels is None:
            raise ValueError("the test split has no labels to measure against; leave it out")
        return compute_metrics(task.metrics, predictions, examples.labels)

    measured: dict[int, dict[str, float]] = {}  # of the validation split, by step

    def evaluate(state: TrainState) -> dict[str, float]:
        number = int(state.step)
        if number not in measured and "validation" in encoded:
            measured[number] = measure(state, encoded["validation"])
        return measured.get(number, {})

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
            tokens_per_step=config.batch_size * config.max_length,
            every=config.log_every,
        ) as reporter,
    ):
        for name, examples in encoded.items():
            cut = f", {examples.truncated} cut to {config.max_length} tokens" if examples.truncated else ""
            reporter.message(f"{name}: {len(examples.lengths)} examples{cut}")
        state = train(
            state,
            plan=Plan(
                steps=steps,
                log_every=config.log_every,
                evaluate_every=config.evaluate_every or epoch,
                save_every=config.save_every,
                profile=config.profile,
            ),
            step=step,
            batches=FinetuneBatches(encoded["train"], batch_size=config.batch_size, seed=config.seed, rows=rows),
            place=lambda batch: place_batch(batch, mesh),
            figures=training_figures,
            evaluate=evaluate,
            checkpointer=checkpointer,
            reporter=reporter,
            hosts=hosts,
            profile_folder=config.output / "profile",
        )

        # ------------------------------------------------------------ results and model
        others = {name: examples for name, examples in encoded.items() if name not in ("train", "validation")}
        results = {"validation": evaluate(state)} if "validation" in encoded else {}
        results |= {name: measure(state, examples) for name, examples in others.items()}
        if hosts.first:
            (config.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        for name, figures in results.items():
            reporter.message(f"{name}: " + "  ".join(f"{metric} {value:.4f}" for metric, value in figures.items()))
        save_pretrained(config.output / "model", model_config, state.params["model"])
        if hosts.first:
            tokenizer.save(config.output / "model")
        reporter.message(f"saved {config.output / 'model'}")
    return results


def build_step(
    model: DebertaForSequenceClassification,
    optimizer: optax.GradientTransformation,
    config: FinetuneConfig,
    *,
    total_steps: int,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The update of one batch (input_ids, attention_mask, token_type_ids [B, S]; labels [B])."""
    multiplier = schedule(config.optimizer, total_steps=total_steps)

    def loss(params: Params, chunk: dict[str, jax.Array], key: jax.Array, weight: jax.Array):
        def logits_of(params: Params, key: jax.Array, **perturbed: Any) -> jax.Array:
            out: Any = model.apply(
                {"params": params, **perturbed},
                chunk["input_ids"],
                chunk["attention_mask"],
                token_type_ids=chunk["token_type_ids"],
                train=True,
                rngs={"dropout": key},
            )
            return out.logits

        logits = logits_of(params, key)
        if model.config.num_labels == 1:
            total, _ = losses.regression(logits[:, 0], chunk["labels"])
        else:
            total, _ = losses.classification(logits, chunk["labels"])
        if config.sift.weight == 0:
            return total / weight, {"loss_sum": total}
        noise_key, sift_key = jax.random.split(jax.random.fold_in(key, 1))  # the plain forward drops as without SiFT
        adversarial, _ = adversarial_loss(
            lambda params, delta, key: logits_of(params, key, **perturbation(delta)),
            params,
            logits,
            initial_perturbation(noise_key, (*chunk["input_ids"].shape, model.config.hidden_size), config.sift),
            config.sift,
            key=sift_key,
        )
        sums = {"loss_sum": total, "adversarial_sum": adversarial}
        return (total + config.sift.weight * adversarial) / weight, sums

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        count = jnp.asarray(batch["labels"].shape[0], jnp.float32)
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


def task_config(config: FinetuneConfig, pretrained: DebertaConfig, task: TaskData) -> DebertaConfig:
    """The model's configuration with the task's classes; one output without names for a regression."""
    changes: dict[str, Any] = {"num_labels": max(1, len(task.label_names)), "label_names": task.label_names}
    if config.classifier_dropout is not None:
        changes["cls_dropout"] = config.classifier_dropout
    return pretrained.replace(**changes)


def check_sizes(config: FinetuneConfig, *, devices: int) -> None:
    """Raises ValueError where a batch does not divide."""
    if config.batch_size % config.accumulation or config.batch_size // config.accumulation % devices:
        raise ValueError(
            f"batch_size {config.batch_size} does not divide into {config.accumulation} chunks (accumulation) over "
            f"{devices} devices; give a multiple of {config.accumulation * devices}"
        )


def identity(
    config: FinetuneConfig, model_config: DebertaConfig, tokenizer: Tokenizer, task: TaskData
) -> dict[str, Any]:
    """What a checkpoint must share with the run that goes on from it."""
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    kept = (
        "model random_weights train max_length batch_size accumulation epochs steps optimizer sift dtype seed".split()
    )
    return {
        "configuration": model_config.to_json(),
        "tokenizer": tokenizer.fingerprint,
        "examples": len(task.train),
        **{name: settings[name] for name in kept},
    }
