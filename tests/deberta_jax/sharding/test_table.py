"""Every parameter matches one rule, which decides how it and its optimizer moments are split."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from deberta_jax import DebertaConfig, DebertaForSequenceClassification, DebertaForTokenClassification
from deberta_jax.lora import TARGETS
from deberta_jax.models import DebertaForQuestionAnswering
from deberta_jax.rtd import RTDConfig, init_params
from deberta_jax.sharding import (
    MESH_AXES,
    make_mesh,
    matching_rules,
    named_shardings,
    parameter_path,
    partition_spec,
    place_batch,
)
from deberta_jax.sharding.table import RULES

from ...support.small_models import SMALL


def every_parameter_path() -> set[str]:
    """Returns the parameter paths of every kind of model."""
    wide = SMALL.replace(conv_kernel_size=3, type_vocab_size=2, share_att_key=False, embedding_size=16)
    electra = DebertaConfig.from_json({"model_type": "electra", "vocab_size": 30})
    xlnet = DebertaConfig.from_json({"model_type": "xlnet", "vocab_size": 30})
    key, ids = jax.random.key(0), jnp.ones((1, 8), jnp.int32)
    trees = [
        jax.eval_shape(lambda: init_params(RTDConfig.half_depth(SMALL), key)),
        jax.eval_shape(DebertaForSequenceClassification(wide).init, key, ids),
        jax.eval_shape(DebertaForSequenceClassification(electra).init, key, ids),
        jax.eval_shape(DebertaForSequenceClassification(xlnet).init, key, ids),
        jax.eval_shape(DebertaForTokenClassification(SMALL.replace(token_projection=True)).init, key, ids),
        jax.eval_shape(DebertaForQuestionAnswering(SMALL).init, key, ids),
    ]
    paths = {parameter_path(path) for tree in trees for path, _ in jax.tree.leaves_with_path(tree)}
    # Adapters of LoRA stand beside the kernels of their targets.
    targets = tuple(f"/{target}/kernel" for target in TARGETS)
    kernels = [path for path in paths if path.endswith(targets)]
    return paths | {f"{path}{suffix}" for path in kernels for suffix in ("_lora_a", "_lora_b")}


def test_every_parameter_matches_exactly_one_rule_and_every_rule_is_used() -> None:
    used = set()
    for path in every_parameter_path():
        rules = matching_rules(path)
        assert len(rules) == 1, f"{path} matches rules {rules}"
        used.add(rules[0])
    assert used == set(range(len(RULES)))


def test_outputs_do_not_depend_on_the_mesh() -> None:
    model = DebertaForSequenceClassification(SMALL.replace(num_hidden_layers=1))
    ids = np.asarray(jax.random.randint(jax.random.key(1), (8, 12), 5, 60))
    params = jax.jit(model.init)(jax.random.key(0), ids)["params"]
    apply = jax.jit(model.apply)
    expected = apply({"params": params}, ids).logits
    for fsdp, tensor in [(4, 2), (1, 4)]:
        mesh = make_mesh(fsdp=fsdp, tensor=tensor)
        placed = jax.device_put(params, named_shardings(params, mesh))
        batch = place_batch({"input_ids": ids}, mesh)
        np.testing.assert_allclose(apply({"params": placed}, batch["input_ids"]).logits, expected, atol=2e-5)
        kernel = placed["deberta"]["encoder"]["layer_0"]["feed_forward"]["intermediate"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (32 // fsdp, 64 // tensor)


def test_an_error_names_the_dimension_that_does_not_divide() -> None:
    config = DebertaConfig.named("deberta-v3-xsmall").replace(vocab_size=1001)
    shapes = jax.eval_shape(
        DebertaForSequenceClassification(config).init, jax.random.key(0), jnp.ones((1, 8), jnp.int32)
    )["params"]
    with pytest.raises(ValueError, match="word_embeddings/embedding has a dimension of 1001, which is not divisible"):
        named_shardings(shapes, make_mesh(tensor=8))


def test_a_matrix_without_a_rule_is_an_error_and_a_scalar_is_replicated() -> None:
    with pytest.raises(ValueError, match=r"no sharding rule matches other/kernel of shape \(4, 4\)"):
        partition_spec("other/kernel", (4, 4), make_mesh(), moment=False)
    assert partition_spec("count", (), make_mesh(), moment=False) == PartitionSpec()


# ---------------------------------------------------------------- the optimizer's moments


def abstract_mesh(**sizes: int) -> AbstractMesh:
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@pytest.mark.parametrize(
    ("path", "shape", "sizes", "shard"),
    [
        ("word_embeddings/embedding", (128_000, 1024), {"zero": 8}, (16_000, 1024)),
        ("word_embeddings/embedding", (128_100, 1024), {"zero": 8}, (128_100, 128)),  # 8 does not divide 128,100
        ("word_embeddings/embedding", (128_100, 1024), {"zero": 4}, (128_100, 256)),  # 32,025 words need padding
        ("attention/query_proj/kernel", (768, 768), {"zero": 16}, (48, 768)),
        ("feed_forward/output/kernel", (3072, 768), {"zero": 4, "tensor": 2}, (384, 768)),  # 192 features need padding
        ("attention/query_proj/kernel", (1024, 1024), {"zero": 4, "fsdp": 2, "tensor": 2}, (128, 512)),
        ("attention/query_proj/bias", (768,), {"zero": 8}, (768,)),
        ("layer_norm/scale", (768,), {"zero": 8}, (768,)),
        ("classifier/kernel", (767, 3), {"zero": 8}, (767, 3)),  # neither dimension divides
    ],
)
def test_moments_are_split_into_whole_tiles(
    path: str, shape: tuple[int, ...], sizes: dict[str, int], shard: tuple[int, ...]
) -> None:
    mesh = abstract_mesh(**sizes)
    moment, parameter = (partition_spec(path, shape, mesh, moment=moment) for moment in (True, False))
    assert NamedSharding(mesh, moment).shard_shape(shape) == shard
    assert "zero" not in str(parameter)
    assert math.prod(NamedSharding(mesh, parameter).shard_shape(shape)) >= math.prod(shard)


def test_moments_in_a_training_state_are_split_over_zero_as_well() -> None:
    kernel = {"attention": {"query_proj": {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)}}}
    state = {"params": kernel, "opt_state": {"mean": kernel, "count": jax.ShapeDtypeStruct((), jnp.int32)}}
    placement = named_shardings(state, make_mesh(zero=4))
    assert placement["params"]["attention"]["query_proj"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert placement["opt_state"]["mean"]["attention"]["query_proj"]["kernel"].shard_shape((64, 64)) == (16, 64)
    assert placement["opt_state"]["count"].spec == PartitionSpec()
