"""The small modules that all others use: dense, embedding, LayerNorm, dropout. Parameters are always float32."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float, Int, Shaped

from .config import DebertaConfig
from .errors import UserError
from .random import dropout, normal_initializer
from .sharding import lookup
from .terminal import list_names


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The erf form of GELU, computed in float32. (Models with the tanh form name it `gelu_tanh`.)

    It calls erf, as PyTorch does. `jax.nn.gelu` calls erfc, which on a TPU costs more than half as much as the matrix
    product before it.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATION_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


def refuse_unread(module: nn.Module, *own: str) -> None:
    """Raises if the parameters of a module have a name that the module does not read; Linen would ignore it silently.

    Call it last in `setup`, when all submodules are attributes, or in a compact `__call__`.

    Args:
      module: a module that is bound to its parameters.
      own: names of the parameters that are not of a submodule.

    Raises:
      UserError: a part of a head or a layer is not read, thus the configuration is not the one of the parameters.
    """
    values = [value for name, value in vars(module).items() if name != "parent"]
    leaves = jax.tree.leaves(values, is_leaf=lambda leaf: isinstance(leaf, nn.Module))
    read = {str(leaf.name) for leaf in leaves if isinstance(leaf, nn.Module)} | {*own}
    given = module.variables.get("params", {})
    unread = sorted("/".join((*module.path, name)) for name in given if name not in read)
    if unread:
        known = sorted(read & given.keys())
        parts = "" if module.path else f", or pass only {list_names(known) if known else 'its parts'}"
        raise UserError(
            f"the parameters have {list_names(unread)}, which {type(module).__name__} does not read with this "
            f"configuration; use the configuration that belongs to them{parts}"
        )


class Dropout(nn.Module):
    """Applies `random.dropout` in training, with a key of the "dropout" stream; the identity otherwise."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], train: bool) -> Float[Array, "*shape"]:
        if not train or self.rate == 0:
            return x
        return dropout(x, rate=self.rate, key=self.make_rng("dropout"))


