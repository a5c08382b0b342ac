import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaConfig, DebertaForSequenceClassification, DebertaForTokenClassification
from deberta_jax.models import DebertaForQuestionAnswering
from deberta_jax.rtd import RTDConfig, init_params
from deberta_jax.sharding import MESH_AXES, RULES, make_mesh, matching_rules, path_of, place_batch, shardings

from .test_encoder import SMALL


def every_path() -> set[str]:
    """Parameter paths of every kind of model."""
    wide = SMALL.replace(conv_kernel_size=3, type_vocab_size=2, share_att_key=False, embedding_size=16)
    key, ids = jax.random.key(0), jnp.ones((1, 8), jnp.int32)
    trees = [
        jax.eval_shape(lambda: init_params(RTDConfig.half_depth(SMALL), key)),
        jax.eval_shape(DebertaForSequenceClassification(wide).init, key, ids),
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
