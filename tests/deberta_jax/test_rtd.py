"""Replaced token detection against the official code: the joint losses, and three whole training steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaForMaskedLM, losses
from deberta_jax.rtd import (
    RTDConfig,
    RTDModels,
    Sampler,
    corrupt,
    discriminator_view,
    generator_pass,
    init_params,
    sample_replacements,
    standalone_discriminator,
)
from deberta_jax.train.configs import OptimizerConfig, PretrainConfig
from deberta_jax.train.pretrain import build_optimizers, build_step, create_state

from ..support.configs import pretrain_config
from ..support.golden_cases import Case, assert_close, assert_gradients_close, load, masked_slots
from ..support.small_models import SMALL


def read(case: Case, prefix: str, config: RTDConfig) -> dict:
    """Generator and discriminator parameters from names `generator.*` and `discriminator.*`."""
    shared = config.embedding_sharing != "nes"
    return {
        "generator": case.params(f"{prefix}generator.", config.generator),
        "discriminator": case.params(f"{prefix}discriminator.", config.discriminator, shared_embeddings=shared),
    }


def batch_of(case: Case, prefix: str) -> tuple[dict, np.ndarray]:
    """A batch with the positions that the official run masked, and the ids that it sampled there."""
    inputs = case.group(prefix)
    positions, labels = masked_slots(inputs["labels"])
    sampled = np.zeros_like(labels)
    sampled[labels > 0] = inputs["sampled_ids"]
    batch = {
        "input_ids": inputs["input_ids"],
        "segment_ids": inputs["input_mask"],
        "masked_positions": positions,
        "masked_labels": labels,
    }
    return batch, sampled


def rtd_config(case: Case) -> RTDConfig:
    return RTDConfig.from_json(
        {name: case.config[name] for name in ("embedding_sharing", "generator", "discriminator")}
    )


def always(ids: np.ndarray) -> Sampler:
    """Draws the given ids [B, M]."""
    return lambda logits, words, key: (words == ids[..., None]).astype(jnp.float32)


def settings(**changes) -> PretrainConfig:
    return pretrain_config(**changes)


def test_three_decoupled_steps_reproduce_losses_norms_and_all_weights() -> None:
    case = load("rtd_step")
    config, training = rtd_config(case), case.config["train"]
    run = settings(
        steps=training["num_training_steps"],
        rtd_lambda=training["rtd_lambda"],
        optimizer=OptimizerConfig(
            learning_rate=training["learning_rate"],
            schedule=training["lr_schedule"],
            warmup=training["warmup_proportion"],
            weight_decay=training["weight_decay"],
            max_grad_norm=training["max_grad_norm"],
            decay_embedding_delta=True,
        ),
    )
    models, optimizers, params = RTDModels.build(config), build_optimizers(run), read(case, "weights/", config)
    state = create_state(optimizers, params, seed=0)
    for number in (1, 2, 3):
        batch, sampled = batch_of(case, f"inputs/step{number}/")
        step = build_step(models, optimizers, run, sharing="gdes", sample=always(sampled))
        state, metrics = jax.jit(step)(state, batch)
        want = case.group(f"outputs/step{number}/")
        close = {"rtol": 1e-5}
        np.testing.assert_allclose(metrics["masked_loss_sum"] / metrics["masked_count"], want["gen_loss"], **close)
        np.testing.assert_allclose(metrics["rtd_loss_sum"] / metrics["rtd_count"], want["disc_loss"], **close)
        np.testing.assert_allclose(metrics["generator_grad_norm"], want["grad_norm_gen"], **close)
        np.testing.assert_allclose(metrics["discriminator_grad_norm"], want["grad_norm_disc"], **close)
        np.testing.assert_allclose(metrics["learning_rate"], want["lr_gen"], rtol=1e-6)
        after = read(case, f"weights_after_step{number}/", config)
        for (path, got), leaf in zip(jax.tree.leaves_with_path(state.params), jax.tree.leaves(after), strict=True):
            assert_close(got, leaf, 1e-4, f"step {number}: {jax.tree_util.keystr(path)}")
        corrupted, replaced = corrupt(batch["input_ids"], batch["masked_positions"], batch["masked_labels"], sampled)
        np.testing.assert_array_equal(corrupted, want["corrupted_ids"])
        np.testing.assert_array_equal(replaced, want["rtd_labels"])


@pytest.mark.parametrize("name", ["rtd_es", "rtd_nes", "rtd_gdes_joint"])
def test_joint_losses_and_gradients(name: str) -> None:
    """One backward for both: read off the update of plain gradient descent with rate 1."""
    import optax

    case = load(name)
    config = rtd_config(case)
    params, (batch, sampled) = read(case, "weights/", config), batch_of(case, "inputs/")
    run = settings(decoupled=False, rtd_lambda=case.config["train"]["rtd_lambda"])
    descent = {"joint": optax.sgd(1.0)}
    step = build_step(
        RTDModels.build(config),
        descent,
        run,
        sharing=config.embedding_sharing,
        sample=always(sampled),
    )
    state = create_state(descent, params, seed=0)
    after, metrics = jax.jit(step)(state, batch)
    np.testing.assert_allclose(
        metrics["masked_loss_sum"] / metrics["masked_count"], case.arrays["outputs/gen_loss"], rtol=1e-4
    )
    np.testing.assert_allclose(
        metrics["rtd_loss_sum"] / metrics["rtd_count"], case.arrays["outputs/disc_loss"], rtol=1e-4
    )
    grads = jax.tree.map(lambda before, now: before - now, params, after.params)
    want = read(case, "grads/", config)
    for model in ("generator", "discriminator"):
        assert_gradients_close(grads[model], want[model], 1e-4)


def test_under_gdes_the_discriminators_loss_gives_the_generators_embedding_no_gradient() -> None:
    config = RTDConfig.half_depth(SMALL)
    params = init_params(config, jax.random.key(0))
    models = RTDModels.build(config)

    def loss(params, sharing):
        view = discriminator_view(params, sharing)
        return models.discriminator.apply({"params": view}, jnp.arange(5, 15)[None]).logits.sum()

    grads = jax.jit(jax.grad(loss), static_argnums=1)(params, "gdes")
    tables = grads["generator"]["deberta"]["embeddings"]
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(grads["generator"]))
    assert jnp.abs(grads["discriminator"]["deberta"]["embeddings"]["word_embeddings"]["delta"]).max() > 0
    del params["discriminator"]["deberta"]["embeddings"]["word_embeddings"]
    tables = jax.grad(loss)(params, "es")["generator"]["deberta"]["embeddings"]
    assert jnp.abs(tables["word_embeddings"]["embedding"]).max() > 0


def test_gdes_looks_up_two_tables_and_never_sums_or_casts_one() -> None:
    """Equal to one look-up in the sum; the gradient goes to the difference alone."""
    config = RTDConfig.half_depth(SMALL)
    params = init_params(config, jax.random.key(0))
    table = params["discriminator"]["deberta"]["embeddings"]["word_embeddings"]
    table["delta"] = jax.random.normal(jax.random.key(1), table["delta"].shape)
    model, ids = RTDModels.build(config).discriminator, jnp.arange(5, 15)[None]
    alone = standalone_discriminator(params, "gdes")

    def loss(discriminator, model=model):
        return jnp.sin(model.apply({"params": discriminator}, ids).logits).sum()

    got, grads = jax.jit(
        jax.value_and_grad(lambda own: loss(discriminator_view({**params, "discriminator": own}, "gdes")))
    )(params["discriminator"])
    want, want_grads = jax.jit(jax.value_and_grad(loss))(alone)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for tree in (grads, want_grads):
        (tree["table"],) = tree["deberta"]["embeddings"].pop("word_embeddings").values()
        tree["deberta"]["embeddings"].pop("position_embeddings", None)
    assert_gradients_close(grads, want_grads, 1e-4)

    narrow = RTDModels.build(config, dtype=jnp.bfloat16).discriminator
    program = jax.jit(lambda params: loss(discriminator_view(params, "gdes"), narrow)).lower(params).as_text()
    whole = f"tensor<{SMALL.vocab_size}x{SMALL.hidden_size}x"
    touching = [line for line in program.splitlines() if whole in line and "func" not in line and "call" not in line]
    assert touching
    assert all("stablehlo.gather" in line for line in touching), touching


def test_the_generators_pass_equals_its_logits_worked_off_in_full() -> None:
    case = load("rtd_step")
    config = rtd_config(case).generator
    batch, _ = batch_of(case, "inputs/step1/")
    model, params = DebertaForMaskedLM(config), read(case, "weights/", rtd_config(case))["generator"]

    def shortcut(params):
        out = generator_pass(
            model, params, batch, key=jax.random.key(0), sample=lambda logits, *_: -logits, train=False
        )
        return out.loss_sum, out[1:]

    def plain(params):
        logits = model.apply(
            {"params": params},
            batch["input_ids"],
            segment_ids=batch["segment_ids"],
            masked_positions=batch["masked_positions"],
        ).logits
        labels = batch["masked_labels"]
        loss_sum, weight = losses.masked_lm(logits, labels)
        return loss_sum, (weight, ((logits.argmax(-1) == labels) & (labels > 0)).sum(), logits.argmin(-1))

    (got, figures), grads = jax.jit(jax.value_and_grad(shortcut, has_aux=True))(params)
    (want, want_figures), want_grads = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for one, other in zip(figures, want_figures, strict=True):
        np.testing.assert_array_equal(one, other)
    assert_gradients_close(grads, want_grads, 1e-5)


def test_a_standalone_discriminator_is_the_one_of_the_run() -> None:
    config = RTDConfig.half_depth(SMALL)
    params = init_params(config, jax.random.key(0))
    table = params["discriminator"]["deberta"]["embeddings"]["word_embeddings"]
    table["delta"] = jax.random.normal(jax.random.key(1), table["delta"].shape)
    model, ids = RTDModels.build(config).discriminator, jnp.arange(5, 15)[None]
    shared = model.apply({"params": discriminator_view(params, "gdes")}, ids).logits
    alone = model.apply({"params": standalone_discriminator(params, "gdes")}, ids).logits
    np.testing.assert_allclose(alone, shared, atol=1e-5)


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
@pytest.mark.parametrize("with_generator", [True, False])
def test_going_on_from_a_discriminator_starts_where_it_stands(sharing, with_generator) -> None:
    """Deliberately unlike the official code, which starts it from the generator's table (reference, bug B1)."""
    config = dataclasses.replace(RTDConfig.half_depth(SMALL), embedding_sharing="nes")
    old = init_params(config, jax.random.key(1))
    given = {"discriminator": old["discriminator"]} | ({"generator": old["generator"]} if with_generator else {})
    config = dataclasses.replace(config, embedding_sharing=sharing)
    params = init_params(config, jax.random.key(2), **given)
    generator, judge = (params[name]["deberta"]["embeddings"] for name in ("generator", "discriminator"))
    table = old["discriminator"]["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    assert ("embedding" in judge.get("word_embeddings", {})) == (sharing == "nes")
    if with_generator:
        jax.tree.map(np.testing.assert_array_equal, params["generator"], old["generator"])
    elif sharing == "nes":
        assert not np.allclose(generator["word_embeddings"]["embedding"], table)
    else:
        np.testing.assert_array_equal(generator["word_embeddings"]["embedding"], table)
    if not (sharing == "es" and with_generator):  # there the one table is the generator's
        model, ids = RTDModels.build(config).discriminator, jnp.arange(5, 15)[None]
        now = model.apply({"params": discriminator_view(params, sharing)}, ids).logits
        np.testing.assert_allclose(now, model.apply({"params": old["discriminator"]}, ids).logits, atol=1e-5)


def test_going_on_from_a_discriminator_of_differences_needs_its_generator() -> None:
    config = RTDConfig.half_depth(SMALL)
    old = init_params(config, jax.random.key(1))
    delta = old["discriminator"]["deberta"]["embeddings"]["word_embeddings"]
    delta["delta"] = jax.random.normal(jax.random.key(3), delta["delta"].shape)
    again = init_params(config, jax.random.key(2), **old)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), again, old)
    with pytest.raises(ValueError, match=r"are differences .GDES.: give its generator as well"):
        init_params(config, jax.random.key(2), discriminator=old["discriminator"])


