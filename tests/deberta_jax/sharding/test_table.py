import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from deberta_jax import DebertaConfig, DebertaForSequenceClassification, DebertaForTokenClassification
from deberta_jax.models import DebertaForQuestionAnswering
from deberta_jax.rtd import RTDConfig, init_params
from deberta_jax.sharding import (
    BATCH_AXES,
    MESH_AXES,
    batch_devices,
    batch_sharding,
    constrain,
    constrain_batch,
    local_rows,
    lookup,
    make_mesh,
    matching_rules,
    partition,
    path_of,
    place_batch,
    shardings,
)
from deberta_jax.sharding.table import RULES

from ...support.small_models import SMALL


def every_path() -> set[str]:
    """Parameter paths of every kind of model."""
    wide = SMALL.replace(conv_kernel_size=3, type_vocab_size=2, share_att_key=False, embedding_size=16)
    electra = DebertaConfig.from_json({"model_type": "electra", "vocab_size": 30})
    key, ids = jax.random.key(0), jnp.ones((1, 8), jnp.int32)
    trees = [
        jax.eval_shape(lambda: init_params(RTDConfig.half_depth(SMALL), key)),
        jax.eval_shape(DebertaForSequenceClassification(wide).init, key, ids),
        jax.eval_shape(DebertaForSequenceClassification(electra).init, key, ids),
        jax.eval_shape(DebertaForTokenClassification(SMALL, projection=True).init, key, ids),
        jax.eval_shape(DebertaForQuestionAnswering(SMALL).init, key, ids),
    ]
    return {path_of(path) for tree in trees for path, _ in jax.tree.leaves_with_path(tree)}


