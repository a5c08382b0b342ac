"""Replaced token detection against the official code: joint losses and three complete training steps."""

import dataclasses
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import UserError, losses
from deberta_jax.rtd import (
    PretrainingBatch,
    RTDConfig,
    RTDModels,
    Sampler,
    corrupt,
    discriminator_view,
    generator_pass,
    init_params,
    standalone_discriminator,
)
from deberta_jax.train.configs import OptimizerConfig, PretrainConfig
from deberta_jax.train.pretrain import build_optimizers, build_step, create_state
from deberta_jax.vocabulary_head import sample_replacements

from ..support.configs import pretrain_config
from ..support.golden_cases import Case, assert_close, assert_gradients_close, load, masked_slots
from ..support.small_models import SMALL, random_params

CONFIG = RTDConfig.half_depth(SMALL.replace(num_hidden_layers=1))  # its generator has the decoder's two layers
IDS = jnp.arange(5, 15)[None]


def read_params(case: Case, prefix: str, config: RTDConfig) -> dict:
    """Reads the parameters of both models, named `generator.*` and `discriminator.*`."""
    shared = config.embedding_sharing != "nes"
    return {
        "generator": case.params(f"{prefix}generator.", config.generator),
        "discriminator": case.params(f"{prefix}discriminator.", config.discriminator, shared_embeddings=shared),
    }


def batch_of(case: Case, prefix: str) -> tuple[dict, np.ndarray]:
    """Returns a batch with the positions that the official run masked, and the ids that it sampled there."""
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


def draw_always(ids: jax.Array | np.ndarray) -> Sampler:
    """Returns a sampler that draws these ids [B, M]."""
    return lambda logits, words, key: (words == ids[..., None]).astype(jnp.float32)


def settings(**changes) -> PretrainConfig:
    return pretrain_config(**changes)


def test_three_decoupled_steps_equal_golden_losses_norms_and_weights() -> None:
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
    models, optimizers, params = RTDModels.build(config), build_optimizers(run), read_params(case, "weights/", config)
    state = create_state(optimizers, params, seed=0)

    @jax.jit
    def take_step(state, batch, sampled):
        return build_step(models, optimizers, run, sharing="gdes", sample=draw_always(sampled))(state, batch)

    for number in (1, 2, 3):
        batch, sampled = batch_of(case, f"inputs/step{number}/")
        state, metrics = take_step(state, batch, sampled)
        want = case.group(f"outputs/step{number}/")
        close = {"rtol": 1e-5}
        np.testing.assert_allclose(metrics["masked_loss_sum"] / metrics["masked_count"], want["gen_loss"], **close)
        np.testing.assert_allclose(metrics["rtd_loss_sum"] / metrics["rtd_count"], want["disc_loss"], **close)
        np.testing.assert_allclose(metrics["generator_grad_norm"], want["grad_norm_gen"], **close)
        np.testing.assert_allclose(metrics["discriminator_grad_norm"], want["grad_norm_disc"], **close)
        np.testing.assert_allclose(metrics["learning_rate"], want["lr_gen"], rtol=1e-6)
        after = read_params(case, f"weights_after_step{number}/", config)
        for (path, got), leaf in zip(jax.tree.leaves_with_path(state.params), jax.tree.leaves(after), strict=True):
            assert_close(got, leaf, 1e-4, f"step {number}: {jax.tree_util.keystr(path)}")
        corrupted, replaced = corrupt(batch["input_ids"], batch["masked_positions"], batch["masked_labels"], sampled)
        np.testing.assert_array_equal(corrupted, want["corrupted_ids"])
        np.testing.assert_array_equal(replaced, want["rtd_labels"])


