"""Scale-invariant fine-tuning: the official form against the official code, and the corrected default."""

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
from ..support.small_models import SMALL, random_params

PUBLISHED = SiftConfig(weight=5.0)
KEY = jax.random.key(0)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


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
    """Returns the parameters of the golden case, `logits_of` for `adversarial_loss`, and a function of plain logits."""
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


def test_normalized_embeddings_and_initial_perturbation_equal_golden(golden, monkeypatch) -> None:
    arrays, config = golden.arrays, official(golden, "kl")
    words = arrays["weights/deberta.embeddings.word_embeddings.weight"][arrays["inputs/input_ids"]]
    got = perturb(jnp.asarray(words), jnp.zeros(words.shape))
    assert_close(got, arrays["outputs/normalized_embeddings"], 1e-5, "normalized embeddings")
    normal = arrays["inputs/delta_normal"]
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: normal / config.init_perturbation)
    assert np.abs(normal).max() > 2 * config.init_perturbation
    assert_close(initial_perturbation(KEY, normal.shape, config), arrays["inputs/delta_init"], 1e-6, "delta_init")


@pytest.mark.parametrize("loss", ["symmetric_kl", slow("kl"), slow("mse")])  # the losses below depend on it
def test_perturbation_equals_golden(golden, loss: str) -> None:
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
    """Returns a function from parameters to the total loss and (plain logits, task loss, adversarial loss)."""
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
def test_losses_equal_golden(golden, loss: str) -> None:
    value, parts = jax.jit(golden_total(golden, loss))(golden.params("weights/", model_config(golden)))
    check_golden_total(golden, loss, value, *parts)


def test_losses_and_gradients_equal_golden(golden) -> None:
    config = model_config(golden)
    total = jax.jit(jax.value_and_grad(golden_total(golden, "symmetric_kl"), has_aux=True))
    (value, parts), grads = total(golden.params("weights/", config))
    check_golden_total(golden, "symmetric_kl", value, *parts)
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
    """A model, a batch and a perturbation."""

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
        params = random_params(model, ids)
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


@pytest.mark.parametrize("name", [slow(name) if name == "regression" else name for name in TASKS])
def test_every_task_is_perturbed_and_padding_changes_nothing(name: str) -> None:
    task = Task.build(name)
    padded = task.padded()
    (summed, weight), got = jax.jit(lambda params: (task.adversarial(params), padded.adversarial(params)))(task.params)
    assert weight == {"multiple choice": 2, "tokens": task.mask.sum(), "span": 8}.get(name, 4)
    assert summed > 1e-5
    np.testing.assert_allclose(got, (summed, weight), rtol=1e-3)


def test_step_increases_the_loss() -> None:
    task = Task.build("classification")
    before, after = jax.jit(
        lambda params: [task.adversarial(params, SiftConfig(learning_rate=rate))[0] for rate in (0, 1e-3)]
    )(task.params)
    assert after > 1.05 * before


@pytest.mark.parametrize(
    ("name", "loss"),
    [("classification", "symmetric_kl"), ("tokens", "mse"), slow("span", "kl"), slow("regression", "kl")],
)
def test_loss_without_perturbation_is_zero(name: str, loss: str) -> None:
    task, config = Task.build(name), SiftConfig(loss=loss, learning_rate=0)  # type: ignore[arg-type]
    value = jax.jit(lambda delta: dataclasses.replace(task, delta=delta).adversarial(task.params, config)[0])
    perturbed, unperturbed = float(value(task.delta)), float(value(jnp.zeros_like(task.delta)))
    assert abs(unperturbed) < 1e-6 < perturbed
    assert abs(unperturbed) < 1e-2 * perturbed


def test_embedding_tables_get_a_gradient_only_from_the_original() -> None:
    """The perturbation is added to constant embeddings; the original trains the plain prediction as well."""
    task = Task.build("classification")

    @jax.jit
    def run(params):
        configs = PUBLISHED, dataclasses.replace(PUBLISHED, official=True)
        return [jax.grad(lambda params, c=config: task.adversarial(params, c)[0])(params) for config in configs]

    default, official = (grads["deberta"]["embeddings"] for grads in run(task.params))
    assert not default["word_embeddings"]["embedding"].any()
    assert default["layer_norm"]["scale"].any()
    assert official["word_embeddings"]["embedding"].any()


# -------------------------------------------------------------------------------------------- the mathematics


def predictions(classes: int = 3) -> tuple[jax.Array, jax.Array]:
    """Returns two sets of logits."""
    first, second = jax.random.normal(jax.random.key(5), (2, 4, classes))
    return first, second


def loss_of(logits: jax.Array, clean: jax.Array, **settings) -> jax.Array:
    """Returns the adversarial loss of a model with these logits, independent of the perturbation."""
    delta, config = jnp.zeros((4, 2, 8)), SiftConfig(**settings)
    return adversarial_loss(lambda params, delta, _: params + 0 * delta.sum(), logits, clean, delta, config, key=KEY)[0]


