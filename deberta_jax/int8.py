"""Weights of 8 bits for prediction: the kernels of the encoder (through qwix) and the word embeddings.

Each output of a kernel and each word has one scale, in which its largest number is 127.5. Activations stay as they are:
a kernel is multiplied back just before its product, which XLA fuses where it can. Heads, LayerNorms, biases and the
other tables stay float32; they are small.
"""

from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from .config import DebertaConfig
from .lora import import_qwix, joined
from .models import Deberta

# Paths of the modules, inside a model with a head or not.
_KERNELS = (
    r"(deberta/)?(embeddings/embed_proj|encoder/layer_\d+/(attention/(\w+_proj|output)|"
    r"feed_forward/(intermediate|output)))"
)


def int8_model(model: nn.Module) -> nn.Module:
    """Returns a model that reads the parameters of `int8_parameters`.

    Raises:
      MissingPackageError: qwix is not installed.
    """
    qwix = import_qwix()
    rule = qwix.QuantizationRule(module_path=_KERNELS, op_names=("dot_general",), weight_qtype=jnp.int8)
    return qwix.quantize_model(model, qwix.PtqProvider([rule]))


def int8_parameters(
    config: DebertaConfig, params: dict[str, Any], *, dtype: jax.typing.DTypeLike = jnp.float32
) -> dict[str, Any]:
    """Returns parameters with an encoder of 8 bits; `int8_model` reads them.

    Args:
      config: the configuration.
      params: nested dict of float32 arrays with the encoder under `deberta`.
      dtype: of the computation, in which kernels are multiplied back.

    Raises:
      MissingPackageError: qwix is not installed.
    """
    qwix = import_qwix()
    init = int8_model(Deberta(config)).init
    abstract = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 8), np.int32))["params"]
    flat = flax.traverse_util.flatten_dict(params["deberta"])
    leaves = flax.traverse_util.flatten_dict(abstract)
    of_8_bits = [path for path, leaf in leaves.items() if not isinstance(leaf, jax.ShapeDtypeStruct)]
    kernels = {path: jnp.asarray(flat[path]) for path in of_8_bits}
    quantized = qwix.quantize_params(flax.traverse_util.unflatten_dict(kernels), abstract)
    scaled = jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.int8 else leaf.astype(dtype), quantized)
    encoder = joined(params["deberta"], scaled)
    table = params["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    words = qwix.quantize(jnp.asarray(table), jnp.int8, channelwise_axes=[0])
    embeddings = {"embedding": words.qvalue, "embedding_scale": words.scale}
    return {**params, "deberta": joined(encoder, {"embeddings": {"word_embeddings": embeddings}})}
