"""Scale-invariant fine-tuning against the official code, and what the default does in the original's place."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import (
    DebertaConfig,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
    losses,
)
from deberta_jax.encoder import perturb
from deberta_jax.sift import (
    DIVERGENCES,
    OFFICIAL_DIVERGENCES,
    SiftConfig,
    adversarial_loss,
    ascend,
    initial_perturbation,
    perturbation,
    span_logits,
)
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.engine.optimizer import build_optimizer
from deberta_jax.train.engine.state import TrainState
from deberta_jax.train.finetune import build_step, training_figures
from deberta_jax.train.tasks.classification.task import Classification

from ..support.configs import finetune_config
from ..support.golden_cases import assert_close, assert_gradients_close, load
from ..support.small_models import SMALL

PUBLISHED = SiftConfig(weight=5.0)
KEY = jax.random.key(0)

# -------------------------------------------------------------------------------------------- the official code


@pytest.fixture(scope="module")
def golden():
    return load("sift")


def model_config(case) -> DebertaConfig:
    return DebertaConfig.from_json({name: value for name, value in case.config.items() if name != "sift"})


def official(case, loss: str) -> SiftConfig:
    settings = case.config["sift"]
    return SiftConfig(
        weight=settings["vat_lambda"],
        loss=loss,  # type: ignore[arg-type]
        learning_rate=settings["vat_learning_rate"],
        init_perturbation=settings["vat_init_perturbation"],
        official=True,
    )


def classifier(case):
    """Parameters, logits_of for `adversarial_loss` and the plain logits of the golden case."""
    config, arrays = model_config(case), case.arrays
    model = DebertaForSequenceClassification(config)

    def apply(variables):
        out = model.apply(
            variables,
            arrays["inputs/input_ids"],
            arrays["inputs/input_mask"],
            position_ids=arrays["inputs/position_ids"],
        )
        return out.logits

    def logits_of(params, delta, key):
        del key
        return apply({"params": params, **perturbation(delta)})

    return case.params("weights/", config), logits_of, lambda params: apply({"params": params})


def test_golden_normalized_embeddings_and_initial_perturbation(golden, monkeypatch) -> None:
    arrays, config = golden.arrays, official(golden, "kl")
    words = arrays["weights/deberta.embeddings.word_embeddings.weight"][arrays["inputs/input_ids"]]
    got = perturb(jnp.asarray(words), jnp.zeros(words.shape))
    assert_close(got, arrays["outputs/normalized_embeddings"], 1e-5, "normalized embeddings")
    normal = arrays["inputs/delta_normal"]
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: normal / config.init_perturbation)
    assert np.abs(normal).max() > 2 * config.init_perturbation
    assert_close(initial_perturbation(KEY, normal.shape, config), arrays["inputs/delta_init"], 1e-6, "delta_init")


@pytest.mark.parametrize("loss", ["symmetric_kl", "kl", "mse"])
def test_golden_perturbation(golden, loss: str) -> None:
    params, logits_of, plain = classifier(golden)
    wanted, start = golden.group(f"outputs/{loss}/"), golden.arrays["inputs/delta_init"]

    @jax.jit
    def ascent(delta):
        clean = plain(params)

        def inner(delta):
            logits = logits_of(params, delta, KEY)
            return OFFICIAL_DIVERGENCES[loss](logits, clean).sum(), logits

        (value, logits), gradient = jax.value_and_grad(inner, has_aux=True)(delta)
        updated = ascend(delta, gradient, official(golden, loss).learning_rate)
        return value, logits, gradient, updated, logits_of(params, updated, KEY)

    value, inner_logits, gradient, updated, outer_logits = ascent(start)
    np.testing.assert_allclose(value, wanted["inner_loss"], rtol=1e-4)
    assert_close(inner_logits, wanted["perturbed_logits_inner"], 1e-4, "logits before the step")
    assert_close(gradient, wanted["delta_grad"], 1e-4, "gradient")
    assert_close(updated, wanted["delta_updated"], 1e-5, "delta")
    assert_close(outer_logits, wanted["perturbed_logits_outer"], 1e-4, "logits after the step")


def golden_total(case, loss: str):
    """The differentiated loss, and the plain logits, the task's loss and the adversarial one, of the parameters."""
    _, logits_of, plain = classifier(case)
    config, start = official(case, loss), case.arrays["inputs/delta_init"]

    def total(params):
        clean = plain(params)
        task_sum, task_weight = losses.classification(clean, case.arrays["inputs/labels"])
        summed, weight = adversarial_loss(logits_of, params, clean, start, config, key=KEY)
        task, adversarial = task_sum / task_weight, summed / weight
        return task + config.weight * adversarial, (clean, task, adversarial)

    return total