@pytest.mark.parametrize(("classes", "loss"), [(3, "symmetric_kl"), (3, "kl"), (3, "mse"), (1, "symmetric_kl")])
def test_plain_prediction_gets_a_gradient_only_from_the_original(classes: int, loss: str) -> None:
    logits, clean = predictions(classes)
    of_logits, of_clean = jax.jit(jax.grad(functools.partial(loss_of, loss=loss), argnums=(0, 1)))(logits, clean)
    assert of_logits.any()
    assert not of_clean.any()
    official = jax.jit(jax.grad(functools.partial(loss_of, loss=loss, official=True), argnums=1))(logits, clean)
    p, q = (jax.nn.softmax(x if classes > 1 else x[:, 0]).reshape(x.shape) for x in (logits, clean))
    np.testing.assert_allclose(official, (q - p) * (1 if classes > 1 else 4), atol=1e-6)


def test_divergences_equal_their_definitions() -> None:
    logits, target = predictions()
    p, q = np.float64(jax.nn.softmax(logits)), np.float64(jax.nn.softmax(target))
    forward, backward = (q * np.log(q / p)).sum(-1), (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(DIVERGENCES["kl"](logits, target), forward, rtol=1e-5)
    np.testing.assert_allclose(DIVERGENCES["symmetric_kl"](logits, target), forward + backward, rtol=1e-5)
    entropies = -(p * np.log(p)).sum(-1) - (q * np.log(q)).sum(-1)
    both = OFFICIAL_DIVERGENCES["symmetric_kl"](logits, target)
    np.testing.assert_allclose(both, forward + backward + entropies, rtol=1e-5)


def test_similar_predictions_are_drawn_together_at_the_official_rate() -> None:
    """Officially each prediction moves toward the other, by default one moves twice as fast; far apart they differ."""
    far, clean = predictions()
    for logits, similar in ((clean + 1e-3 * far, True), (far, False)):
        default = jax.grad(lambda x: DIVERGENCES["symmetric_kl"](x, clean).sum())(logits)
        official = jax.grad(lambda x, y: OFFICIAL_DIVERGENCES["symmetric_kl"](x, y).sum(), (0, 1))(logits, clean)
        difference = np.abs(default - (official[0] - official[1])).max() / np.abs(default).max()
        assert difference < 1e-2 if similar else difference > 0.1


def test_regression_compares_scores() -> None:
    scores, clean = predictions(classes=1)
    for loss in DIVERGENCES:
        np.testing.assert_allclose(loss_of(scores, clean, loss=loss), np.square(scores - clean).sum(), rtol=1e-6)
        assert loss_of(scores + 1, scores, loss=loss) == pytest.approx(4)
        # The original's softmax over the batch ignores that all scores are 1 higher; its loss ignores the choice.
        np.testing.assert_allclose(
            loss_of(scores + 1, clean, loss=loss, official=True),
            4 * OFFICIAL_DIVERGENCES["symmetric_kl"](scores[:, 0], clean[:, 0]),
            rtol=1e-5,
        )


def test_loss_is_the_chosen_divergence_except_in_the_original() -> None:
    logits, clean = predictions()
    np.testing.assert_allclose(loss_of(logits, clean, loss="mse"), np.square(logits - clean).sum(), rtol=1e-5)
    symmetric = OFFICIAL_DIVERGENCES["symmetric_kl"](logits, clean).sum()
    np.testing.assert_allclose(loss_of(logits, clean, loss="mse", official=True), symmetric, rtol=1e-5)


def test_step_size_is_the_learning_rate_in_every_token() -> None:
    gradient = jax.random.normal(KEY, (2, 3, 8)) * jnp.array([1e-2, 1, 1e3])[:, None]
    step = ascend(jnp.zeros((2, 3, 8)), gradient, 1e-4)
    np.testing.assert_allclose(jnp.abs(step).max(axis=-1), 1e-4, rtol=2e-3)
    np.testing.assert_allclose(step * jnp.abs(gradient).max(-1, keepdims=True), 1e-4 * gradient, rtol=2e-3)
    for broken in (jnp.nan, jnp.inf):
        np.testing.assert_array_equal(ascend(step, gradient.at[0, 0, 0].set(broken), 1e-4), step)


def test_initial_perturbation_is_clipped_at_two_deviations() -> None:
    delta = np.asarray(initial_perturbation(KEY, (8, 32, 64), PUBLISHED))
    assert np.abs(delta).max() == np.float32(2e-2)
    assert np.isclose(np.abs(delta), 2e-2).mean() == pytest.approx(0.0455, abs=0.005)
    inside = delta[np.abs(delta) < 1e-2]
    assert len(inside) / delta.size == pytest.approx(0.6827, abs=0.01)
    assert abs(delta.mean()) < 5 * 1e-2 / delta.size**0.5


def test_perturbation_is_added_in_float32() -> None:
    """bfloat16 could not represent a step of 1e-4 beside embeddings around 1."""
    words, step = jax.random.normal(KEY, (2, 3, 64), jnp.bfloat16), 1e-4 * jnp.ones((2, 3, 64))
    moved = perturb(words, step) - perturb(words, jnp.zeros((2, 3, 64)))
    np.testing.assert_allclose(moved, 1e-4, rtol=1e-2)


def test_fused_kernels_work_under_the_loss() -> None:
    """Their backward pass cannot be differentiated; the search for the perturbation needs no second derivative."""
    task = Task.build("classification")
    model = DebertaForSequenceClassification(task.model.config, attention_implementation="pallas")
    fused = dataclasses.replace(task, model=model)
    grads = jax.eval_shape(jax.grad(lambda params: fused.adversarial(params)[0]), task.params)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, task.params)