@pytest.mark.parametrize("name", ["rtd_es", pytest.param("rtd_nes", marks=pytest.mark.slow), "rtd_gdes_joint"])
def test_joint_losses_and_gradients_equal_golden(name: str) -> None:
    """Both models have one backward pass; its gradients are the update of plain gradient descent with rate 1."""
    import optax

    case = load(name)
    config = rtd_config(case)
    params, (batch, sampled) = read_params(case, "weights/", config), batch_of(case, "inputs/")
    run = settings(decoupled=False, rtd_lambda=case.config["train"]["rtd_lambda"])
    descent = {"joint": optax.sgd(1.0)}
    step = build_step(
        RTDModels.build(config),
        descent,
        run,
        sharing=config.embedding_sharing,
        sample=draw_always(sampled),
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
    want = read_params(case, "grads/", config)
    for model in ("generator", "discriminator"):
        assert_gradients_close(grads[model], want[model], 1e-4)


def random_run(*, sharing: str = "gdes", seed: int = 0) -> dict:
    """Returns random parameters of a run, with a random `delta` under GDES and separate tables otherwise."""
    models = RTDModels.build(CONFIG)
    generator = random_params(models.generator, IDS, seed=seed)
    discriminator = random_params(models.discriminator, IDS, seed=seed + 1)
    embeddings = discriminator["deberta"]["embeddings"]
    if sharing == "gdes":
        embeddings["word_embeddings"] = {"delta": embeddings["word_embeddings"]["embedding"]}
        positions = generator["deberta"]["embeddings"]["position_embeddings"]["embedding"]
        embeddings["position_embeddings"] = {"delta": np.zeros_like(positions)}
    return {"generator": generator, "discriminator": discriminator}


def sine_of_logits(discriminator: dict, model=None) -> jax.Array:
    model = model or RTDModels.build(CONFIG).discriminator
    return jnp.sin(model.apply({"params": discriminator}, IDS).logits).sum()


def test_gdes_equals_one_table_and_its_gradient_goes_to_the_difference() -> None:
    params = random_run()

    @jax.jit
    def run(params):
        shared = jax.value_and_grad(lambda params: sine_of_logits(discriminator_view(params, "gdes")))(params)
        return shared, jax.value_and_grad(sine_of_logits)(standalone_discriminator(params, "gdes"))

    (loss, grads), (want, want_grads) = run(params)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(grads["generator"]))
    for tree in (grads["discriminator"], want_grads):
        (tree["table"],) = tree["deberta"]["embeddings"].pop("word_embeddings").values()
        del tree["deberta"]["embeddings"]["position_embeddings"]  # not read by the discriminator
    assert_gradients_close(grads["discriminator"], want_grads, 1e-4)


def test_gdes_never_sums_or_casts_a_whole_table() -> None:
    narrow, params = RTDModels.build(CONFIG, dtype=jnp.bfloat16).discriminator, random_run()
    run = jax.jit(lambda params: sine_of_logits(discriminator_view(params, "gdes"), narrow))
    whole = f"tensor<{SMALL.vocab_size}x{SMALL.hidden_size}x"
    lines = [line for line in run.lower(params).as_text().splitlines() if whole in line]
    lookups = [line for line in lines if "func" not in line and "call" not in line]
    assert lookups
    assert all("stablehlo.gather" in line for line in lookups), lookups


def test_generator_pass_equals_full_logits() -> None:
    """The golden steps check its gradients."""
    model, params = RTDModels.build(CONFIG).generator, random_run()["generator"]
    batch: PretrainingBatch = {
        "input_ids": jax.random.randint(jax.random.key(1), (2, 9), 5, 60),
        "segment_ids": jnp.ones((2, 9), jnp.int32),
        "masked_positions": jnp.array([[1, 4], [8, 0]]),
        "masked_labels": jnp.array([[7, 30], [12, 0]]),
    }

    @jax.jit
    def run(params):
        key = jax.random.key(0)
        out = generator_pass(model, params, batch, key=key, sample=lambda logits, *_: -logits, train=False)
        logits = model.apply(
            {"params": params},
            batch["input_ids"],
            segment_ids=batch["segment_ids"],
            masked_positions=batch["masked_positions"],
        ).logits
        return out, logits

    out, logits = run(params)
    labels = batch["masked_labels"]
    loss_sum, weight = losses.masked_lm(logits, labels)
    np.testing.assert_allclose(out.loss_sum, loss_sum, rtol=1e-6)
    assert out.weight == weight == 3
    assert out.correct == ((logits.argmax(-1) == labels) & (labels > 0)).sum()
    np.testing.assert_array_equal(out.sampled, logits.argmin(-1))


@pytest.fixture(scope="module")
def pretrained() -> dict:
    """Parameters of a finished run without embedding sharing."""
    return random_run(sharing="nes", seed=10)


