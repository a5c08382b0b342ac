"""Every released size has the published number of parameters and tensors (shapes only, without arrays)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import Deberta, DebertaConfig, DebertaForMaskedLM, DebertaForReplacedTokenDetection
from deberta_jax.convert.mapping import to_state_dict
from deberta_jax.released import RELEASED

# Parameters and tensors of the encoder, in the layout in which it was released (transformers on the meta device;
# KerasHub's presets for v3).
PUBLISHED = {
    "deberta-base": (138_601_728, 196),
    "deberta-large": (405_163_008, 388),
    "deberta-xlarge": (757_804_032, 772),
    "deberta-v2-xlarge": (884_593_152, 394),
    "deberta-v2-xxlarge": (1_564_549_632, 778),
    "deberta-v3-xsmall": (70_682_112, 198),
    "deberta-v3-small": (141_304_320, 102),
    "deberta-v3-base": (183_831_552, 198),
    "deberta-v3-large": (434_012_160, 390),
    "mdeberta-v3-base": (278_218_752, 198),
}
FAST = ("deberta-base", "deberta-v3-small", "deberta-v3-xsmall")  # tracing 24 to 48 layers takes seconds
SIZES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]


@functools.cache
def shapes(model_class, config: DebertaConfig) -> dict:
    tree = jax.eval_shape(model_class(config).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
    return tree


def count(tree) -> tuple[int, int]:
    """Returns the number of parameters and of tensors."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) for leaf in leaves), len(leaves)


def published_count(config: DebertaConfig, tree) -> tuple[int, int]:
    """Counts as released: v1 has one in_proj for query, key and value, and no bias of keys and position keys."""
    parameters, tensors = count(tree)
    if config.share_att_key:
        return parameters, tensors
    layers, width = config.num_hidden_layers, config.num_attention_heads * config.attention_head_size
    return parameters - layers * 2 * width, tensors - layers * (2 + 2)


def test_every_released_size_is_tested():
    assert RELEASED.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", SIZES)
def test_encoder_has_the_published_number_of_parameters_and_tensors(name):
    config = DebertaConfig.named(name)
    encoder = dict(shapes(DebertaForMaskedLM, config)["deberta"])
    # Only the enhanced mask decoder reads the position table.
    encoder["embeddings"] = {key: tree for key, tree in encoder["embeddings"].items() if key != "position_embeddings"}
    assert published_count(config, encoder) == PUBLISHED[name]


@pytest.mark.parametrize("name", SIZES)
def test_converter_names_every_tensor(name):
    config = DebertaConfig.named(name)
    tree = shapes(DebertaForMaskedLM, config)
    # A single number, broadcast to the shape, needs no memory.
    state = to_state_dict(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree), config)
    assert count(state) == count(tree)
    assert state["deberta.encoder.layer.0.intermediate.dense.weight"].shape == (
        config.intermediate_size,
        config.hidden_size,
    )


@pytest.mark.parametrize("name", ["deberta-base", "deberta-v2-xlarge", "deberta-v3-small"])  # one of each version
def test_heads_add_the_published_parameters_and_tensors(name):
    """Masked LM adds the position table, a dense layer, a LayerNorm and a bias per word; its output layer is the word
    table. Replaced token detection adds a LayerNorm, a dense layer and one row."""
    config = DebertaConfig.named(name).replace(num_hidden_layers=2)
    parameters, tensors = count(shapes(Deberta, config))
    D, V = config.hidden_size, config.vocab_size
    assert count(shapes(DebertaForMaskedLM, config)) == (parameters + 512 * D + D * D + 3 * D + V, tensors + 1 + 5)
    assert count(shapes(DebertaForReplacedTokenDetection, config)) == (parameters + D * D + 4 * D + 1, tensors + 6)
