"""Losses; the masked LM loss and its samples in chunks of the vocabulary equal those of the full logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deberta_jax import losses
from deberta_jax.sharding import make_mesh
from deberta_jax.vocabulary_head import sample_replacements

from ..support.golden_cases import assert_close

ROWS, SLOTS, WIDTH = 3, 5, 8


def inputs(words: int, dtype=jnp.float32) -> tuple:
    """Returns hidden, table, bias and labels; some slots are unused."""
    keys = jax.random.split(jax.random.key(0), 4)
    labels = jax.random.randint(keys[3], (ROWS, SLOTS), 1, words).at[0, 2:].set(0)
    return (
        jax.random.normal(keys[0], (ROWS, SLOTS, WIDTH)).astype(dtype),
        jax.random.normal(keys[1], (words, WIDTH)),
        jax.random.normal(keys[2], (words,)),
        labels.at[2, 0].set(words - 1),
    )


def full_logits(hidden: jax.Array, table: jax.Array, bias: jax.Array) -> jax.Array:
    table = table.astype(hidden.dtype)
    return jnp.einsum("bme,ve->bmv", hidden, table, preferred_element_type=jnp.float32) + bias


def chunked(*arguments, sampler=sample_replacements):
    return losses.masked_lm_and_samples(*arguments, key=jax.random.key(1), sampler=sampler)


@pytest.fixture(
    params=[
        (16, "cpu"),
        (16, "other"),
        pytest.param((7, "cpu"), marks=pytest.mark.slow),
        (20, "cpu"),
        (64, "cpu"),
        (64, "other"),
    ],
    ids=lambda param: f"chunks of {param[0]}, {param[1]}",
)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Splits 40 words into chunks with a smaller last one, into equal chunks, and into one.

    Chunks are reduced in the way of a CPU, and in that of other devices.
    """
    size, device_kind = request.param
    monkeypatch.setattr(losses, "_WORDS_PER_CHUNK", size)
    monkeypatch.setattr(losses, "_LOGITS_PER_CHUNK", 0)
    monkeypatch.setattr(losses, "current_device_kind", lambda: device_kind)
    return size