def check_golden_total(case, loss: str, value, clean, task, adversarial) -> None:
    assert_close(clean, case.arrays["outputs/clean_logits"], 1e-4, "logits")
    np.testing.assert_allclose(task, case.arrays["outputs/ce_loss"], rtol=1e-4)
    np.testing.assert_allclose(adversarial, case.arrays[f"outputs/{loss}/adv_loss"], rtol=1e-4)
    np.testing.assert_allclose(value, case.arrays[f"outputs/{loss}/total_loss"], rtol=1e-4)


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_golden_losses(golden, loss: str) -> None:
    value, rest = jax.jit(golden_total(golden, loss))(golden.params("weights/", model_config(golden)))
    check_golden_total(golden, loss, value, *rest)


def test_golden_losses_and_gradients(golden) -> None:
    config = model_config(golden)
    total = jax.jit(jax.value_and_grad(golden_total(golden, "symmetric_kl"), has_aux=True))
    (value, rest), grads = total(golden.params("weights/", config))
    check_golden_total(golden, "symmetric_kl", value, *rest)
    assert_gradients_close(grads, golden.params("grads/", config), 1e-4)


# -------------------------------------------------------------------------------------------- every task

ONE = SMALL.replace(num_hidden_layers=1)
TASKS = {
    "classification": DebertaForSequenceClassification(ONE.replace(num_labels=3)),
    "regression": DebertaForSequenceClassification(ONE.replace(num_labels=1)),
    "multiple choice": DebertaForMultipleChoice(ONE),
    "tokens": DebertaForTokenClassification(ONE.replace(num_labels=3)),
    "span": DebertaForQuestionAnswering(ONE),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, a batch of it and a perturbation."""

    model: object
    params: dict
    ids: jax.Array
    mask: jax.Array
    delta: jax.Array

    @classmethod
    @functools.cache
    def build(cls, name: str) -> "Task":
        model, shape = TASKS[name], (4, 9) if name != "multiple choice" else (2, 2, 9)
        ids = jax.random.randint(jax.random.key(1), shape, 5, 60)
        mask = jnp.ones_like(ids).at[..., 0, 7:].set(0)
        params = jax.jit(model.init)(jax.random.key(0), ids)["params"]
        delta = initial_perturbation(KEY, (4, 9, SMALL.hidden_size), PUBLISHED)
        return cls(model, params, ids, mask, delta)

    def padded(self) -> "Task":
        def pad(x: jax.Array, value: float) -> jax.Array:
            widths = [(0, 0)] * x.ndim
            widths[-2 if x is self.delta else -1] = (0, 5)
            return jnp.pad(x, widths, constant_values=value)

        return dataclasses.replace(self, ids=pad(self.ids, 7), mask=pad(self.mask, 0), delta=pad(self.delta, 0.3))

    def logits(self, params, **perturbed) -> jax.Array:
        out = self.model.apply({"params": params, **perturbed}, self.ids, self.mask)  # type: ignore[attr-defined]
        return out.logits if hasattr(out, "logits") else span_logits(out.start_logits, out.end_logits, self.mask)

    def adversarial(self, params, config: SiftConfig = PUBLISHED) -> tuple[jax.Array, jax.Array]:
        clean = self.logits(params)
        return adversarial_loss(
            lambda params, delta, _: self.logits(params, **perturbation(delta)),
            params,
            clean,
            self.delta,
            config,
            key=KEY,
            weight=self.mask.astype(jnp.float32) if clean.shape[:-1] == self.mask.shape else None,
        )


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_disturbed_and_padding_is_nothing_to_it(name: str) -> None:
    task = Task.build(name)
    summed, weight = jax.jit(task.adversarial)(task.params)
    assert weight == {"multiple choice": 2, "tokens": task.mask.sum(), "span": 8}.get(name, 4)
    assert summed > 1e-5
    padded = task.padded()
    got = jax.jit(padded.adversarial)(padded.params)
    np.testing.assert_allclose(got, (summed, weight), rtol=1e-3)


def test_the_step_is_toward_the_worse() -> None:
    task = Task.build("classification")
    stood, went = (
        jax.jit(lambda params, config=config: task.adversarial(params, config)[0])(task.params)
        for config in (SiftConfig(learning_rate=0), SiftConfig(learning_rate=1e-3))
    )
    assert went > 1.05 * stood


@pytest.mark.parametrize(
    ("name", "loss"), [("classification", "symmetric_kl"), ("span", "kl"), ("tokens", "mse"), ("regression", "kl")]
)
def test_without_perturbation_there_is_no_loss(name: str, loss: str) -> None:
    task, config = Task.build(name), SiftConfig(loss=loss, learning_rate=0)  # type: ignore[arg-type]
    value = jax.jit(lambda delta: dataclasses.replace(task, delta=delta).adversarial(task.params, config)[0])
    there, none = float(value(task.delta)), float(value(jnp.zeros_like(task.delta)))
    assert abs(none) < 1e-6 < there
    assert abs(none) < 1e-2 * there


@pytest.mark.parametrize("name", TASKS)
def test_no_table_learns_from_it(name: str) -> None:
    """Tables are behind what is held constant."""
    task = Task.build(name)
    tables = jax.jit(jax.grad(lambda params: task.adversarial(params)[0]))(task.params)["deberta"]["embeddings"]
    assert not tables["word_embeddings"]["embedding"].any()
    assert tables["layer_norm"]["scale"].any()


def test_the_original_trains_the_tables_through_the_unperturbed_answer() -> None:
    task, config = Task.build("classification"), dataclasses.replace(PUBLISHED, official=True)
    tables = jax.jit(jax.grad(lambda params: task.adversarial(params, config)[0]))(task.params)["deberta"]["embeddings"]
    assert tables["word_embeddings"]["embedding"].any()


# -------------------------------------------------------------------------------------------- the mathematics


def answers(classes: int = 3) -> tuple[jax.Array, jax.Array]:
    one, other = jax.random.normal(jax.random.key(5), (2, 4, classes))
    return one, other


def loss_of(logits: jax.Array, clean: jax.Array, **settings) -> jax.Array:
    """The adversarial loss of a model that gives these logits whatever the perturbation."""
    delta, config = jnp.zeros((4, 2, 8)), SiftConfig(**settings)
    return adversarial_loss(lambda params, delta, _: params + 0 * delta.sum(), logits, clean, delta, config, key=KEY)[0]


@pytest.mark.parametrize("loss", ["symmetric_kl", "kl", "mse"])
@pytest.mark.parametrize("classes", [3, 1])
def test_the_unperturbed_answer_gets_no_gradient_but_from_the_original(classes: int, loss: str) -> None:
    one, other = answers(classes)
    assert not jax.grad(lambda clean: loss_of(one, clean, loss=loss))(other).any()
    assert jax.grad(lambda logits: loss_of(logits, other, loss=loss))(one).any()
    theirs = jax.grad(lambda clean: loss_of(one, clean, loss=loss, official=True))(other)
    p, q = (jax.nn.softmax(x if classes > 1 else x[:, 0]).reshape(x.shape) for x in (one, other))
    np.testing.assert_allclose(theirs, (q - p) * (1 if classes > 1 else 4), atol=1e-6)


def test_divergences_against_their_definitions() -> None:
    one, other = answers()
    p, q = np.float64(jax.nn.softmax(one)), np.float64(jax.nn.softmax(other))
    forward, backward = (q * np.log(q / p)).sum(-1), (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(DIVERGENCES["kl"](one, other), forward, rtol=1e-5)
    np.testing.assert_allclose(DIVERGENCES["symmetric_kl"](one, other), forward + backward, rtol=1e-5)
    entropies = -(p * np.log(p)).sum(-1) - (q * np.log(q)).sum(-1)
    both = OFFICIAL_DIVERGENCES["symmetric_kl"](one, other)
    np.testing.assert_allclose(both, forward + backward + entropies, rtol=1e-5)


def test_close_answers_are_drawn_together_at_the_same_rate() -> None:
    """Officially each moves to the other, by default the perturbed one goes both ways alone; far apart they differ."""
    far, clean = answers()
    for other, same in ((clean + 1e-3 * far, True), (far, False)):
        ours = jax.grad(lambda x: DIVERGENCES["symmetric_kl"](x, clean).sum())(other)
        theirs = jax.grad(lambda x, y: OFFICIAL_DIVERGENCES["symmetric_kl"](x, y).sum(), (0, 1))(other, clean)
        rate = np.abs(ours - (theirs[0] - theirs[1])).max() / np.abs(ours).max()
        assert rate < 1e-2 if same else rate > 0.1


def test_regression_compares_scores_and_not_shares_of_the_batch() -> None:
    one, other = answers(classes=1)
    for loss in DIVERGENCES:
        np.testing.assert_allclose(loss_of(one, other, loss=loss), np.square(one - other).sum(), rtol=1e-6)
        assert loss_of(one + 1, one, loss=loss) == pytest.approx(4)
        # The original: all scores one higher is no difference to it, and its loss is the same for every choice.
        np.testing.assert_allclose(
            loss_of(one + 1, other, loss=loss, official=True),
            4 * OFFICIAL_DIVERGENCES["symmetric_kl"](one[:, 0], other[:, 0]),
            rtol=1e-5,
        )


def test_the_loss_is_what_the_perturbation_ascended_but_in_the_original() -> None:
    one, other = answers()
    np.testing.assert_allclose(loss_of(one, other, loss="mse"), np.square(one - other).sum(), rtol=1e-5)
    symmetric = OFFICIAL_DIVERGENCES["symmetric_kl"](one, other).sum()
    np.testing.assert_allclose(loss_of(one, other, loss="mse", official=True), symmetric, rtol=1e-5)


def test_a_step_is_as_large_as_the_learning_rate_in_every_token() -> None:
    gradient = jax.random.normal(KEY, (2, 3, 8)) * jnp.array([1e-2, 1, 1e3])[:, None]
    step = ascend(jnp.zeros((2, 3, 8)), gradient, 1e-4)
    np.testing.assert_allclose(jnp.abs(step).max(axis=-1), 1e-4, rtol=2e-3)
    np.testing.assert_allclose(step * jnp.abs(gradient).max(-1, keepdims=True), 1e-4 * gradient, rtol=2e-3)
    for broken in (jnp.nan, jnp.inf):
        np.testing.assert_array_equal(ascend(step, gradient.at[0, 0, 0].set(broken), 1e-4), step)


def test_the_initial_perturbation_is_cut_off_at_two_deviations() -> None:
    delta = np.asarray(initial_perturbation(KEY, (8, 32, 64), PUBLISHED))
    assert np.abs(delta).max() == np.float32(2e-2)
    assert np.isclose(np.abs(delta), 2e-2).mean() == pytest.approx(0.0455, abs=0.005)
    inside = delta[np.abs(delta) < 1e-2]
    assert len(inside) / delta.size == pytest.approx(0.6827, abs=0.01)
    assert abs(delta.mean()) < 5 * 1e-2 / delta.size**0.5


def test_bfloat16_feels_the_step_that_it_could_not_hold() -> None:
    """The embeddings and the perturbation are added up in float32."""
    words, step = jax.random.normal(KEY, (2, 3, 64), jnp.bfloat16), 1e-4 * jnp.ones((2, 3, 64))
    moved = perturb(words, step) - perturb(words, jnp.zeros((2, 3, 64)))
    np.testing.assert_allclose(moved, 1e-4, rtol=1e-2)


def test_the_kernel_works_under_the_loss() -> None:
    """Its backward pass cannot be differentiated, and need not: the search for the perturbation is held constant."""
    task = Task.build("classification")
    model = DebertaForSequenceClassification(task.model.config, attention_implementation="pallas")
    fused = dataclasses.replace(task, model=model)
    grads = jax.eval_shape(jax.grad(lambda params: fused.adversarial(params)[0]), task.params)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, task.params)


def test_bad_settings_and_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="the loss of SiFT is 'js'; it must be one of symmetric_kl, kl, mse"):
        SiftConfig(loss="js")  # type: ignore[arg-type]
    for name in ("weight", "learning_rate", "init_perturbation"):
        for value in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=rf"{name} of SiFT is {value}; it must be a finite number, not neg"):
                SiftConfig(**{name: value})
    task = Task.build("classification")
    with pytest.raises(ValueError, match=r"shape \(1, 9, 32\); it must be the embeddings', \(4, 9, 32\)"):
        task.logits(task.params, **perturbation(task.delta[:1]))


# -------------------------------------------------------------------------------------------- fine-tuning


def one_step(
    sift: SiftConfig, *, num_labels: int = 3, accumulation: int = 1, encoder: DebertaConfig = ONE
) -> tuple[dict, dict]:
    """Metrics and parameters after one step of fine-tuning with dropout."""
    model = DebertaForSequenceClassification(encoder.replace(num_labels=num_labels))
    settings = OptimizerConfig(schedule="warmup_constant", warmup=0.0)
    optimizer = build_optimizer(settings, total_steps=10)
    config = finetune_config(
        optimizer=settings,
        sift=sift,
        accumulation=accumulation,  # type: ignore[arg-type]
    )
    ids = jax.random.randint(jax.random.key(1), (4, 9), 5, 60)
    params = jax.jit(model.init)(jax.random.key(0), ids)["params"]
    state = TrainState.create({"model": params}, {"model": optimizer.init(params)}, seed=0)
    objective = Classification(regression=num_labels == 1)
    labels = jnp.array([0, 1, 2, 1], jnp.int32 if num_labels > 1 else jnp.float32)
    batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids), "token_type_ids": jnp.zeros_like(ids)}
    state, metrics = jax.jit(build_step(model, objective, optimizer, config, total_steps=10))(
        state, batch | {"labels": labels}
    )
    return jax.device_get(metrics), jax.device_get(state.params["model"])


def test_embeddings_that_are_projected_behind_their_norm_are_perturbed_in_their_own_width() -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 1}
    electra = DebertaConfig.from_json({"model_type": "electra", "vocab_size": 64, "embedding_size": 16, **sizes})
    metrics, after = one_step(PUBLISHED, encoder=electra)
    assert metrics["adversarial_sum"] > 0
    assert after["deberta"]["embeddings"]["embed_proj"]["kernel"].shape == (16, 32)


@pytest.mark.parametrize("num_labels", [3, 1])
def test_a_step_of_finetuning_adds_the_loss_to_the_task(num_labels: int) -> None:
    plain, before = one_step(SiftConfig(), num_labels=num_labels)
    metrics, after = one_step(PUBLISHED, num_labels=num_labels)
    assert "adversarial_sum" not in plain
    np.testing.assert_allclose(metrics["loss_sum"], plain["loss_sum"], rtol=1e-6)  # the task's alone, same dropout
    assert metrics["adversarial_sum"] > 0
    assert metrics["grad_norm"] != plain["grad_norm"]
    assert jax.tree.reduce(max, jax.tree.map(lambda x, y: np.abs(x - y).max(), before, after)) > 0
    figures = training_figures({name: float(value) for name, value in metrics.items()} | {"steps": 1.0})
    assert figures["adversarial_loss"] == pytest.approx(metrics["adversarial_sum"] / 4)
    assert figures["loss"] == pytest.approx(metrics["loss_sum"] / 4)


def test_chunks_of_a_batch_each_have_a_perturbation_of_their_own() -> None:
    metrics, _ = one_step(PUBLISHED, accumulation=2)
    assert metrics["adversarial_sum"] > 0
    assert np.isfinite(metrics["grad_norm"])