class Dense(nn.Module):
    """x . kernel + bias, initialized like the original: N(0, initializer_range), zero bias.

    Unlike in `nn.Dense`, the bias is added in float32. Its gradient, a sum over all tokens, is then summed in float32,
    too, which is more exact than in bfloat16 and on a TPU twice as fast.
    """

    config: DebertaConfig
    features: int
    dtype: jnp.dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens inputs"]) -> Float[Array, "*tokens outputs"]:
        shape = (x.shape[-1], self.features)
        init = normal_initializer(self.config.initializer_range)
        kernel = self.param("kernel", init, shape, jnp.float32)
        # qwix replaces both functions where it adds adapters to a kernel (`lora`) or reads one of 8 bits (`int8`).
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias
        refuse_unread(self, "kernel", *(["bias"] if self.use_bias else []))
        return y.astype(self.dtype)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis with a scale and a bias, see `normalize`."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens D"]) -> Float[Array, "*tokens D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        refuse_unread(self, "scale", "bias")
        return normalize(self.epsilon, self.dtype, x, scale, bias)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def normalize(
    epsilon: float,
    dtype: jnp.dtype,
    x: Float[Array, "*tokens D"],
    scale: Float[Array | np.ndarray, "D"],
    bias: Float[Array | np.ndarray, "D"],
) -> Float[Array, "*tokens D"]:
    """Returns (x - mean) / sqrt(variance + epsilon) . scale + bias in `dtype`, with statistics in float32.

    The variance of a float32 x is computed from x - mean. That of a bfloat16 x is the mean square minus the squared
    mean, which reads x once; the difference loses no digit that x has unless the mean is hundreds of times the standard
    deviation.

    The derivative is written out, so that its transpose, the gradient of x, needs the sums of two products over the
    same rows. What JAX derives from the formula sums three times, one after the other. It can be differentiated
    further, and in both modes.
    """
    unit, _ = _standardize(epsilon, x)
    return (unit * scale + bias).astype(dtype)


@normalize.defjvp
def _normalize_jvp(epsilon: float, dtype: jnp.dtype, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    x, scale, bias = primals
    d_x, d_scale, d_bias = tangents
    unit, factor = _standardize(epsilon, x)
    wide = d_x.astype(jnp.float32)
    mean, slope = wide.mean(axis=-1, keepdims=True), (wide * unit).mean(axis=-1, keepdims=True)
    d_unit = factor * (wide - mean - unit * slope)
    out, d_out = unit * scale + bias, d_unit * scale + unit * d_scale + d_bias
    return out.astype(dtype), d_out.astype(dtype)


def _standardize(
    epsilon: float, x: Float[Array, "*tokens D"]
) -> tuple[Float[Array, "*tokens D"], Float[Array, "*tokens 1"]]:
    """Returns (x - mean) · factor and factor = 1 / sqrt(variance + epsilon), both float32."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    if x.dtype == jnp.bfloat16:
        variance = jnp.maximum(jnp.square(wide).mean(axis=-1, keepdims=True) - jnp.square(mean), 0)
    else:
        variance = jnp.square(wide - mean).mean(axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(variance + epsilon)
    return (wide - mean) * factor, factor


def layer_norm(config: DebertaConfig, dtype: jnp.dtype) -> LayerNorm:
    """Returns a LayerNorm with the epsilon of a model."""
    return LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype)


class Embedding(nn.Module):
    """A table [rows, features] that is looked up by id. Rows are gathered before the cast: the table is never copied.

    If the parameters hold a `delta` beside `embedding`, it is looked up, too, and added. Gradient-disentangled
    embedding sharing reads stop_gradient(E_G) + E_delta this way, without summing two tables (DeBERTaV3, eq. 5).

    If they hold an `embedding_scale` [rows, 1], `embedding` has 8 bits and each of its rows is multiplied by its scale.
    """

    rows: int
    features: int
    stddev: float
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.embedding = self.param(
            "embedding", normal_initializer(self.stddev), (self.rows, self.features), jnp.float32
        )
        refuse_unread(self, "embedding", "embedding_scale", "delta")

    def __call__(self, ids: Int[Array | np.ndarray, "*shape"]) -> Float[Array, "*shape features"]:
        """Looks ids up. An id outside the table reads NaN."""
        ids = jnp.asarray(ids)
        delta, path = self.get_variable("params", "delta"), f"{self.name}/embedding"
        if self._scale is None:
            return lookup(self.embedding, ids, path=path, delta=delta, dtype=self.dtype)
        inside = ((ids >= 0) & (ids < self.rows))[..., None]
        words, scales = (jnp.take(table, ids, axis=0, mode="clip") for table in (self.embedding, self._scale))
        vectors = jnp.where(inside, words.astype(jnp.float32) * scales, jnp.nan)
        if delta is not None:
            vectors = vectors + lookup(delta, ids, path=path)
        return vectors.astype(self.dtype)

    def table(self) -> Float[Array, "V D"]:
        """Returns the whole table as float32."""
        table = jnp.asarray(self.embedding)
        return table if self._scale is None else table.astype(jnp.float32) * self._scale

    @property
    def _scale(self) -> Float[Array, "V 1"] | None:
        return self.get_variable("params", "embedding_scale")


class SegmentConvolution(nn.Module):
    """A convolution over the sequence that reads a neighbor of another segment as zero.

    For each tap of the kernel, the embeddings are moved by the tap's offset and multiplied. Without packing this is the
    plain convolution, since the embeddings of padding are zero anyway.
    """

    config: DebertaConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], segments: Int[Array | np.ndarray, "B S"]) -> Float[Array, "B S D"]:
        width, groups, taps = self.config.hidden_size, self.config.conv_groups, self.config.conv_kernel_size
        init = normal_initializer(self.config.initializer_range)
        kernel = self.param("kernel", init, (taps, width // groups, width), jnp.float32).astype(self.dtype)
        total = self.param("bias", nn.initializers.zeros, (width,), jnp.float32).astype(self.dtype)
        refuse_unread(self, "kernel", "bias")
        kernel = kernel.reshape(taps, width // groups, groups, width // groups)
        for tap in range(taps):
            offset = tap - taps // 2
            same = (_shift(segments, offset) == segments)[..., None].astype(self.dtype)
            neighbor = (_shift(x, offset) * same).reshape(*x.shape[:-1], groups, width // groups)
            total = total + jnp.einsum("bsgi,igo->bsgo", neighbor, kernel[tap]).reshape(x.shape)
        return total


def _shift(x: Shaped[Array | np.ndarray, "B S *features"], offset: int) -> Shaped[Array, "B S *features"]:
    """out[:, i] = x[:, i + offset], zero past the ends."""
    length = x.shape[1]
    source = jnp.arange(length) + offset
    inside = (source >= 0) & (source < length)
    return jnp.where(inside.reshape(1, -1, *(1,) * (x.ndim - 2)), jnp.roll(x, -offset, axis=1), 0)