def test_going_on_from_a_model_of_another_shape_is_refused() -> None:
    config = RTDConfig.half_depth(SMALL)
    other = init_params(RTDConfig.half_depth(SMALL.replace(intermediate_size=24)), jax.random.key(1))
    with pytest.raises(ValueError, match=r"weights have \(24,\) at deberta/encoder/layer_0/feed_forward"):
        init_params(config, jax.random.key(2), generator=other["generator"])


def test_samples_follow_the_softmax() -> None:
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    scores = sample_replacements(jnp.broadcast_to(logits, (200, 100, 4)), jnp.arange(4), jax.random.key(0))
    drawn = scores.argmax(axis=-1)
    shares = np.bincount(np.asarray(drawn).ravel(), minlength=4) / drawn.size
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.015)


def test_a_sample_equal_to_the_original_is_not_a_replacement_and_unused_slots_change_nothing() -> None:
    ids = jnp.array([[1, 9, 9, 7, 2]])
    corrupted, replaced = corrupt(ids, jnp.array([[1, 2, 0]]), jnp.array([[5, 6, 0]]), jnp.array([[5, 8, 40]]))
    np.testing.assert_array_equal(corrupted, [[1, 5, 8, 7, 2]])
    np.testing.assert_array_equal(replaced, [[False, False, True, False, False]])


