"""The vocabulary kernels against the loss and samples in chunks of the vocabulary, in TPU interpret mode."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deberta_jax import losses
from deberta_jax.heads import LogitFactors
from deberta_jax.kernels import vocabulary_plan
from deberta_jax.kernels.vocabulary import visit_vocabulary, vocabulary_gradients
from deberta_jax.random import SlotSeeds
from deberta_jax.sharding import make_mesh
from deberta_jax.train.compile_ahead.tpu_compiler import compile_for_tpu, topology
from deberta_jax.vocabulary_head import masked_lm_pass, sample_replacements

from ...support.attention_cases import interpreted_kernels
from ...support.golden_cases import assert_close
from ...support.tpu_topologies import needs_libtpu, small_slice

ROWS, SLOTS, WIDTH, WORDS = 4, 80, 16, 600  # several blocks and tiles, the last block incomplete
KEY = jax.random.key(1)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_WORDS", "_SLOTS", "_FORWARD_SLOTS"):
        monkeypatch.setattr(vocabulary_plan, name, 256)


def arguments(dtype: Any = jnp.float32) -> tuple[LogitFactors, jax.Array]:
    """Returns factors of logits, and labels: some slots are unused, some labels are the likeliest word."""
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (ROWS, SLOTS, WIDTH)).astype(dtype)
    factors = LogitFactors(hidden, jax.random.normal(keys[1], (WORDS, WIDTH)), jax.random.normal(keys[2], (WORDS,)))
    labels = jax.random.randint(keys[3], (ROWS, SLOTS), 1, WORDS).at[0, 2:].set(0)
    likeliest = factors.logits().argmax(axis=-1)
    return factors, labels.at[1].set(likeliest[1]).at[2, 0].set(WORDS - 1)


def run(implementation: str, factors: LogitFactors, labels: jax.Array) -> tuple[Any, LogitFactors]:
    """Returns loss, counts and samples, and the gradients of 0.7 times the loss."""

    def loss(factors: LogitFactors) -> tuple[jax.Array, Any]:
        out = masked_lm_pass(factors, labels, key=KEY, sampler=sample_replacements, implementation=implementation)
        return 0.7 * out.loss_sum, out

    gradients, out = jax.jit(jax.grad(loss, has_aux=True))(factors)
    return out, gradients


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_loss_samples_and_gradients_equal_those_in_chunks(dtype) -> None:
    factors, labels = arguments(dtype)
    want, want_gradients = run("xla", factors, labels)
    with interpreted_kernels():
        got, gradients = run("pallas", factors, labels)
    np.testing.assert_allclose(got.loss_sum, want.loss_sum, rtol=1e-6)
    assert (got.weight, got.correct) == (want.weight, want.correct)
    assert got.correct >= SLOTS
    assert got.sampled.dtype == jnp.int32
    np.testing.assert_array_equal(got.sampled, want.sampled)
    assert [leaf.dtype for leaf in jax.tree.leaves(gradients)] == [dtype, jnp.float32, jnp.float32]
    for actual, leaf in zip(jax.tree.leaves(gradients), jax.tree.leaves(want_gradients), strict=True):
        assert_close(actual.astype(jnp.float32), leaf.astype(jnp.float32), 1e-5 if dtype == jnp.float32 else 2**-7)


@pytest.mark.slow
def test_slots_that_fill_a_tile_up_add_nothing_whatever_the_biases_are() -> None:
    """Their logits are the biases, of which one above 88 has no exponential in float32."""
    factors, labels = arguments()
    hidden, weights = factors.hidden[0, :40], jnp.ones(40)
    normalizer = jax.nn.logsumexp(hidden @ factors.table.T + factors.bias, axis=-1)

    def gradients(shift: float) -> Any:
        return vocabulary_gradients(
            hidden, factors.table, factors.bias + shift, labels[0, :40], normalizer + shift, weights
        )

    with interpreted_kernels():
        shifted, want = gradients(128.0), gradients(0.0)
    for actual, leaf in zip(shifted, want, strict=True):
        np.testing.assert_allclose(actual, leaf, atol=1e-4)


def test_chunks_are_used_without_a_tpu_for_other_samplers_and_on_request() -> None:
    factors, labels = arguments()

    def kernels(**changes: Any) -> bool:
        call = functools.partial(masked_lm_pass, **{"key": KEY, "sampler": sample_replacements, **changes})
        return "pallas_call" in str(jax.make_jaxpr(call)(factors, labels))

    with interpreted_kernels():
        assert kernels(implementation="pallas")
    assert not kernels(implementation="auto")
    assert not kernels(implementation="xla")
    assert not kernels(implementation="pallas", sampler=lambda logits, words, key: logits)


@pytest.mark.slow
def test_more_slots_than_one_call_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    factors, labels = arguments()
    want, want_gradients = run("xla", factors, labels)
    monkeypatch.setattr(vocabulary_plan, "_GRADIENT_BYTES", 4 * WIDTH * 256)
    assert vocabulary_plan.slots_per_call(WIDTH) == 256 < ROWS * SLOTS
    with interpreted_kernels():
        got, gradients = run("pallas", factors, labels)
    for actual, leaf in zip(jax.tree.leaves((got, gradients)), jax.tree.leaves((want, want_gradients)), strict=True):
        np.testing.assert_allclose(actual, leaf, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2, "tensor": 2}, {"zero": 2, "tensor": 1, "fsdp": 2}])
def test_a_mesh_changes_nothing(mesh: dict[str, int]) -> None:
    """Samples included. Every device has some of the rows, and those along `tensor` some of the words."""
    factors, labels = arguments()
    want, want_gradients = run("xla", factors, labels)
    count = np.prod(list(mesh.values()))
    devices = make_mesh(**mesh, devices=jax.devices()[:count])
    batch = ("data", "zero", "fsdp")
    specs = LogitFactors(PartitionSpec(batch), PartitionSpec("tensor", "fsdp"), PartitionSpec("tensor"))
    placed = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(devices, spec)), factors, specs)
    placed_labels = jax.device_put(labels, NamedSharding(devices, PartitionSpec(batch)))
    with interpreted_kernels(), jax.set_mesh(devices):
        got, gradients = run("pallas", placed, placed_labels)
    np.testing.assert_array_equal(got.sampled, want.sampled)
    for actual, leaf in zip(jax.tree.leaves((got, gradients)), jax.tree.leaves((want, want_gradients)), strict=True):
        np.testing.assert_allclose(actual, leaf, rtol=1e-5, atol=1e-5)
    split = mesh.get("tensor", 1) * mesh.get("zero", 1) * mesh.get("fsdp", 1)  # as the moments of the optimizer are
    assert gradients.table.addressable_shards[0].data.size == WORDS * WIDTH // split


def test_samples_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise depends on key, slot and word: a chunk, a block of the kernel or a device's words have no own key."""
    factors, labels = arguments()
    whole = run("xla", factors, labels)[0].sampled
    monkeypatch.setattr(losses, "_WORDS_PER_CHUNK", 37)
    monkeypatch.setattr(losses, "_LOGITS_PER_CHUNK", 0)
    np.testing.assert_array_equal(run("xla", factors, labels)[0].sampled, whole)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("kind", ["v5e", "v5p", "v6e", "tpu7x"])