def test_bad_settings_and_shapes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the loss of SiFT is 'js'; it must be one of symmetric_kl, kl, mse"):
        SiftConfig(loss="js")  # type: ignore[arg-type]
    for name in ("weight", "learning_rate", "init_perturbation"):
        for value in (-1.0, float("nan"), float("inf")):
            with pytest.raises(
                ValueError, match=rf"{name} of SiFT is {value}; it must be finite in 32 bits and not negative"
            ):
                SiftConfig(**{name: value})
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # users do not run with the checks of our tests
    task = Task.build("classification")
    with pytest.raises(ValueError, match=r"shape \(1, 9, 32\); it must be the embeddings', \(4, 9, 32\)"):
        task.logits(task.params, **perturbation(task.delta[:1]))


# -------------------------------------------------------------------------------------------- fine-tuning


def one_step(
    sift: SiftConfig, *, num_labels: int = 3, accumulation: int = 1, encoder: DebertaConfig = ONE
) -> tuple[dict, dict]:
    """Returns the metrics and the parameters after one step of fine-tuning with dropout."""
    model = DebertaForSequenceClassification(encoder.replace(num_labels=num_labels))
    settings = OptimizerConfig(schedule="warmup_constant", warmup=0.0)
    optimizer = build_optimizer(settings, total_steps=10)
    config = finetune_config(
        optimizer=settings,
        sift=sift,
        accumulation=accumulation,  # type: ignore[arg-type]
    )
    ids = jax.random.randint(jax.random.key(1), (4, 9), 5, 60)
    params = random_params(model, ids)
    state = TrainState.create({"model": params}, {"model": optimizer.init(params)}, seed=0)
    objective = Classification(regression=num_labels == 1)
    labels = jnp.array([0, 1, 2, 1], jnp.int32 if num_labels > 1 else jnp.float32)
    batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids), "token_type_ids": jnp.zeros_like(ids)}
    state, metrics = jax.jit(build_step(model, objective, optimizer, config, total_steps=10))(
        state, batch | {"labels": labels}
    )
    return jax.device_get(metrics), jax.device_get(state.params["model"])


def test_electra_and_accumulated_chunks_are_perturbed() -> None:
    """ELECTRA projects its embeddings after their LayerNorm, so they are perturbed in the smaller size."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 1}
    electra = DebertaConfig.from_json({"model_type": "electra", "vocab_size": 64, "embedding_size": 16, **sizes})
    metrics, after = one_step(PUBLISHED, encoder=electra, accumulation=2)
    assert metrics["adversarial_sum"] > 0
    assert np.isfinite(metrics["grad_norm"])
    assert after["deberta"]["embeddings"]["embed_proj"]["kernel"].shape == (16, 32)


@pytest.mark.parametrize("num_labels", [3, slow(1)])
def test_finetuning_step_adds_the_loss_to_that_of_the_task(num_labels: int) -> None:
    plain, before = one_step(SiftConfig(), num_labels=num_labels)
    metrics, after = one_step(PUBLISHED, num_labels=num_labels)
    assert "adversarial_sum" not in plain
    np.testing.assert_allclose(metrics["loss_sum"], plain["loss_sum"], rtol=1e-6)  # with the same dropout
    assert metrics["adversarial_sum"] > 0
    assert metrics["grad_norm"] != plain["grad_norm"]
    assert jax.tree.reduce(max, jax.tree.map(lambda x, y: np.abs(x - y).max(), before, after)) > 0
    figures = training_figures({name: float(value) for name, value in metrics.items()} | {"steps": 1.0})
    assert figures["adversarial_loss"] == pytest.approx(metrics["adversarial_sum"] / 4)
    assert figures["loss"] == pytest.approx(metrics["loss_sum"] / 4)