@pytest.mark.slow
def test_accumulation_equals_one_batch() -> None:
    case = load("rtd_step")
    config = rtd_config(case)
    batch, _ = batch_of(case, "inputs/step1/")
    params = read(case, "weights/", config)
    quiet = OptimizerConfig(schedule="warmup_constant", warmup=0, learning_rate=1e-2)
    results = []
    for chunks in (1, 2, 4):
        run = settings(steps=10, accumulation=chunks, optimizer=quiet)
        optimizers = build_optimizers(run)
        step = build_step(
            RTDModels.build(config),
            optimizers,
            run,
            sharing="gdes",
            sample=lambda logits, *_: logits,  # not random: chunks have keys of their own
        )
        state = create_state(optimizers, params, seed=0)
        results.append(jax.jit(step)(state, batch))
    for state, metrics in results[1:]:
        for name, value in results[0][1].items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
        for got, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(results[0][0].params), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-4)


def test_configurations_that_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="embedding_size is 16 in the generator and 32 in the discriminator"):
        RTDConfig(discriminator=SMALL, generator=SMALL.replace(hidden_size=16))
    with pytest.raises(ValueError, match="vocab_size is 50 in the generator and 60"):
        RTDConfig(discriminator=SMALL, generator=SMALL.replace(vocab_size=50), embedding_sharing="nes")
    with pytest.raises(ValueError, match="must be gdes, es or nes"):
        RTDConfig(discriminator=SMALL, generator=SMALL, embedding_sharing="gds")  # type: ignore[arg-type]
    config = RTDConfig.half_depth(SMALL.replace(num_hidden_layers=6))
    assert config.generator.num_hidden_layers == 3
    assert RTDConfig.from_json(config.to_json()) == config
    assert dataclasses.replace(config, embedding_sharing="nes").to_json()["embedding_sharing"] == "nes"
