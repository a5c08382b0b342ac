"""Weights of 8 bits: what is quantized, how far predictions move, and what is refused."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import Deberta, UserError
from deberta_jax.int8 import int8_model, int8_parameters
from deberta_jax.predict.predictor import Predictor

from ..support.predictor import TEXT, random_predictor
from ..support.small_models import SMALL, random_params

qwix = pytest.importorskip("qwix", reason="weights of 8 bits need the package qwix")
IDS = np.asarray(jax.random.randint(jax.random.key(1), (2, 12), 5, 60))
WIDE = SMALL.replace(
    num_hidden_layers=2, share_att_key=False, conv_kernel_size=3, type_vocab_size=2, embedding_size=16,
    initializer_range=0.1,
)  # fmt: skip


def sizes(params: Any) -> dict[str, int]:
    """Returns the bytes of the parameters by type."""
    found: dict[str, int] = {}
    for leaf in jax.tree.leaves(params):
        found[str(leaf.dtype)] = found.get(str(leaf.dtype), 0) + leaf.nbytes
    return found


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_encoder_reads_kernels_and_words_of_8_bits(dtype: Any) -> None:
    model = Deberta(WIDE, dtype)
    params = random_params(model, IDS)
    quantized = int8_parameters(WIDE, {"deberta": params, "head": {}}, dtype=dtype)["deberta"]
    kernels = [
        leaf.size for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "kernel" and leaf.ndim == 2
    ]
    words = params["embeddings"]["word_embeddings"]["embedding"]
    assert sizes(quantized)["int8"] == sum(kernels) + words.size
    before = jax.jit(model.apply)({"params": params}, IDS).last_hidden_state
    after = jax.jit(int8_model(model).apply)({"params": quantized}, IDS).last_hidden_state
    assert after.dtype == dtype
    error = np.abs(np.asarray(after, np.float32) - np.asarray(before, np.float32)).max()
    assert 0 < error < 0.1  # the states have the standard deviation 1

    # The same numbers as of kernels that were rounded and multiplied back before.
    rounded = jax.tree.map_with_path(lambda path, leaf: rounded_by(leaf, 0) if is_dense(path, leaf) else leaf, params)
    rounded["embeddings"]["word_embeddings"]["embedding"] = rounded_by(words, 1)
    if dtype == jnp.float32:
        expected = jax.jit(model.apply)({"params": rounded}, IDS).last_hidden_state
        np.testing.assert_allclose(after, expected, atol=1e-4)


def is_dense(path: Any, leaf: np.ndarray) -> bool:
    return path[-1].key == "kernel" and leaf.ndim == 2


def rounded_by(matrix: np.ndarray, axis: int) -> jax.Array:
    """Rounds to 8 bits, with one scale for each index of the other axis, and back."""
    rounded = qwix.dequantize(qwix.quantize(jnp.asarray(matrix), jnp.int8, channelwise_axes=[1 - axis]))
    step = np.abs(matrix).max(axis=axis, keepdims=True) / 127.5
    assert (np.abs(rounded - matrix) <= 0.51 * step).all()
    return rounded


def test_a_predictor_of_8_bits_answers_almost_the_same(tmp_path: Path) -> None:
    plain = random_predictor()
    params = int8_parameters(plain.config, plain.params)
    predictor = Predictor(plain.source, plain.config, params, plain.tokenizer, weights="int8")
    assert predictor.params["deberta"]["embeddings"]["word_embeddings"]["embedding"].dtype == jnp.int8
    scores = [
        [score.probability for score in model.replaced_tokens(["It was a house."])[0]] for model in (plain, predictor)
    ]
    assert 0 < np.abs(np.subtract(*scores)).max() < 0.05
    # The masked LM reads the table of words as its output layer.
    first, second = (model.fill_mask([TEXT], top_k=3)[0] for model in (plain, predictor))
    for candidates, others in zip(first, second, strict=True):
        assert candidates[0].id == others[0].id
        assert candidates[0].probability == pytest.approx(others[0].probability, abs=0.05)


def test_unknown_weights_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights is 'int4'; it must be one of float32, int8"):
        Predictor.load(str(tmp_path / "none"), weights="int4")