def test_every_parameter_matches_exactly_one_rule_and_every_rule_is_used() -> None:
    used = set()
    for path in every_path():
        rules = matching_rules(path)
        assert len(rules) == 1, f"{path} matches rules {rules}"
        used.add(rules[0])
    assert used == set(range(len(RULES)))


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (4, 2), (2, 2), (1, 4)])
def test_outputs_do_not_depend_on_the_mesh(fsdp: int, tensor: int) -> None:
    config = SMALL.replace(hidden_size=32)
    model, ids = (
        DebertaForSequenceClassification(config),
        np.asarray(jax.random.randint(jax.random.key(1), (8, 12), 5, 60)),
    )
    params = jax.jit(model.init)(jax.random.key(0), ids)["params"]
    want = jax.jit(model.apply)({"params": params}, ids).logits
    mesh = make_mesh(fsdp=fsdp, tensor=tensor)
    assert mesh.axis_names == MESH_AXES
    placed = jax.device_put(params, shardings(params, mesh))
    batch = place_batch({"input_ids": ids}, mesh)
    got = jax.jit(model.apply)({"params": placed}, batch["input_ids"]).logits
    np.testing.assert_allclose(got, want, atol=2e-5)
    kernel = placed["deberta"]["encoder"]["layer_0"]["feed_forward"]["intermediate"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (32 // fsdp, 64 // tensor)


def test_sizes_that_do_not_divide_are_named() -> None:
    with pytest.raises(ValueError, match=r"needs 24 devices, there are 8"):
        make_mesh(data=2, fsdp=4, tensor=3)
    with pytest.raises(ValueError, match=r"zero 1 x fsdp 1 x tensor 3 does not divide 8 devices"):
        make_mesh(tensor=3)
    config = DebertaConfig.named("deberta-v3-xsmall").replace(vocab_size=1001)
    shapes = jax.eval_shape(
        DebertaForSequenceClassification(config).init, jax.random.key(0), jnp.ones((1, 8), jnp.int32)
    )["params"]
    with pytest.raises(ValueError, match="word_embeddings/embedding has a dimension of 1001, which does not divide"):
        shardings(shapes, make_mesh(tensor=8))


# ---------------------------------------------------------------- several slices


@dataclasses.dataclass(frozen=True, order=True)
class Device:
    """What the layout of a mesh reads of a device."""

    slice_index: int
    id: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


def test_only_the_data_axis_crosses_slices() -> None:
    devices = [Device(number % 2, number) for number in range(16)]
    mesh = make_mesh(zero=2, tensor=4, devices=devices)
    assert dict(mesh.shape) == {"data": 2, "zero": 2, "fsdp": 1, "tensor": 4}
    found = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert [set(one.flat) for one in found] == [{0}, {1}]
    assert {device.id for device in mesh.devices.flat} == set(range(16))
    with pytest.raises(ValueError, match="data 1 is not a multiple of the 2 slices"):
        make_mesh(zero=4, tensor=4, devices=devices)


# ---------------------------------------------------------------- the optimizer's moments


def abstract(**sizes: int) -> AbstractMesh:
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@pytest.mark.parametrize(
    ("path", "shape", "sizes", "shard"),
    [
        ("word_embeddings/embedding", (128_000, 1024), {"zero": 8}, (16_000, 1024)),
        ("word_embeddings/embedding", (128_100, 1024), {"zero": 8}, (128_100, 128)),  # the rows do not divide
        ("word_embeddings/embedding", (128_100, 1024), {"zero": 4}, (128_100, 256)),  # 32,025 rows are no tiles
        ("attention/query_proj/kernel", (768, 768), {"zero": 16}, (48, 768)),
        ("feed_forward/output/kernel", (3072, 768), {"zero": 4, "tensor": 2}, (384, 768)),  # 192 features are no tiles
        ("attention/query_proj/kernel", (1024, 1024), {"zero": 4, "fsdp": 2, "tensor": 2}, (128, 512)),
        ("attention/query_proj/bias", (768,), {"zero": 8}, (768,)),
        ("layer_norm/scale", (768,), {"zero": 8}, (768,)),
        ("classifier/kernel", (767, 3), {"zero": 8}, (767, 3)),  # nothing divides
    ],
)
def test_moments_are_split_into_whole_tiles(
    path: str, shape: tuple[int, ...], sizes: dict[str, int], shard: tuple[int, ...]
) -> None:
    mesh = abstract(**sizes)
    split = partition(path, shape, mesh, moment=True)
    got = jax.sharding.NamedSharding(mesh, split).shard_shape(shape)
    assert got == shard
    parameter = jax.sharding.NamedSharding(mesh, partition(path, shape, mesh, moment=False)).shard_shape(shape)
    assert "zero" not in str(partition(path, shape, mesh, moment=False))
    assert math.prod(parameter) >= math.prod(got)


def test_a_state_tells_moments_from_parameters() -> None:
    kernel = {"attention": {"query_proj": {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)}}}
    state = {"params": kernel, "opt_state": {"mean": kernel, "count": jax.ShapeDtypeStruct((), jnp.int32)}}
    placed = shardings(state, make_mesh(zero=4))
    assert placed["params"]["attention"]["query_proj"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert placed["opt_state"]["mean"]["attention"]["query_proj"]["kernel"].shard_shape((64, 64)) == (16, 64)
    assert placed["opt_state"]["count"].spec == PartitionSpec()


# ---------------------------------------------------------------- the batch


@pytest.mark.parametrize("sizes", [{}, {"zero": 2, "tensor": 2}, {"zero": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}])
def test_a_batch_is_fed_by_the_rows_that_are_named(sizes: dict[str, int]) -> None:
    mesh = make_mesh(**sizes)
    assert batch_devices(mesh) == 8 // sizes.get("tensor", 1) == math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    rows = local_rows(mesh, 16)
    assert rows.dtype == np.int64
    assert rows.tolist() == list(range(16))  # one process
    ids = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
    placed = place_batch({"ids": ids[rows], "labels": ids[rows, 0]}, mesh)
    np.testing.assert_array_equal(placed["ids"], ids)
    np.testing.assert_array_equal(placed["labels"], ids[:, 0])
    assert placed["ids"].sharding == batch_sharding(mesh)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    mesh = make_mesh(zero=2, tensor=2)
    with pytest.raises(ValueError, match=r"a batch of 10 rows does not divide over 4 devices .* a multiple of 4"):
        local_rows(mesh, 10)
    with pytest.raises(ValueError, match=r"ids has 10 rows, which do not divide over the 4 parts"):
        place_batch({"ids": np.zeros((10, 2))}, mesh)


# ---------------------------------------------------------------- inside the model


@pytest.mark.parametrize("rows", [8, 64], ids=["rows are exchanged", "the table is exchanged"])
@pytest.mark.parametrize("sizes", [{"zero": 4}, {"zero": 2, "fsdp": 4}, {"zero": 2, "fsdp": 2, "tensor": 2}])
def test_a_lookup_and_its_gradient_do_not_depend_on_the_mesh(sizes: dict[str, int], rows: int) -> None:
    table, path = jax.random.normal(jax.random.key(1), (64, 32)), "word_embeddings/embedding"
    ids = jax.random.randint(jax.random.key(0), (rows, 12), -3, 67)  # some outside
    cotangent = jax.random.normal(jax.random.key(2), (*ids.shape, 32))

    def both(table: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        found, back = jax.vjp(lambda table: lookup(table, ids, path=path), table)
        return found, back(cotangent)[0]

    want, gradient = both(table, ids)
    np.testing.assert_array_equal(want, table[np.clip(ids, 0, 63)])
    mesh = make_mesh(**sizes)
    with jax.set_mesh(mesh):
        for function in (jax.jit(both), both):
            got, summed = function(table, ids)
            np.testing.assert_array_equal(got, want)
            np.testing.assert_allclose(summed, gradient, atol=2e-5)
        assert summed.sharding.shard_shape(summed.shape) == jax.sharding.NamedSharding(
            mesh, partition(path, table.shape, mesh, moment=True)
        ).shard_shape(summed.shape)


def test_constraints_split_the_batch_alone_and_are_harmless_elsewhere() -> None:
    x = jnp.arange(16.0 * 4).reshape(16, 4)
    params = {"attention": {"query_proj": {"kernel": jnp.ones((16, 16))}}}

    def both(x: jax.Array) -> tuple[jax.Array, dict]:
        return constrain_batch(x) * 2, constrain(params, moments=True)

    assert "sharding_constraint" not in str(jax.make_jaxpr(both)(x))  # no mesh
    mesh = make_mesh(zero=2, fsdp=2)
    with jax.set_mesh(mesh):
        y, placed = jax.jit(both)(x)
        assert y.sharding.shard_shape(y.shape) == (2, 4)
        kernel = placed["attention"]["query_proj"]["kernel"]
        assert math.prod(kernel.sharding.shard_shape(kernel.shape)) == 16 * 16 // 4
        assert constrain_batch(x).sharding.shard_shape(x.shape) == (2, 4)  # outside jit
        np.testing.assert_array_equal(constrain_batch(x[:3]), x[:3])  # does not divide
        split = PartitionSpec(mesh.axis_names)
        inside = jax.jit(jax.shard_map(lambda x: both(x)[0], in_specs=split, out_specs=split))
        np.testing.assert_array_equal(inside(jnp.tile(x, (2, 1))), 2 * jnp.tile(x, (2, 1)))
    other = jax.make_mesh((8,), ("replica",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(other):
        assert "sharding_constraint" not in str(jax.make_jaxpr(both)(x))
