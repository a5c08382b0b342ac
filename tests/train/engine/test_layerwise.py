"""Layer-wise learning rates and frozen layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deberta_jax.train.engine.layerwise import depth_of, layerwise_learning_rates, stop_frozen_gradients

LAYERS = 2
DEPTHS = {
    "deberta/embeddings/word_embeddings/embedding": 0,
    "deberta/encoder/rel_embeddings": 0,
    "deberta/encoder/conv/conv/kernel": 0,
    "deberta/encoder/layer_0/attention/key_proj/bias": 1,
    "deberta/encoder/layer_1/output/kernel": 2,
    "pooler/dense/kernel": 3,
    "classifier/bias": 3,
}


def params():
    tree: dict = {}
    for path in DEPTHS:
        *folders, name = path.split("/")
        parent = tree
        for folder in folders:
            parent = parent.setdefault(folder, {})
        parent[name] = jnp.ones(2)
    return tree


def flat(tree):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize("path", DEPTHS)
def test_depth(path):
    assert depth_of(path, LAYERS) == DEPTHS[path]


def test_rates_fall_toward_the_embeddings_and_frozen_layers_stay():
    tree = params()
    optimizer = layerwise_learning_rates(
        optax.chain(optax.add_decayed_weights(0.5), optax.scale(-1.0)), decay=0.5, frozen=1, layers=LAYERS
    )
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, tree), optimizer.init(tree), tree)
    for path, update in flat(updates).items():
        expected = 0.0 if DEPTHS[path] <= 1 else -1.5 * 0.5 ** (LAYERS + 1 - DEPTHS[path])
        np.testing.assert_allclose(update, expected)


def test_without_decay_and_frozen_layers_the_optimizer_is_unchanged():
    optimizer = optax.sgd(1.0)
    assert layerwise_learning_rates(optimizer, decay=1.0, frozen=0, layers=LAYERS) is optimizer


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_parameters_get_no_gradient(frozen):
    def loss(tree):
        return sum(leaf.sum() for leaf in jax.tree.leaves(stop_frozen_gradients(tree, frozen=frozen, layers=LAYERS)))

    for path, gradient in flat(jax.grad(loss)(params())).items():
        assert (gradient == (0 if frozen and DEPTHS[path] <= frozen else 1)).all(), path