def test_kernels_compile_for_every_chip_but_v4(kind: str, dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks of the size that runs use, and as many slots as one call takes; float32 at the largest width."""
    monkeypatch.undo()
    _, devices = topology(small_slice(kind))
    width, words = 768 if dtype == jnp.bfloat16 else 1536, 1500
    assert vocabulary_plan.unsupported(width, dtype, devices[0].device_kind) is None
    slots = vocabulary_plan.slots_per_call(width)

    def both(hidden, table, bias, labels, seeds):
        found = visit_vocabulary(hidden, table, bias, labels, seeds)
        return found, vocabulary_gradients(hidden, table, bias, labels, found.normalizer, found.label_logit)

    sharding = jax.sharding.SingleDeviceSharding(devices[0])

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    program = jax.jit(both).trace(
        array(slots, width, dtype=dtype),
        array(words, width, dtype=jnp.float32),
        array(words, dtype=jnp.float32),
        array(slots),
        SlotSeeds(array(slots), array(slots)),
    )
    text = compile_for_tpu(program).as_text()
    assert "vocabulary_forward" in text
    assert "vocabulary_backward" in text
    assert f"{words},{slots}]" not in text  # no logits in HBM, in either order
    assert f"{slots},{words}]" not in text


def test_a_v4_and_other_widths_use_chunks() -> None:
    assert "VMEM" in str(vocabulary_plan.unsupported(768, jnp.bfloat16, "TPU v4"))
    for width in (100, 1664):
        assert "multiples of 128 up to 1536" in str(vocabulary_plan.unsupported(width, jnp.bfloat16, "TPU v5 lite"))
    assert "float16" in str(vocabulary_plan.unsupported(768, jnp.float16, "TPU v5 lite"))