def test_values_and_gradients_equal_those_of_full_logits(chunk: int) -> None:
    *arrays, labels = inputs(40)

    def plain(*arrays):
        return 0.7 * losses.masked_lm(full_logits(*arrays), labels)[0]

    want, want_grads = jax.jit(jax.value_and_grad(plain, argnums=(0, 1, 2)))(*arrays)
    got, grads = jax.jit(jax.value_and_grad(lambda *arrays: 0.7 * chunked(*arrays, labels)[0], argnums=(0, 1, 2)))(
        *arrays
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for got, want, name in zip(grads, want_grads, ("hidden", "table", "bias"), strict=True):
        assert_close(got, want, 1e-6, name)
    assert chunked(*arrays, labels)[1] == losses.masked_lm(full_logits(*arrays), labels)[1] == (labels > 0).sum()


def test_bfloat16_differs_from_full_logits_by_rounding(chunk: int) -> None:
    *arrays, labels = inputs(40, jnp.bfloat16)

    def plain(*arrays):
        return losses.masked_lm(full_logits(*arrays), labels)[0]

    want, want_grads = jax.jit(jax.value_and_grad(plain, argnums=(0, 1, 2)))(*arrays)
    got, grads = jax.jit(jax.value_and_grad(lambda *arrays: chunked(*arrays, labels)[0], argnums=(0, 1, 2)))(*arrays)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert [grad.dtype for grad in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for got, want, name in zip(grads, want_grads, ("hidden", "table", "bias"), strict=True):
        assert_close(got.astype(jnp.float32), want.astype(jnp.float32), 2**-7, name)


def test_correct_counts_used_slots_whose_label_has_the_highest_logit(chunk: int) -> None:
    *arrays, _ = inputs(40)
    best = full_logits(*arrays).argmax(axis=-1)
    labels = best.at[0, 0].set(0).at[1, 1].set(best[1, 1] - 1)  # an unused slot and a wrong guess
    assert chunked(*arrays, labels)[2] == (best > 0).sum() - 2


def test_sample_is_the_word_of_the_highest_score(chunk: int) -> None:
    *arrays, labels = inputs(40)
    noise = jax.random.normal(jax.random.key(3), (ROWS, SLOTS, 40))

    def sampler(logits: jax.Array, words: jax.Array, key: jax.Array) -> jax.Array:
        return logits + jnp.take(noise, words, axis=-1)

    want = (full_logits(*arrays) + noise).argmax(axis=-1)
    sampled = chunked(*arrays, labels, sampler=sampler)[3]
    assert sampled.dtype == jnp.int32
    np.testing.assert_array_equal(sampled, want)
    constant = chunked(*arrays, labels, sampler=lambda logits, words, key: jnp.zeros_like(logits))[3]
    np.testing.assert_array_equal(constant, 0)  # of equal scores the first word wins


def test_samples_follow_the_softmax(chunk: int) -> None:
    """Each chunk has its own noise: the same noise in two chunks would correlate their words."""
    draws = 60_000
    _, table, bias, _ = inputs(40)
    hidden = jnp.broadcast_to(jax.random.normal(jax.random.key(4), (WIDTH,)) / 4, (1, draws, WIDTH))
    sampled = jax.jit(chunked)(hidden, table, bias, jnp.ones((1, draws), jnp.int32))[3]
    shares = np.bincount(np.asarray(sampled).ravel(), minlength=40) / draws
    want = np.asarray(jax.nn.softmax(full_logits(hidden[:, :1], table, bias)).ravel())
    assert np.abs(shares - want).max() < 5 * np.sqrt(want * (1 - want) / draws).max()
    chi_squared = (draws * (shares - want) ** 2 / want)[draws * want > 5].sum()
    assert chi_squared < 39 + 5 * np.sqrt(2 * 39)


def test_logits_of_the_whole_vocabulary_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_LOGITS_PER_CHUNK", 0)
    words = 3 * losses._WORDS_PER_CHUNK + 100
    arguments = inputs(words)
    program = jax.jit(jax.grad(lambda *arrays: chunked(*arrays)[0], argnums=(0, 1, 2))).lower(*arguments).as_text()
    assert f"{ROWS}x{SLOTS}x{losses._WORDS_PER_CHUNK}xf32" in program
    assert f"{ROWS}x{SLOTS}x{words}x" not in program


def test_sharding_changes_nothing(chunk: int) -> None:
    """Samples included: the noise depends on the position of an element in the whole array."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    hidden, table, bias, labels = inputs(40)
    hidden, labels = jnp.concatenate([hidden, hidden[:1]]), jnp.concatenate([labels, labels[:1]])  # 4 rows
    run = jax.jit(jax.value_and_grad(lambda *a: (chunked(*a)[0], chunked(*a)[1:]), argnums=(0, 1, 2), has_aux=True))
    want = run(hidden, table, bias, labels)
    specs = (("data", "fsdp"),), ("tensor", "fsdp"), ("tensor",), (("data", "fsdp"),)
    placed = [
        jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
        for array, spec in zip((hidden, table, bias, labels), specs, strict=True)
    ]
    got = run(*placed)
    for sharded, plain in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(sharded, plain, rtol=1e-5, atol=1e-5)


def test_losses_are_sums_that_add_up() -> None:
    logits = jax.random.normal(jax.random.key(0), (6, 5, 11))
    labels = jax.random.randint(jax.random.key(1), (6, 5), 0, 11)
    masked_lm, classification = jax.jit(losses.masked_lm), jax.jit(losses.classification)
    whole = masked_lm(logits, labels)
    parts = [masked_lm(logits[part], labels[part]) for part in (slice(0, 3), slice(3, 6))]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)
    assert whole.weight == (labels > 0).sum()
    scores, classes, weight = logits[:3, 0], jnp.array([1, 2, -1]), jnp.array([1.0, 0.0, 1.0])
    total, count = classification(scores, classes, weight)
    assert count == 1
    np.testing.assert_allclose(total, -jax.nn.log_softmax(scores[0])[1], rtol=1e-6)


# -------------------------------------------------------------------- losses of classes


def drawn(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a wide range, and labels of 0 and 1 of the same shape."""
    rng = np.random.default_rng(3)
    return rng.normal(0, 4, shape).astype(np.float32), (rng.random(shape) < 0.3).astype(np.float32)


def mean(loss: losses.LossSum) -> jax.Array:
    return loss.total / loss.weight


def test_losses_by_hand() -> None:
    even = jnp.zeros((2, 2))
    log2 = np.log(2)
    weighted = losses.classification(even, np.array([0, 1]), class_weights=np.array([3.0, 1.0], np.float32))
    np.testing.assert_allclose(weighted, [4 * log2, 4], rtol=1e-6)
    ignored = losses.classification(even, np.array([0, -1]), class_weights=np.array([3.0, 1.0], np.float32))
    np.testing.assert_allclose(ignored, [3 * log2, 3], rtol=1e-6)
    focal = losses.classification(even, np.array([0, 1]), focal_gamma=2.0)
    np.testing.assert_allclose(focal, [2 * 0.25 * log2, 2], rtol=1e-6)
    labels = np.array([[1, 0], [0.5, 0]], np.float32)
    np.testing.assert_allclose(losses.binary(even, labels), [2 * log2, 2], rtol=1e-6)
    heavy = losses.binary(even, labels, positive_weights=np.array([5.0, 5.0], np.float32))
    np.testing.assert_allclose(heavy, [(5 + 1) / 2 * log2 + (3 + 1) / 2 * log2, 2], rtol=1e-6)
    zero, one = jnp.zeros(1), jnp.ones(1)
    np.testing.assert_allclose(losses.pairwise(one, zero).total, np.log1p(np.exp(-1)), rtol=1e-6)
    smooth = losses.pairwise(one, zero, smoothing=0.2).total
    np.testing.assert_allclose(smooth, 0.9 * np.log1p(np.exp(-1)) + 0.1 * np.log1p(np.exp(1)), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_has_a_finite_gradient_where_the_model_is_certain(gamma: float) -> None:
    logits = jnp.array([[200.0, -200.0], [-200.0, 200.0]])
    labels = np.array([0, 0])
    grads = [
        jax.grad(lambda x: losses.classification(x, labels, focal_gamma=gamma).total)(logits),
        jax.grad(lambda x: losses.binary(x, np.array([[1.0, 0], [1, 0]], np.float32), focal_gamma=gamma).total)(logits),
    ]
    assert np.isfinite(grads).all()


@pytest.mark.torch
def test_losses_equal_those_of_pytorch() -> None:
    """Values and gradients, with weights, label smoothing and ignored labels."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    logits, targets = drawn(7, 5)
    classes = np.array([0, 4, 2, -100, 1, 1, 3])
    weights = np.array([0.5, 1, 2, 3, 0.25], np.float32)
    ours_and_theirs = [
        (
            lambda x: mean(losses.classification(x, classes, smoothing=0.1, class_weights=weights)),
            lambda x: functional.cross_entropy(
                x, torch.tensor(classes), weight=torch.tensor(weights), label_smoothing=0.1
            ),
        ),
        (
            lambda x: mean(losses.binary(x, targets, positive_weights=weights)),
            lambda x: functional.binary_cross_entropy_with_logits(
                x, torch.tensor(targets), pos_weight=torch.tensor(weights)
            ),
        ),
        (
            lambda x: mean(losses.binary(x, 0.8 * targets, smoothing=0.1)),
            lambda x: functional.binary_cross_entropy_with_logits(x, 0.9 * torch.tensor(0.8 * targets) + 0.05),
        ),
        (
            lambda x: mean(losses.binary(x, targets, focal_gamma=2.0)),
            lambda x: (
                functional.binary_cross_entropy_with_logits(x, torch.tensor(targets), reduction="none")
                * (1 - (torch.tensor(targets) * x.sigmoid() + (1 - torch.tensor(targets)) * (1 - x.sigmoid()))) ** 2
            ).mean(),
        ),
        (
            lambda x: mean(losses.classification(x, np.abs(classes) % 5, focal_gamma=1.5)),
            lambda x: (
                functional.cross_entropy(x, torch.tensor(np.abs(classes) % 5), reduction="none")
                * (1 - x.softmax(-1)[torch.arange(7), torch.tensor(np.abs(classes) % 5)]) ** 1.5
            ).mean(),
        ),
        (
            lambda x: mean(losses.pairwise(x[:, 0], x[:, 1])),
            lambda x: -functional.logsigmoid(x[:, 0] - x[:, 1]).mean(),
        ),
    ]
    for ours, theirs in ours_and_theirs:
        value, gradient = jax.value_and_grad(ours)(jnp.asarray(logits))
        leaf = torch.tensor(logits, requires_grad=True)
        expected = theirs(leaf)
        expected.backward()
        np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)
