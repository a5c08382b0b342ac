"""The small parts that every module shares: dense, embedding, LayerNorm, dropout. Parameters are always float32."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from .config import DebertaConfig
from .sharding import lookup


def gelu(x: jax.Array) -> jax.Array:
    """The erf form, in float32 (the tanh form is another model).

    As PyTorch computes it, by erf: `jax.nn.gelu` goes by erfc, which on a TPU costs more than half the product before.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATION_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


def dropout(x: jax.Array, *, rate: float, key: jax.Array) -> jax.Array:
    """Inverted dropout (the original's StableDropout): zeroes a share `rate`, scales the rest by 1 / (1 - rate).

    See `random_bits` for what the mask is drawn from.
    """
    keep = random_bits(x.shape, key) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * (1 / (1 - rate)), jnp.zeros((), x.dtype))


def random_bits(shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """uint32 [shape], a hash of each element's index modulo 2^32 (rounds of multiply and xor-shift) and of the key.

    That takes a few integer operations an element, a twentieth of a counter-based generator's cost on CPU, and gives
    the same bits however the array is sharded.
    """
    seeds = jax.random.bits(key, (2,), jnp.uint32)
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    mixed = index * jnp.uint32(0x9E3779B9) + seeds[0]
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x21F0AAAD)
    mixed = (mixed ^ (mixed >> 15)) + seeds[1]
    mixed *= jnp.uint32(0xD35A2D97)
    return mixed ^ (mixed >> 15)


class Dropout(nn.Module):
    """`dropout` in training, nothing otherwise. Draws from the "dropout" stream."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x
        return dropout(x, rate=self.rate, key=self.make_rng("dropout"))


class Dense(nn.Module):
    """x . kernel + bias, initialized as the original's: N(0, initializer_range), zero bias.

    Unlike `nn.Dense`'s, the bias is added in float32. So its gradient, a sum over all tokens, is summed in float32
    too: more exact than in bfloat16, and on a TPU twice as fast.
    """

    config: DebertaConfig
    features: int
    dtype: jnp.dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., features]."""
        shape = (x.shape[-1], self.features)
        init = nn.initializers.normal(self.config.initializer_range)
        kernel = self.param("kernel", init, shape, jnp.float32)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = (y + bias).astype(self.dtype)
        return y


def layer_norm(config: DebertaConfig, dtype: jnp.dtype, *, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm with float32 statistics. The variance is the two-pass one: the fast one loses digits."""
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name)


class Embedding(nn.Module):
    """A table [rows, features] looked up by id. Rows are gathered before the cast, so the table is never copied.

    A `delta` beside `embedding` among the parameters is looked up as well and added: that is how
    gradient-disentangled sharing reads stop_gradient(E_G) + E_delta without summing two tables (DeBERTaV3, eq. 5).
    """

    rows: int
    features: int
    stddev: float
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.embedding = self.param(
            "embedding", nn.initializers.normal(self.stddev), (self.rows, self.features), jnp.float32
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids int [...] -> [..., features]. An id outside the table reads its nearest row."""
        found = lookup(self.embedding, ids, path=f"{self.name}/embedding")
        if self.has_variable("params", "delta"):
            found = found + lookup(self.get_variable("params", "delta"), ids, path=f"{self.name}/delta")
        return found.astype(self.dtype)
