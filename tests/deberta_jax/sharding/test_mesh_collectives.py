"""A step compiled for TPUs exchanges what it should: the collectives that are as large as the vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding, PartitionSpec

from deberta_jax import losses
from deberta_jax.sharding import batch_sharding, constrain_batch, lookup, make_mesh, named_shardings, sum_over_batch
from deberta_jax.train.compile_ahead.hlo_costs import Collective, read_cost
from deberta_jax.train.compile_ahead.tpu_compiler import compile_for_tpu, topology, trace
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.engine.optimizer import apply_gradients, build_optimizer
from deberta_jax.train.engine.state import TrainState

from ...support.tpu_topologies import needs_libtpu

pytestmark = [pytest.mark.slow, needs_libtpu]
BATCH, LENGTH, SLOTS, WIDTH = 512, 128, 20, 512
ACTIVATIONS = BATCH * LENGTH * WIDTH * 4 // 16  # bytes of the float32 activations on one of 16 chips


def collectives(mesh: jax.sharding.Mesh, vocab: int, *, masked_lm: bool) -> list[Collective]:
    """Compiles a minimal step (embeddings, a dense layer, optionally the masked-LM loss, an update) for a TPU mesh."""
    optimizer = build_optimizer(OptimizerConfig(), total_steps=100)

    def create() -> TrainState:
        params = {
            "word_embeddings": {"embedding": jnp.zeros((vocab, WIDTH))},
            "attention": {"query_proj": {"kernel": jnp.zeros((WIDTH, WIDTH)), "bias": jnp.zeros(WIDTH)}},
            "mlm_head": {"bias": jnp.zeros(vocab)},
        }
        return TrainState.create(params, optimizer.init(params), seed=0)

    def loss(params: dict, ids: jax.Array, labels: jax.Array) -> jax.Array:
        table, dense = params["word_embeddings"]["embedding"], params["attention"]["query_proj"]
        hidden = constrain_batch(lookup(table, ids, path="word_embeddings/embedding")).astype(jnp.bfloat16)
        hidden = jnp.tanh(hidden @ dense["kernel"].astype(jnp.bfloat16) + dense["bias"].astype(jnp.bfloat16))
        if not masked_lm:
            return jnp.square(hidden.astype(jnp.float32)).sum()
        return losses.masked_lm_and_samples(
            hidden[:, :SLOTS],
            table,
            params["mlm_head"]["bias"],
            labels,
            key=jax.random.key(0),
            sampler=lambda logits, words, key: logits,
        )[0]

    def step(state: TrainState, ids: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
        grads = jax.grad(loss)(state.params, ids, labels)
        params, opt_state, norm = apply_gradients(optimizer, grads, state.opt_state, state.params)
        return state.replace(params=params, opt_state=opt_state), norm

    state, batch = jax.eval_shape(create), batch_sharding(mesh)
    placement = named_shardings(state, mesh)
    compiled = compile_for_tpu(
        trace(
            jax.jit(step, donate_argnums=0, out_shardings=(placement, None)),
            jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, placement),
            *(jax.ShapeDtypeStruct((BATCH, length), jnp.int32, sharding=batch) for length in (LENGTH, SLOTS)),
        )
    )
    return list(read_cost(compiled.as_text()).collectives)


def bytes_of(sent: list[Collective], kind: str, *, group: int | None = None) -> int:
    return sum(collective.bytes for collective in sent if collective.kind == kind and group in (None, collective.group))


def test_data_parallelism_sums_gradients_and_nothing_else() -> None:
    vocab = 16384
    sent = collectives(make_mesh(devices=topology("v5e:4x4")[1]), vocab, masked_lm=True)
    # The table's gradient is summed twice: once for the look-up, and in chunks for the loss.
    assert bytes_of(sent, "all-reduce", group=16) == pytest.approx(2 * vocab * WIDTH * 4, rel=0.02)
    assert sum(collective.bytes for collective in sent if collective.kind != "all-reduce") < 4096


def test_zero_scatters_gradients_and_gathers_parameters() -> None:
    vocab = 16384
    table = vocab * WIDTH * 4
    sent = collectives(make_mesh(zero=4, devices=topology("v5e:4x4")[1]), vocab, masked_lm=True)
    assert bytes_of(sent, "reduce-scatter", group=4) == pytest.approx(2 * table, rel=0.04)
    assert bytes_of(sent, "all-reduce") == pytest.approx(2 * table / 4, rel=0.04)  # the shards' sums over data
    assert bytes_of(sent, "all-reduce", group=16) < 0.003 * table  # biases
    assert bytes_of(sent, "all-gather", group=4) == pytest.approx(table + WIDTH * WIDTH * 4, rel=0.01)


@pytest.mark.parametrize("vocab", [16384, 2048], ids=["vectors are exchanged", "the table is exchanged"])
def test_fsdp_exchanges_the_smaller_of_vectors_and_table(vocab: int) -> None:
    sent = collectives(make_mesh(fsdp=4, devices=topology("v5e:4x4")[1]), vocab, masked_lm=False)
    table, kernel = vocab * WIDTH * 4, WIDTH * WIDTH * 2
    ids = BATCH * LENGTH * 4 // 4  # of the 4 chips that exchange vectors, in both passes
    gathered = kernel + (2 * ids if vocab > BATCH * LENGTH // 16 else table / 2)  # the table in bfloat16
    assert bytes_of(sent, "all-gather") <= gathered * 1.01
    assert bytes_of(sent, "all-reduce") <= table / 4 + kernel  # the shards' sums over data
    # The vectors in bfloat16 and their gradient in float32.
    assert bytes_of(sent, "all-to-all") <= (1.5 * ACTIVATIONS if table > ACTIVATIONS else 0)


def test_the_sum_of_a_table_that_a_kernel_writes_is_scattered_in_narrow_parts() -> None:
    """A part has 64 of the 128 features of a tile. XLA alone would sum the whole table on every chip."""
    mesh = make_mesh(fsdp=4, devices=topology("v5e:4x4")[1])
    words, features, batch = 8192, 256, PartitionSpec(("data", "fsdp"))

    def double(source: Any, target: Any) -> None:
        target[...] = source[...] * 2

    def local(rows: jax.Array) -> jax.Array:
        block = pl.BlockSpec((512, features), lambda i: (i, 0))
        shape = jax.ShapeDtypeStruct((words, features), jnp.float32)
        kernel = pl.pallas_call(double, grid=(words // 512,), in_specs=[block], out_specs=block, out_shape=shape)
        return sum_over_batch(kernel(rows), PartitionSpec(None, "fsdp"))

    def total(rows: jax.Array) -> jax.Array:
        return jax.shard_map(local, in_specs=batch, out_specs=PartitionSpec(None, "fsdp"), check_vma=False)(rows)

    rows = jax.ShapeDtypeStruct((16 * words, features), jnp.float32, sharding=NamedSharding(mesh, batch))
    with jax.set_mesh(mesh):
        sent = list(read_cost(compile_for_tpu(trace(jax.jit(total), rows)).as_text()).collectives)
    table = words * features * 4
    assert bytes_of(sent, "reduce-scatter", group=4) == table
    assert bytes_of(sent, "all-reduce") == table / 4  # the parts' sums over data


def test_only_data_crosses_slices() -> None:
    from jax.experimental import topologies

    topology("v5e:4x4")  # sets the environment variables that libtpu reads
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=2).devices
    mesh = make_mesh(zero=4, devices=devices)
    assert dict(mesh.shape) == {"data": 8, "zero": 4, "fsdp": 1, "tensor": 1}
    assert all(len({device.slice_index for device in part.flat}) == 1 for part in mesh.devices)
    sent = collectives(mesh, 2048, masked_lm=False)
    assert bytes_of(sent, "reduce-scatter", group=4) >= 2048 * WIDTH * 4
    with pytest.raises(ValueError, match="data 1 is not a multiple of the 2 slices"):
        make_mesh(zero=32, devices=devices)


@pytest.mark.parametrize("sizes", [{"zero": 4, "fsdp": 4}, {"zero": 16}, {"tensor": 4, "zero": 4}])
def test_axes_may_split_a_side_of_the_torus(sizes: dict[str, int]) -> None:
    for name in ("v5e:16x16", "v5p:4x4x4"):
        mesh = make_mesh(**sizes, devices=topology(name)[1])
        assert len({device.id for device in mesh.devices.flat}) == mesh.size