def test_a_configuration_without_embedding_sharing_has_that_of_deberta_v3() -> None:
    fields = CONFIG.to_json()
    assert RTDConfig.from_json(fields | {"embedding_sharing": "none"}).embedding_sharing == "nes"  # the official name
    del fields["embedding_sharing"]
    assert RTDConfig.from_json(fields).embedding_sharing == "gdes"


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
@pytest.mark.parametrize("with_generator", [True, False])
def test_pretrained_discriminator_keeps_its_embeddings(pretrained: dict, sharing: str, with_generator: bool) -> None:
    """This differs deliberately from the official code, which starts it from the generator's table."""
    config = dataclasses.replace(CONFIG, embedding_sharing=sharing)  # type: ignore[arg-type]
    given = pretrained if with_generator else {"discriminator": pretrained["discriminator"]}
    params = init_params(config, jax.random.key(2), **given)
    generator, discriminator = (params[name]["deberta"]["embeddings"] for name in ("generator", "discriminator"))
    table = pretrained["discriminator"]["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    assert ("embedding" in discriminator.get("word_embeddings", {})) == (sharing == "nes")
    if with_generator:
        jax.tree.map(np.testing.assert_array_equal, params["generator"], pretrained["generator"])
    elif sharing == "nes":
        assert not np.allclose(generator["word_embeddings"]["embedding"], table)
    else:
        np.testing.assert_array_equal(generator["word_embeddings"]["embedding"], table)
    if not (sharing == "es" and with_generator):  # there the shared table is the generator's
        start = standalone_discriminator(params, sharing)["deberta"]["embeddings"]["word_embeddings"]["embedding"]
        np.testing.assert_allclose(start, table, atol=1e-6)


def test_pretrained_differences_need_their_generator() -> None:
    run = random_run()
    again = init_params(CONFIG, jax.random.key(2), **run)
    chex.assert_trees_all_close(again, run, atol=1e-6)
    with pytest.raises(UserError, match=r"are differences .GDES.: give its generator as well, with --init-generator"):
        init_params(CONFIG, jax.random.key(2), discriminator=run["discriminator"])


def test_samples_follow_the_softmax() -> None:
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    scores = sample_replacements(jnp.broadcast_to(logits, (200, 100, 4)), jnp.arange(4), jax.random.key(0))
    drawn = scores.argmax(axis=-1)
    shares = np.bincount(np.asarray(drawn).ravel(), minlength=4) / drawn.size
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.015)


def test_sample_equal_to_the_original_is_not_a_replacement() -> None:
    ids = jnp.array([[1, 9, 9, 7, 2]])
    corrupted, replaced = corrupt(ids, jnp.array([[1, 2, 0]]), jnp.array([[5, 6, 0]]), jnp.array([[5, 8, 40]]))
    np.testing.assert_array_equal(corrupted, [[1, 5, 8, 7, 2]])
    np.testing.assert_array_equal(replaced, [[False, False, True, False, False]])


@pytest.mark.slow
def test_accumulation_equals_one_batch() -> None:
    case = load("rtd_step")
    config = rtd_config(case)
    batch, _ = batch_of(case, "inputs/step1/")
    params = read_params(case, "weights/", config)
    optimizer = OptimizerConfig(schedule="warmup_constant", warmup=0, learning_rate=1e-2)
    results = []
    for chunks in (1, 2, 4):
        run = settings(steps=10, accumulation=chunks, optimizer=optimizer)
        optimizers = build_optimizers(run)
        step = build_step(
            RTDModels.build(config),
            optimizers,
            run,
            sharing="gdes",
            sample=lambda logits, *_: logits,  # not random, because every chunk has its own key
        )
        state = create_state(optimizers, params, seed=0)
        results.append(jax.jit(step)(state, batch))
    for state, metrics in results[1:]:
        for name, value in results[0][1].items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
        for got, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(results[0][0].params), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-4)


def test_configurations_that_cannot_share_are_rejected() -> None:
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "rtd.json is not JSON"),
        ("[]", "rtd.json holds a list; expected a JSON object"),
        ('{"generator": {}}', r"rtd.json: an RTD configuration has the fields .* missing: \['discriminator'\]"),
        (
            '{"generator": "a", "discriminator": {}}',
            "rtd.json: generator is 'a'; it must be the configuration",
        ),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rtd.json").write_text(content)
    with pytest.raises(UserError, match=message):
        RTDConfig.from_json(tmp_path / "rtd.json")


def test_unknown_fields_of_a_pair_are_listed(caplog: pytest.LogCaptureFixture) -> None:
    config = RTDConfig.half_depth(SMALL)
    fields = {**config.to_json(), "comment": "mine", "transformers_version": "5.0.0"}
    assert RTDConfig.from_json(fields) == config
    assert caplog.messages == ["the RTD configuration: fields that are not used: comment"]
    sharing = fields.pop("embedding_sharing")
    with pytest.raises(UserError, match=r"unknown field 'embeding_sharing'\. Did you mean 'embedding_sharing'"):
        RTDConfig.from_json({**fields, "embeding_sharing": sharing})
