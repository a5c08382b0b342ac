"""Configurations that are small enough for a test, and parameters for them."""

from typing import Any

import jax
import numpy as np

from deberta_jax import DebertaConfig

SMALL = DebertaConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    relative_attention=True,
    position_biased_input=False,
    pos_att_type="c2p|p2c",
    position_buckets=16,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    initializer_range=0.3,
)


TINY = SMALL.replace(vocab_size=640, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.02)


def random_params(model: Any, input_ids: Any, *, seed: int = 0) -> dict[str, Any]:
    """Returns parameters of the shapes that `model.init` gives, drawn by NumPy, because compiling `init` takes seconds.

    Kernels, embeddings and biases have the standard deviation of the configuration; LayerNorms are close to the
    identity.
    """
    rng, stddev = np.random.default_rng(seed), model.config.initializer_range

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        values = rng.normal(0, stddev, leaf.shape).astype(np.float32)
        return values + 1 if path[-1].key == "scale" else values

    shapes = jax.eval_shape(model.init, jax.random.key(0), input_ids)["params"]
    return jax.tree.map_with_path(draw, shapes)
